"""`rag ingest`, `rag ask`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rag.cli.context import (
    app_of,
    as_json_option,
    collection_options,
    pair,
    path,
    print_json,
    scalar,
    search_options,
    top_k_option,
    where_option,
)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=path, metavar="PATH...")
@collection_options
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--prune", is_flag=True, help="Delete documents whose files are gone from PATH.")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Given to every document.")
@as_json_option
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

    app = app_of(context, collection, store)
    values = {key: scalar(value) for key, value in (pair(m, "--metadata") for m in metadata)}
    with terminal.progress(quiet=as_json or dry_run) as progress:
        report = app.ingest(paths, metadata=values, prune=prune, dry_run=dry_run, progress=progress)
    if as_json:
        print_json(report.to_json())
    else:
        terminal.report(report, dry_run=dry_run)
    context.exit(1 if report.failed else 0)


@click.command()
@click.argument("question")
@collection_options
@top_k_option
@where_option
@search_options
@as_json_option
@click.option("--stream", is_flag=True, help="Print the answer as it is written.")
@click.option(
    "--history", type=path, help="File of the conversation: read, and this turn is added to it."
)
@click.pass_context
def ask(
    context: click.Context,
    /,
    question: str,
    collection: str | None,
    store: str | None,
    top_k: int | None,
    where: str | None,
    as_json: bool,
    stream: bool,
    history: Path | None,
    **search: Any,
) -> None:
    """Answer a question from the documents, with its sources."""
    from rag import history as conversation
    from rag import terminal
    from rag.filters import parse_json

    condition = parse_json(where)
    turns = conversation.read(history) if history else []
    app = app_of(context, collection, store)
    k = top_k or app.settings.answer.top_k
    options = app.search_options(**search)
    if not stream:
        answer = app.ask(question, k, condition, options, turns)
        if as_json:
            print_json(answer.to_json())
        else:
            terminal.answer(answer)
        if history:
            conversation.append(history, answer)
        return
    import asyncio

    from rag.answer import Done, Token

    async def follow() -> None:
        with app.answerer(options) as answerer:
            async for event in answerer.stream(question, k, condition, turns):
                if as_json:
                    print_json(_event(event), indent=None)
                elif isinstance(event, Token):
                    click.echo(terminal.lines(event.text), nl=False)
                elif isinstance(event, Done):
                    click.echo()
                    terminal.answer(event.answer, streamed=True)
                if history and isinstance(event, Done):
                    conversation.append(history, event.answer)

    asyncio.run(follow())


def _event(event: Any) -> dict[str, Any]:
    from rag.answer import Done, Sources

    if isinstance(event, Sources):
        return {"event": "sources", "citations": [c.to_json() for c in event.citations]}
    if isinstance(event, Done):
        return {"event": "done", **event.answer.to_json()}
    return {"event": "token", "text": event.text}
