"""`rag tune`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rag.cli.context import app_of, as_json_option, collection_options, path, print_json
from rag.cli.evaluating import dataset_of
from rag.errors import InputError

if TYPE_CHECKING:
    from rag.evaluation.abstain import Calibrated


@click.command()
@click.argument("folder", required=False, type=path, metavar="[DATASET]")
@collection_options
@click.option("--queries", type=path, help="JSON lines of _id and text, if not DATASET's.")
@click.option(
    "--qrels", type=path, help="Query, document and grade between tabs, if not DATASET's."
)
@click.option("--dry-run", is_flag=True, help="Say what would be learnt, and do not keep it.")
@click.option("--reset", is_flag=True, help="Forget what was learnt.")
@as_json_option
@click.pass_context
def tune(
    context: click.Context,
    folder: Path | None,
    collection: str | None,
    store: str | None,
    queries: Path | None,
    qrels: Path | None,
    dry_run: bool,
    reset: bool,
    as_json: bool,
) -> None:
    """Learn how a collection's two searches, by meaning and by words, are joined.

    From questions with judgements: of DATASET, a folder in BEIR's layout (then of the collection in
    which `rag eval` keeps it; give its --qrels of another split than you evaluate on), or --queries
    and --qrels about a collection. Without any, sentences of the documents are the questions.

    Where the queries have 20 or more with "answerable": false (or that in their "metadata"), when
    to abstain is learnt too. To answer one of these and to refuse a judged one weigh the same.

    What was learnt is kept with the collection, if it is better on questions not learnt from.
    """
    from rag import terminal
    from rag.evaluation.abstain import LEAST
    from rag.evaluation.learn import forget, learn
    from rag.evaluation.tune import check_enough
    from rag.evidence import Calibration
    from rag.fusion import Fusion

    if (queries is None) != (qrels is None) and folder is None:
        raise InputError("--queries and --qrels belong together", "give both, or neither")
    if reset and (folder or queries or qrels or dry_run):
        raise InputError("--reset goes with --collection and --store alone", "leave out the rest")
    if folder and collection:
        raise InputError(
            "a DATASET has a collection of its own", "leave out --collection, or the DATASET"
        )
    app = app_of(context, collection, store)
    if reset:
        with app.store() as taught:
            forget(taught)
        if as_json:
            defaults = {"fusion": asdict(Fusion()), "calibration": asdict(Calibration())}
            print_json({"collection": app.settings.collection, **defaults})
        else:
            terminal.say(
                f"collection {app.settings.collection} is searched, and what is found is weighed, "
                f"with the defaults"
            )
        return
    corpus = dataset = None
    if folder or queries:
        corpus, dataset = dataset_of(
            folder, None if folder else app.settings.collection, queries, qrels
        )

    def show(done: str, things: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return terminal.chunk_progress(done, quiet=as_json, things=things)

    if dataset:
        check_enough(dataset)  # before a corpus is indexed
    if corpus:
        with show("indexed", "documents") as progress:
            app = app.of_corpus(corpus, progress)
    with app.retriever() as retriever:
        learnt, weighed = learn(
            retriever,
            dataset,
            app.calibration(retriever.store.describe()),
            k=app.settings.answer.top_k,
            options=app.search_options(),
            min_evidence=app.settings.answer.min_evidence,
            keep=not dry_run,
            show=show,
        )
    name = app.settings.collection
    few = len(dataset.unanswerable) if dataset and not weighed else 0
    remarks = [*learnt.remarks]
    if few:
        remarks.append(f"unanswerable questions: {few}, too few to learn when to abstain ({LEAST})")
    for remark in remarks:
        terminal.say(remark)
    changed = learnt.changed or (weighed is not None and weighed.changed)
    if as_json:
        found = {**asdict(learnt), "abstention": asdict(weighed) if weighed else None}
        print_json({"collection": name, **found, "kept": changed and not dry_run})
        return
    click.echo(f"{learnt.questions} questions of {learnt.source}; mean of nDCG@10 and recall@10:")
    click.echo(f"before  {learnt.before:.4f}")
    if learnt.changed:
        click.echo(f"now     {learnt.after:.4f}, on questions not learnt from")
        click.echo(", ".join(f"{part} {value:g}" for part, value in asdict(learnt.fusion).items()))
    else:
        click.echo(f"nothing better was found; collection {name} is searched as before")
    if weighed:
        _tell(weighed)
    if changed and dry_run:
        click.echo(f"not kept; without --dry-run collection {name} will be used so")
    elif changed:
        click.echo(f"kept with collection {name}; to go back: rag tune --reset --collection {name}")


def _tell(weighed: Calibrated) -> None:
    """Print how often the answer is wrong to come, and wrong to be refused."""
    click.echo(
        f"{weighed.answerable} questions with an answer, {weighed.unanswerable} without; "
        f"false refusals of the former, false answers to the latter:"
    )
    rates = {"before": weighed.before, "now": weighed.after}
    for when, rate in rates.items() if weighed.changed else [("before", weighed.before)]:
        held_out = ", on questions not learnt from" if when == "now" else ""
        click.echo(f"{when:<7} {rate.false_refusals:.1%}, {rate.false_answers:.1%}{held_out}")
    if not weighed.changed:
        click.echo("nothing better was found; abstains as before")
