"""`rag documents`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from rag.cli.context import app_of, as_json_option, collection_options, print_json
from rag.errors import InputError


@click.group()
def documents() -> None:
    """List, show and delete the documents of a collection."""


@documents.command("list")
@collection_options
@click.option("--search", default="", metavar="TEXT", help="What source or title contain.")
@click.option("--limit", type=click.IntRange(1), help="How many at most.")
@as_json_option
@click.pass_context
def documents_list(
    context: click.Context,
    collection: str | None,
    store: str | None,
    search: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Every document, with its id, chunks and source."""
    from rag import terminal

    try:
        search.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            "--search is not valid Unicode", "check the terminal's encoding"
        ) from error
    found = app_of(context, collection, store).documents(search, limit)
    if as_json:
        print_json([asdict(record) for record in found])
    else:
        terminal.documents(found)


@documents.command("show")
@click.argument("name", metavar="ID|SOURCE")
@collection_options
@as_json_option
@click.pass_context
def documents_show(
    context: click.Context, name: str, collection: str | None, store: str | None, as_json: bool
) -> None:
    """The chunks of a document, in order."""
    from rag import terminal

    app = app_of(context, collection, store)
    record = app.find_document(name)
    with app.store() as opened:
        ids = [f"{record.id}:{record.version}:{position}" for position in range(record.chunks)]
        chunks = opened.get(ids)
    if as_json:
        print_json({**asdict(record), "texts": [asdict(chunk) for chunk in chunks]})
        return
    terminal.documents([record])
    for chunk in chunks:
        page = f", page {chunk.page}" if chunk.page else ""
        terminal.write(f"--- {chunk.position}{page}\n{chunk.text}")


@documents.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="ID|SOURCE...")
@collection_options
@click.pass_context
def documents_delete(
    context: click.Context, names: Sequence[str], collection: str | None, store: str | None
) -> None:
    """Delete documents from the collection; their files stay."""
    app = app_of(context, collection, store)
    records = [app.find_document(name) for name in names]
    with app.store() as opened:
        count = opened.delete(document_ids=[record.id for record in records])
    click.echo(f"deleted {len({r.id for r in records})} documents ({count} chunks)")
