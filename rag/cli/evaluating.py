"""`rag eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from rag.cli import evaluating_answers as of_answers
from rag.cli import figures
from rag.cli.context import as_json_option, load_settings, pair, path, print_json, where_option
from rag.errors import InputError

if TYPE_CHECKING:
    from rag.app import App
    from rag.evaluation.compare import Comparison
    from rag.evaluation.corpus import Corpus
    from rag.evaluation.dataset import Dataset
    from rag.evaluation.evaluate import Evaluation


def _ks(_context: click.Context, _option: click.Parameter, text: str) -> list[int]:
    try:
        ks = sorted({int(part) for part in text.split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1 or ks[-1] > 1000:
        raise click.BadParameter(f"{text!r} is not like 1,5,10 (each from 1 to 1000).")
    return ks


def _floors(
    _context: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, float]:
    floors = {}
    for name, number in (pair(text, "--fail-under") for text in texts):
        try:
            floors[name] = float(number)
        except ValueError as error:
            raise click.BadParameter(f"{number!r} is not a number.") from error
    return floors


@click.command("eval")
@click.argument("folder", required=False, type=path, metavar="[DATASET]")
@click.option("--collection", help="Measure this collection; documents are judged by source path.")
@click.option("--queries", type=path, help="JSON lines of _id and text, if not DATASET's.")
@click.option(
    "--qrels", type=path, help="Query, document and grade between tabs, if not DATASET's."
)
@click.option("--k", "ks", default="1,5,10,100", show_default=True, callback=_ks)
@click.option("--mode", type=click.Choice(["hybrid", "dense", "keyword"]))
@click.option("--rerank", metavar="MODEL", help="Rerank with this model.")
@where_option
@click.option(
    "--store", "stores", multiple=True, metavar="KIND[:INDEX]", help="Such as milvus or faiss:HNSW."
)
@click.option("--limit", type=click.IntRange(min=1), help="Ask only so many of the queries.")
@click.option("--run", "run_file", type=path, help="Write what was found, as a TREC run.")
@click.option("--baseline", type=path, help="An earlier --run, to compare with query by query.")
@click.option(
    "--fail-under",
    "floors",
    multiple=True,
    metavar="FIGURE=X",
    callback=_floors,
    help="Exit with 1 if it is less, such as recall@10=0.85.",
)
@click.option("--html", "html_file", type=path, help="Write a report with plots.")
@click.option("--answers", is_flag=True, help="Measure answers instead of what is found.")
@click.option("--top-k", type=click.IntRange(min=1), help="With --answers: passages to use.")
@click.option("--out", type=path, help="With --answers: where they go with their figures.")
@click.option("--judge", metavar="MODEL", help="With --answers: the model that judges them.")
@click.option("--judge-url", metavar="URL", help="Its server, with OpenAI's API.")
@as_json_option
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    folder: Path | None,
    collection: str | None,
    queries: Path | None,
    qrels: Path | None,
    ks: list[int],
    mode: str | None,
    rerank: str | None,
    where: str | None,
    stores: Sequence[str],
    limit: int | None,
    run_file: Path | None,
    baseline: Path | None,
    floors: Mapping[str, float],
    html_file: Path | None,
    answers: bool,
    top_k: int | None,
    out: Path | None,
    judge: str | None,
    judge_url: str | None,
    as_json: bool,
) -> None:
    """Measure retrieval on questions with judgements, or answers.

    DATASET is a folder in BEIR's layout: corpus.jsonl (or .gz), queries.jsonl, qrels/test.tsv. It
    is indexed into a collection of its own, which is kept and reused. Instead, a --collection can
    be measured, with --queries and --qrels.

    With --answers every question is answered, those too that are not judged. What is measured
    depends on what queries.jsonl has besides _id and text: "answers", the right ones, and
    "answerable", true or false. Judgements need not be there.
    """
    if answers:
        _refuse(context, "--answers", ("ks", "run_file", "baseline", "html_file"))
        if len(stores) > 1:
            raise InputError("--answers measures one --store", "run it once for each")
        chosen = {"judge.model": judge, "judge.url": judge_url}
        app = _app(context, collection, "".join(stores), rerank, chosen)
        of_answers.check(floors, out)
        asked = of_answers.questions_of(folder, collection, queries, qrels, limit)
        how = app.search_options(mode=mode)
        answered = of_answers.measure(app, *asked, how, top_k, where, quiet=as_json)
        context.exit(of_answers.tell(answered, floors, out, as_json=as_json))
    _refuse(context, "a measure of retrieval", ("top_k", "out", "judge", "judge_url"))
    from rag import terminal
    from rag.evaluation import metrics, report, runs
    from rag.evaluation.compare import against
    from rag.evaluation.measure import ANN_RECALL, measure
    from rag.filters import parse_json

    condition = parse_json(where)
    mode = mode or load_settings(context, {}).settings.search.mode
    known = [*metrics.names(ks), *([] if mode == "keyword" else [ANN_RECALL])]
    _check(floors, known, run_file, html_file)
    corpus, dataset = dataset_of(folder, collection, queries, qrels)
    dataset = dataset.limited(limit) if limit else dataset
    earlier = runs.read(baseline) if baseline else {}
    if baseline:
        runs.common(earlier, dataset.qrels, baseline)
    # All before the first is measured, so that a misspelt name is told at once.
    apps = {name: _app(context, collection, name, rerank) for name in stores or [""]}
    done: dict[str, Evaluation] = {}
    compared: dict[str, dict[str, Comparison]] = {}
    like = None
    with ExitStack() as opened:
        for name, app in apps.items():
            # The bar goes before anything is timed.
            with terminal.chunk_progress("indexed", quiet=as_json, things="documents") as show:
                target = app.of_corpus(corpus, show, like) if corpus else app
                retriever = opened.enter_context(target.retriever())
            like = like or retriever.store
            options = app.search_options(mode=mode, expand=0)
            found = measure(retriever, dataset, ks, options=options, where=condition)
            second = app.settings.rerank
            model = None if second.kind == "none" else second.model or second.kind
            found.settings.update(rerank=model, where=where, limit=limit)
            label = name or app.settings.store
            if baseline:
                compared[label], remarks = against(baseline, earlier, found, ks)
                found = replace(found, remarks=(*found.remarks, *remarks))
            if run_file:
                runs.write(_for_store(run_file, label, len(apps)), found.run, "rag")
            done[label] = found
    for remark in dict.fromkeys(remark for found in done.values() for remark in found.remarks):
        terminal.say(remark)
    if html_file:
        html_file.write_text(report.html(done, ks, compared), "utf-8")
    if as_json:
        rows = [figures.as_json(found, compared.get(label)) for label, found in done.items()]
        print_json(rows[0] if len(rows) == 1 else rows)
    else:
        figures.show(done, compared)
    context.exit(figures.failures(done, floors))


def dataset_of(
    folder: Path | None, collection: str | None, queries: Path | None, qrels: Path | None
) -> tuple[Corpus | None, Dataset]:
    """The questions and judgements that a command names, and the corpus of its folder."""
    from rag.evaluation.corpus import Corpus
    from rag.evaluation.dataset import beir, read

    if folder is not None and collection is None:
        corpus = Corpus.open(folder)
        return corpus, beir(corpus, queries, qrels)
    if folder is None and collection is not None and queries and qrels:
        return None, replace(read(collection, queries, qrels), by_path=True)
    raise InputError(
        "eval takes a DATASET, or a --collection with --queries and --qrels",
        "see: rag eval --help",
    )


def _app(
    context: click.Context,
    collection: str | None,
    store: str,
    rerank: str | None,
    more: Mapping[str, str | None] | None = None,
) -> App:
    """The application for KIND or KIND:INDEX, closed when the command ends."""
    from rag import terminal
    from rag.app import App

    kind, _, index = store.partition(":")
    chosen = {
        "collection": collection,
        "store": kind,
        f"stores.{kind}.index": index,
        **(more or {}),
    }
    if rerank:
        set_kind = load_settings(context, {}).settings.rerank.kind
        chosen |= {"rerank.kind": "cross-encoder" if set_kind == "none" else set_kind}
        chosen |= {"rerank.model": rerank}
    values = {name: value for name, value in chosen.items() if value}
    app = App(load_settings(context, values).settings, terminal.say)
    context.call_on_close(app.close)
    _ = app.backend  # raises for a kind or an index that is not there
    return app


def _refuse(context: click.Context, by: str, names: Sequence[str]) -> None:
    """InputError for an option that goes with the other kind of evaluation."""
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if option.name in names and source is ParameterSource.COMMANDLINE:
            raise InputError(f"{option.opts[0]} does not go with {by}", "see: rag eval --help")


def _check(
    floors: Mapping[str, float], known: Sequence[str], run: Path | None, html: Path | None
) -> None:
    """Refuse now what would otherwise fail once everything has been measured."""
    from rag.evaluation import plots

    for name in floors:
        if name not in known:
            raise InputError(f"there is no figure {name!r}", "figures are: " + ", ".join(known))
    for file in (run, html):
        if file and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise InputError(f"{file} cannot be written", "name a file in a folder that is there")
    if html:
        plots.check_installed()


def _for_store(file: Path, label: str, stores: int) -> Path:
    return file if stores < 2 else file.with_stem(f"{file.stem}-{label.replace(':', '-')}")
