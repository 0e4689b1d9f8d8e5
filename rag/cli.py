"""The command line. Heavy packages are imported by the commands that need them, not here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rag import __version__
from rag.errors import EXIT_CODES, InputError, RagError

if TYPE_CHECKING:
    from rag.app import App
    from rag.settings import Loaded
    from rag.types import Citation, Scalar

F = TypeVar("F", bound=Callable[..., Any])

_EPILOG = "\b\nExit status:\n" + "\n".join(f"  {c:>3}  {text}" for c, text in EXIT_CODES.items())


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="rag")
@click.option(
    "--config", type=Path, envvar="RAG_CONFIG", help="Settings file, by default rag.toml."
)
@click.option("--data-dir", type=Path, help="Folder that holds all data (RAG_DATA_DIR).")
@click.option(
    "--set", "assignments", multiple=True, metavar="NAME=VALUE", help="Any setting, for this run."
)
@click.option("--debug", is_flag=True, envvar="RAG_DEBUG", help="Show the trace of an error.")
@click.pass_context
def cli(
    context: click.Context,
    config: Path | None,
    data_dir: Path | None,
    assignments: Sequence[str],
    debug: bool,
) -> None:
    """Answers from your own documents, with the source of each sentence."""
    values: dict[str, Any] = dict(_pair(text, "--set") for text in assignments)
    if data_dir is not None:
        values["data_dir"] = data_dir
    context.obj = {"config": config, "values": values}


def _path(text: str) -> Path:
    """A path; not the current folder for "", which an unset variable in a script becomes."""
    if not text:
        raise InputError("a path is empty", "name a file or a folder, such as ./docs")
    return Path(text)


def _collection_options(command: F) -> F:
    command = click.option("--store", help="Kind of vector store, such as faiss.")(command)
    return click.option("--collection", help="Name of the collection.")(command)


_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_where = click.option("--where", help="""Filter in JSON, such as '{"year": {"$gte": 2024}}'.""")
_top_k = click.option("--top-k", type=click.IntRange(min=1), help="How many passages to use.")


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=_path, metavar="PATH...")
@_collection_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Delete documents whose files are gone from PATH.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Given to every document.")
@_as_json
@click.pass_context
def ingest(
    context: click.Context,
    paths: Sequence[Path],
    collection: str | None,
    store: str | None,
    dry_run: bool,
    prune: bool,
    metadata: Sequence[str],
    as_json: bool,
) -> None:
    """Take in files and folders: PDF, Markdown, HTML, DOCX and text.

    Only what changed since the last time is read, embedded and stored.
    """
    from rag import terminal

    app = _app(context, collection, store)
    values = {key: _scalar(value) for key, value in (_pair(m, "--metadata") for m in metadata)}
    with terminal.progress(quiet=as_json or dry_run) as progress:
        report = app.ingest(paths, metadata=values, prune=prune, dry_run=dry_run, progress=progress)
    if as_json:
        _print_json(report.to_json())
    else:
        terminal.report(report, dry_run=dry_run)
    context.exit(1 if report.failed else 0)


@cli.command()
@click.argument("question")
@_collection_options
@_top_k
@_where
@_as_json
@click.option("--stream", is_flag=True, help="Print the answer as it is written.")
@click.pass_context
def ask(
    context: click.Context,
    question: str,
    collection: str | None,
    store: str | None,
    top_k: int | None,
    where: str | None,
    as_json: bool,
    stream: bool,
) -> None:
    """Answer a question from the documents, with its sources."""
    from rag import terminal
    from rag.filters import parse_json

    condition = parse_json(where)
    app = _app(context, collection, store)
    k = top_k or app.settings.answer.top_k
    if not stream:
        answer = app.ask(question, k, condition)
        if as_json:
            _print_json(answer.to_json())
        else:
            terminal.answer(answer)
        return
    import asyncio

    from rag.answer import Done, Token

    async def follow() -> None:
        with app.answerer() as answerer:
            async for event in answerer.stream(question, k, condition):
                if as_json:
                    _print_json(_event(event), indent=None)
                elif isinstance(event, Token):
                    click.echo(terminal.lines(event.text), nl=False)
                elif isinstance(event, Done):
                    click.echo()
                    terminal.answer(event.answer, streamed=True)

    asyncio.run(follow())


@cli.command()
@click.argument("question")
@_collection_options
@_top_k
@_where
@_as_json
@click.pass_context
def search(
    context: click.Context,
    question: str,
    collection: str | None,
    store: str | None,
    top_k: int | None,
    where: str | None,
    as_json: bool,
) -> None:
    """Find the passages nearest to a question."""
    from rag import terminal
    from rag.filters import parse_json
    from rag.types import Citation

    condition = parse_json(where)
    app = _app(context, collection, store)
    found = app.search(question, top_k or app.settings.answer.top_k, condition)
    citations: list[Citation] = [Citation.of(n, hit) for n, hit in enumerate(found, start=1)]
    if as_json:
        _print_json([asdict(citation) for citation in citations])
    else:
        terminal.hits(citations)


@cli.group()
def collections() -> None:
    """List, show and delete collections."""


@collections.command("list")
@click.option("--store", help="Kind of vector store.")
@_as_json
@click.pass_context
def collections_list(context: click.Context, store: str | None, as_json: bool) -> None:
    """Every collection of the store."""
    from rag import terminal

    found = _app(context, None, store).collections()
    if as_json:
        _print_json([_info(info) for info in found])
    else:
        terminal.collections(found)


@collections.command("show")
@click.argument("name")
@click.option("--store", help="Kind of vector store.")
@_as_json
@click.pass_context
def collections_show(context: click.Context, name: str, store: str | None, as_json: bool) -> None:
    """What a collection is made of."""
    from rag import terminal

    with _app(context, name, store).store() as opened:
        info = _info(opened.describe())
    if as_json:
        _print_json(info)
    else:
        terminal.table(("", ""), list(info.items()))


@collections.command("delete")
@click.argument("name")
@click.option("--store", help="Kind of vector store.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def collections_delete(context: click.Context, name: str, store: str | None, yes: bool) -> None:
    """Delete a collection and all that it holds."""
    app = _app(context, name, store)
    if name not in app.backend.collections():
        app.backend.open(name).close()  # says what is wrong; a damaged one may be deleted too
    _confirm(yes, f"Delete collection {name!r} and all that it holds?")
    app.backend.drop(name)
    click.echo(f"deleted collection {name}")


@cli.group()
def documents() -> None:
    """List, show and delete the documents of a collection."""


@documents.command("list")
@_collection_options
@_as_json
@click.pass_context
def documents_list(
    context: click.Context, collection: str | None, store: str | None, as_json: bool
) -> None:
    """Every document, with its id, chunks and source."""
    from rag import terminal

    found = _app(context, collection, store).documents()
    if as_json:
        _print_json([asdict(record) for record in found])
    else:
        terminal.documents(found)


@documents.command("show")
@click.argument("name", metavar="ID|SOURCE")
@_collection_options
@_as_json
@click.pass_context
def documents_show(
    context: click.Context, name: str, collection: str | None, store: str | None, as_json: bool
) -> None:
    """The chunks of a document, in order."""
    from rag import terminal

    app = _app(context, collection, store)
    record = app.find_document(name)
    with app.store() as opened:
        ids = [f"{record.id}:{record.version}:{position}" for position in range(record.chunks)]
        chunks = opened.get(ids)
    if as_json:
        _print_json({**asdict(record), "texts": [asdict(chunk) for chunk in chunks]})
        return
    terminal.documents([record])
    for chunk in chunks:
        page = f", page {chunk.page}" if chunk.page else ""
        terminal.write(f"--- {chunk.position}{page}\n{chunk.text}")


@documents.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="ID|SOURCE...")
@_collection_options
@click.pass_context
def documents_delete(
    context: click.Context, names: Sequence[str], collection: str | None, store: str | None
) -> None:
    """Delete documents from the collection; their files stay."""
    app = _app(context, collection, store)
    records = [app.find_document(name) for name in names]
    with app.store() as opened:
        count = opened.delete(document_ids=[record.id for record in records])
    click.echo(f"deleted {len({r.id for r in records})} documents ({count} chunks)")


@cli.group()
def models() -> None:
    """Fetch the weights of models."""


@models.command("pull")
@click.argument("name", required=False)
@click.pass_context
def models_pull(context: click.Context, name: str | None) -> None:
    """Fetch a model and verify it; by default the embedder of the settings."""
    from rag import models as weights
    from rag import terminal

    settings = _load(context, {}).settings
    name = name or settings.embedder.model
    folder = weights.pull(name, settings.models_dir, terminal.say)
    click.echo(f"{name} is in {folder} (sha256 {weights.weights_sha256(folder)})")


@cli.group()
def config() -> None:
    """The settings in use."""


@config.command("show")
@_as_json
@click.pass_context
def config_show(context: click.Context, as_json: bool) -> None:
    """Every setting: its value and where that comes from. Secrets are masked."""
    from rag import terminal

    loaded = _load(context, {})
    if as_json:
        _print_json({n: {"value": v, "from": o} for n, v, o in loaded.rows()})
    else:
        terminal.table(("setting", "value", "from"), list(loaded.rows()))
    for name in loaded.unknown(os.environ):
        terminal.say(f"{name} is set in the environment and names no setting")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or bool(os.environ.get("RAG_DEBUG"))
    try:
        result = cli.main(args=arguments, prog_name="rag", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        where = (
            error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "rag"
        )
        return _fail(f"{error.format_message()} See: {where} --help", error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted; what was done is kept, run it again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RagError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except Exception as error:  # a bug: the person gets a line, its trace is there for the asking
        if debug:
            raise
        reason = " ".join(str(error).split())[:200]
        return _fail(f"unexpected {type(error).__name__} ({reason}); add --debug for the trace", 1)


def run() -> None:
    """The console script `rag`."""
    sys.exit(main())


def _fail(message: str, status: int) -> int:
    from rag import terminal

    terminal.say(f"error: {message}")
    return status


def _load(context: click.Context, values: dict[str, Any]) -> Loaded:
    from rag.settings import load

    given: dict[str, Any] = context.obj["values"]
    return load({**given, **values}, context.obj["config"])


def _app(context: click.Context, collection: str | None, store: str | None) -> App:
    from rag import terminal
    from rag.app import App

    chosen = {"collection": collection, "store": store}
    values = {name: value for name, value in chosen.items() if value is not None}
    return App(_load(context, values).settings, terminal.say)


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InputError(f"{option} {text!r} is not NAME=VALUE", "write it like lang=en")
    return key, value


def _scalar(text: str) -> Scalar:
    """A number or truth value if it is written like one in JSON, otherwise text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, str | int | float) else text


def _confirm(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("this deletes data and nobody can be asked", "add --yes")
    click.confirm(question, abort=True)


def _info(info: Any) -> dict[str, Any]:
    return {**asdict(info), "capabilities": sorted(info.capabilities)}


def _event(event: Any) -> dict[str, Any]:
    from rag.answer import Done, Sources

    if isinstance(event, Sources):
        return {"event": "sources", "citations": [asdict(c) for c in event.citations]}
    if isinstance(event, Done):
        return {"event": "done", **event.answer.to_json()}
    return {"event": "token", "text": event.text}


def _print_json(value: Any, indent: int | None = 2) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=indent, default=str))


if __name__ == "__main__":
    run()
