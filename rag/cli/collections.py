"""`rag collections`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from rag.cli.context import app_of, as_json_option, confirm, info_json, print_json, store_option


@click.group()
def collections() -> None:
    """List, show, copy, re-embed and delete collections."""


@collections.command("list")
@store_option
@as_json_option
@click.pass_context
def collections_list(context: click.Context, store: str | None, as_json: bool) -> None:
    """Every collection of the store."""
    from rag import terminal

    found = app_of(context, None, store).collections()
    if as_json:
        print_json([info_json(info) for info in found])
    else:
        terminal.collections(found)


@collections.command("show")
@click.argument("name")
@store_option
@as_json_option
@click.pass_context
def collections_show(context: click.Context, name: str, store: str | None, as_json: bool) -> None:
    """What a collection is made of."""
    from rag import terminal

    with app_of(context, name, store).store() as opened:
        info = info_json(opened.describe())
    if as_json:
        print_json(info)
    else:
        rows = [(k, json.dumps(v) if isinstance(v, dict) else v) for k, v in info.items()]
        terminal.table(("", ""), rows)


@collections.command("delete")
@click.argument("name")
@store_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def collections_delete(context: click.Context, name: str, store: str | None, yes: bool) -> None:
    """Delete a collection and all that it holds."""
    app = app_of(context, name, store)
    if name not in app.backend.collections():
        app.backend.open(name).close()  # says what is wrong; a damaged one may be deleted too
    confirm(yes, f"Delete collection {name!r} and all that it holds?")
    app.backend.drop(name)
    click.echo(f"deleted collection {name}")


@collections.command("copy")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--from-store", help="Kind of store that holds SRC; by default the one in use.")
@click.option("--to-store", help="Kind of store that gets DST; by default the one in use.")
@as_json_option
@click.pass_context
def collections_copy(
    context: click.Context,
    source: str,
    target: str,
    from_store: str | None,
    to_store: str | None,
    as_json: bool,
) -> None:
    """Copy a collection, vectors and all, and verify the copy.

    Nothing is embedded. A copy that was stopped goes on when the command is run again.
    """
    from rag import terminal

    app = app_of(context, None, None)
    stores = from_store or app.settings.store, to_store or app.settings.store
    with terminal.chunk_progress("copied", quiet=as_json) as progress:
        report = app.copy(source, target, *stores, progress)
    if as_json:
        print_json(asdict(report))
        return
    click.echo(
        f"{report.copied} chunks copied, {report.kept} were there already; "
        f"{report.copy_seconds:.1f} s, and {report.verify_seconds:.1f} s to verify"
    )
    click.echo(f"both have checksum {report.checksum}")


@collections.command("reembed")
@click.argument("name")
@click.option("--model", required=True, help="The embedding model to change to.")
@store_option
@as_json_option
@click.pass_context
def collections_reembed(
    context: click.Context, name: str, model: str, store: str | None, as_json: bool
) -> None:
    """Give a collection the vectors of another model.

    Searches go on in the old vectors until the new ones are whole. Run it again if it was stopped.
    """
    from rag import terminal

    app = app_of(context, name, store)
    with terminal.chunk_progress("embedded", quiet=as_json) as progress:
        count = app.reembed(name, model, progress)
    if as_json:
        print_json({"collection": name, "model": model, "embedded": count})
        return
    click.echo(f"{name} now has the vectors of {model} ({count} chunks embedded)")
    if model != app.settings.embedder.model:
        click.echo(f"set embedder.model = {json.dumps(model)} in rag.toml, or RAG_EMBEDDER_MODEL")
