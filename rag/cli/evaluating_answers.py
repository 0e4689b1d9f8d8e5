"""`rag eval --answers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rag.cli import figures
from rag.cli.context import print_json
from rag.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rag.app import App
    from rag.evaluation.answers import Scored
    from rag.evaluation.corpus import Corpus
    from rag.evaluation.dataset import Dataset
    from rag.evaluation.questions import Question
    from rag.evaluation.summary import AnswerEvaluation
    from rag.retrieve import SearchOptions

_OF_GENERATOR = {"kind", "url", "model", "temperature", "max_tokens", "concurrency", "stream"}
_OF_RERANKER = {"kind", "model", "candidates"}


def questions_of(
    folder: Path | None,
    collection: str | None,
    queries: Path | None,
    qrels: Path | None,
    limit: int | None,
) -> tuple[Corpus | None, list[Question], Dataset | None]:
    """The corpus of a folder, the questions that a command names, and judgements if there are any.

    A folder's own judgements are of its own questions.
    """
    from rag.evaluation import dataset, questions
    from rag.evaluation.corpus import Corpus
    from rag.evaluation.files import one_of

    corpus = judged = None
    if folder is not None and collection is None:
        corpus = Corpus.open(folder)
        own = folder / "qrels/test.tsv"
        qrels = qrels or (own if queries is None and own.is_file() else None)
        queries = queries or one_of(folder, "queries.jsonl", "queries.jsonl.gz")
        judged = dataset.beir(corpus, queries, qrels) if qrels else None
    elif folder is None and collection is not None and queries:
        if qrels:
            judged = replace(dataset.read(collection, queries, qrels), by_path=True)
    else:
        raise InputError(
            "eval --answers takes a DATASET, or a --collection with --queries",
            "see: rag eval --help",
        )
    asked = questions.read(queries)
    return corpus, dataset.sample(asked, limit) if limit else asked, judged


def check(floors: Mapping[str, float], out: Path | None) -> None:
    """Refuse now what would otherwise fail once everything has been answered."""
    from rag.evaluation.answers import FIGURES

    for name in floors:
        if name not in FIGURES:
            raise InputError(f"there is no figure {name!r}", "figures are: " + ", ".join(FIGURES))
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise InputError(f"{out} cannot be written", "name a file in a folder that is there")


def measure(
    app: App,
    corpus: Corpus | None,
    asked: Sequence[Question],
    judged: Dataset | None,
    options: SearchOptions,
    top_k: int | None,
    where: str | None,
    *,
    quiet: bool,
) -> AnswerEvaluation:
    """Answer the questions, and have the answers judged where a judge is set."""
    from rag import terminal
    from rag.evaluation import dataset
    from rag.evaluation.ask import measured
    from rag.evaluation.summary import summary
    from rag.filters import parse_json
    from rag.protocols import BatchGenerator

    def show(done: str, things: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return terminal.chunk_progress(done, quiet=quiet, things=things)

    condition = parse_json(where)
    judge = app.judge()
    if corpus:
        with show("indexed", "documents") as progress:
            app = app.of_corpus(corpus, progress)
    with app.store() as store:
        info = store.describe()
        by_name = dataset.judged_in(judged, store) if judged else None
    k = top_k or app.settings.answer.top_k
    with app.answerer(options) as answerer:
        rows, seconds = measured(
            answerer, asked, k, condition, judged=by_name, judge=judge, show=show
        )
    settings = {
        "collection": info.collection,
        "store": info.kind,
        "index": info.index,
        "chunks": info.count,
        "embedder": info.embedder.model if info.embedder else None,
        "models": sorted({row.answer.model for row in rows}),
        "generator": app.settings.generator.model_dump(include=_OF_GENERATOR),
        "answer": app.settings.answer.model_dump(mode="json") | {"top_k": k},
        "search": asdict(options),
        "rerank": app.settings.rerank.model_dump(include=_OF_RERANKER),
        "where": json.loads(where) if where else None,
        "judge": judge.to_json() if judge else None,
    }
    streamed = app.settings.generator.stream and not isinstance(app.generator, BatchGenerator)
    name = corpus.name if corpus else info.collection
    remarks = corpus.remarks if corpus else ()
    return summary(
        name,
        rows,
        seconds=seconds,
        streamed=streamed,
        judged=judge is not None,
        settings=settings,
        remarks=remarks,
    )


def tell(
    done: AnswerEvaluation, floors: Mapping[str, float], out: Path | None, *, as_json: bool
) -> int:
    """Print the figures, write the answers to `out`, and give the exit status."""
    from rag import terminal

    if out:
        _write(out, done.scored)
    for remark in done.remarks:
        terminal.say(remark)
    if as_json:
        print_json(done.to_json())
    else:
        rows: list[list[object]] = [[n, f"{value:.4f}"] for n, value in done.metrics.items()]
        load = f"{done.settings['generator']['concurrency']} at a time"
        rows += [[f"TTFT {p}, ms, {load}", f"{value:.1f}"] for p, value in done.ttft_ms.items()]
        rows += [[f"tokens/s, {part}", f"{v:.1f}"] for part, v in done.tokens_per_s.items()]
        rows += [[n.replace("_", " "), count] for n, count in done.counts.items()]
        figures.table([done.name, ", ".join(done.settings["models"])], rows)
    return figures.failures({done.name: done}, floors)


def _write(out: Path, rows: Sequence[Scored]) -> None:
    try:
        with out.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({error.strerror})", "name another --out"
        ) from error
