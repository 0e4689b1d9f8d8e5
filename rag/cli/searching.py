"""`rag search`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag.types import Hit

_BATCH = 64  # questions that are embedded and searched for together


@click.command()
@click.argument("question", required=False)
@collection_options
@top_k_option
@where_option
@search_options
@click.option(
    "--after",
    "earlier",
    multiple=True,
    metavar="QUESTION",
    help="Asked before in the same conversation; once for each, the latest last.",
)
@click.option("--explain", is_flag=True, help="Show each leg's rank, score and weight.")
@click.option("--queries", type=path, help="A file of questions, JSON lines: _id, text, earlier.")
@click.option("--out", type=path, help="With --queries: where their hits go, JSON lines.")
@as_json_option
@click.pass_context
def search(
    context: click.Context,
    /,
    question: str | None,
    collection: str | None,
    store: str | None,
    top_k: int | None,
    where: str | None,
    earlier: Sequence[str],
    explain: bool,
    queries: Path | None,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find the passages that match a question, or each question of a file."""
    from rag import terminal
    from rag.filters import parse_json
    from rag.retrieve import check_question
    from rag.rewrite import standalone
    from rag.types import Citation

    if (question is None) == (queries is None) or (queries is None) != (out is None):
        raise InputError("search takes a question, or --queries and --out", "see: rag search -h")
    if earlier and queries:
        raise InputError("--after goes with one question", 'write "earlier": […] in the lines')
    if queries is None:
        check_question(question or "")
    elif out is not None and out.resolve() == queries.resolve():
        raise InputError("--out would overwrite the questions", "name another file")
    condition = parse_json(where)
    app = app_of(context, collection, store)
    k = top_k or app.settings.answer.top_k
    how = app.search_options(**options)
    if queries is not None and out is not None:
        count = 0
        asked = _questions(queries)
        with app.retriever() as retriever, _opened(out) as file:
            for start in range(0, len(asked), _BATCH):
                batch = asked[start : start + _BATCH]
                texts = [standalone(text, before) for _, text, before in batch]
                found = retriever.search_many(texts, k, condition, how)
                for (name, text, _), result in zip(batch, found, strict=True):
                    row = {"_id": name, "text": text, "hits": _rows(result.hits, explain)}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
        terminal.say(f"{count} questions searched, hits in {out}")
        return
    found_one = app.search(standalone(question or "", earlier), k, condition, how)
    for part in found_one.degraded:
        terminal.say(f"warning: {part} failed; searched without it")
    if as_json:
        print_json(_rows(found_one.hits, explain))
    elif not found_one.hits:
        terminal.say("nothing found" + (" that matches the filter" if where else ""))
    else:
        citations = [Citation.of(n, hit) for n, hit in enumerate(found_one.hits, start=1)]
        terminal.hits(citations, found_one.hits if explain else ())


def _rows(hits: list[Hit], explain: bool) -> list[dict[str, Any]]:
    from rag.types import Citation

    rows = []
    for number, hit in enumerate(hits, start=1):
        row = Citation.of(number, hit).to_json()
        if explain:
            row["legs"] = [asdict(leg) for leg in hit.legs]
        rows.append(row)
    return rows


def _questions(file: Path) -> list[tuple[str, str, list[str]]]:
    """(id, text, questions before it) of each line. InputError naming the line that has none."""
    from rag.evaluation.files import check_line, malformed, records

    found = []
    for number, row, name, text in records(file):
        earlier = row.get("earlier") or []
        if not isinstance(earlier, list):
            malformed(file, number, 'has an "earlier" that is not a list of questions')
        before = [check_line(file, number, turn) for turn in earlier if turn != ""]
        found.append((name, check_line(file, number, text), before))
    if not found:
        raise InputError(f"{file} holds no questions", 'write {"_id": "1", "text": "…"} a line')
    return found


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    """The file, to be written; it appears when it is whole."""
    # /dev/stdout and other links are written through: a rename would put a file in their place.
    through = file.is_symlink() or (file.exists() and not file.is_file())
    part = file if through else file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as writing:
            yield writing
        if not through:
            part.replace(file)
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({error.strerror})", "name another --out"
        ) from error
    finally:
        if not through:
            part.unlink(missing_ok=True)
