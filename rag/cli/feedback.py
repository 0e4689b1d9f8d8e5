"""`rag feedback`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rag.cli.context import app_of, as_json_option, collection_options, path, print_json
from rag.cli.context import load_settings as settings_of

if TYPE_CHECKING:
    from rag.service.feedback import Rating


@click.group()
def feedback() -> None:
    """What people said of answers, by POST /feedback."""


@feedback.command("list")
@click.option("--collection", help="Only that of this collection.")
@as_json_option
@click.pass_context
def feedback_list(context: click.Context, collection: str | None, as_json: bool) -> None:
    """Every rating, with the question and the comment."""
    from datetime import UTC, datetime

    from rag import terminal

    found = _ratings(settings_of(context, {}).settings.data_dir, collection)
    if as_json:
        print_json([asdict(rating) for rating in found])
        return
    rows = [
        (
            f"{datetime.fromtimestamp(rating.rated_at, UTC):%Y-%m-%d %H:%M}",
            rating.rating,
            rating.answer.collection,
            " ".join(rating.answer.question.split()),
            " ".join(rating.comment.split()),
        )
        for rating in found
    ]
    terminal.table(("rated (UTC)", "", "collection", "question", "comment"), rows)


@feedback.command("export")
@click.argument("folder", type=path)
@collection_options
@as_json_option
@click.pass_context
def feedback_export(
    context: click.Context, folder: Path, collection: str | None, store: str | None, as_json: bool
) -> None:
    """Write a collection's ratings into FOLDER as questions and judgements for `rag eval`.

    The documents that an answer cites are relevant to its question if it was rated up. Answers
    that were rated down, and all comments, are in comments.jsonl, for people to look at.
    """
    from rag.service.judgements import export

    app = app_of(context, collection, store)
    name = app.settings.collection
    ratings = _ratings(app.settings.data_dir, name)
    done = export(ratings, {record.id: record.source for record in app.documents()}, folder)
    if as_json:
        print_json(asdict(done))
        return
    click.echo(
        f"{done.questions} questions with {done.judgements} judgements; "
        f"to look at: {done.commented} in {done.comments}"
    )
    if done.left_out:
        click.echo(f"left out: {done.left_out} answers that cite no document that is there now")
    if done.questions:
        click.echo(
            f"next: rag eval --collection {name} --queries {done.queries} --qrels {done.qrels}"
        )


def _ratings(data_dir: Path, collection: str | None) -> list[Rating]:
    """Those that were given; none where the service never ran."""
    from contextlib import closing

    from rag.service.feedback import FEEDBACK, Feedback

    folder = data_dir / "service"
    if not (folder / FEEDBACK).is_file():
        return []
    with closing(Feedback(folder)) as opened:
        return opened.ratings(collection)
