"""`rag answer`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import click

from rag.cli.context import (
    app_of,
    as_json_option,
    collection_options,
    path,
    print_json,
    search_options,
    top_k_option,
    where_option,
)
from rag.errors import InputError


@click.command()
@click.option(
    "--queries", type=path, required=True, help="The questions, JSON lines: _id, text, earlier."
)
@click.option("--out", type=path, required=True, help="Where the answers go, JSON lines.")
@collection_options
@top_k_option
@where_option
@search_options
@as_json_option
@click.pass_context
def answer(
    context: click.Context,
    /,
    queries: Path,
    out: Path,
    collection: str | None,
    store: str | None,
    top_k: int | None,
    where: str | None,
    as_json: bool,
    **search: Any,
) -> None:
    """Answer each question of a file.

    A question whose answer is in --out already, by its _id and its text, is not asked again: an
    interrupted run goes on where it stopped. Only those are asked again for which the model had
    failed, so that sentences were quoted instead; there are such if this exits with 5.
    """
    from rag import terminal
    from rag.evaluation.answer_file import AnswerFile
    from rag.evaluation.ask import ask
    from rag.evaluation.questions import read
    from rag.filters import parse_json

    if out.resolve() == queries.resolve():
        raise InputError("--out would overwrite the questions", "name another file")
    condition = parse_json(where)
    questions = read(queries)
    file = AnswerFile(out)
    app = app_of(context, collection, store)
    k = top_k or app.settings.answer.top_k
    abstained = failed = 0
    with app.answerer(app.search_options(**search)) as answerer:
        left = file.begin(questions)
        kept = len(questions) - len(left)
        if kept:
            terminal.say(f"{kept} of {len(questions)} questions are answered already in {out}")
        with (
            terminal.chunk_progress("answered", quiet=as_json, things="questions") as show,
            file.appending() as append,
            closing(ask(answerer, left, k, condition)) as answers,
        ):
            for done, (question, found) in enumerate(zip(left, answers, strict=True), start=1):
                append(question.id, found)
                abstained += found.abstained
                failed += "generator" in found.degraded
                show(done, len(left))
    if as_json:
        counts = {"answered": len(left), "abstained": abstained, "degraded": failed, "kept": kept}
        print_json({"questions": len(questions), **counts, "out": str(out)})
    else:
        terminal.say(f"{len(left)} questions answered, {abstained} abstentions; they are in {out}")
    if failed:
        terminal.say(
            f"the model failed for {failed} questions, and sentences were quoted instead; "
            "run this again to ask them again"
        )
    context.exit(5 if failed else 0)
