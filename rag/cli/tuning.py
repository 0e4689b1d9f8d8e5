"""`rag tune`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import click

from rag.cli.context import app_of, as_json_option, collection_options, path, print_json
from rag.cli.evaluating import dataset_of
from rag.errors import InputError


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
    What was learnt is kept with the collection, if it is better on questions not learnt from.
    """
    from rag import terminal
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
        app.reset_tuning()
        if as_json:
            print_json({"collection": app.settings.collection, "fusion": asdict(Fusion())})
        else:
            terminal.say(f"collection {app.settings.collection} is searched with the defaults")
        return
    corpus = dataset = None
    if folder or queries:
        corpus, dataset = dataset_of(
            folder, None if folder else app.settings.collection, queries, qrels
        )

    def show(done: str, things: str) -> AbstractContextManager[Callable[[int, int], None]]:
        return terminal.chunk_progress(done, quiet=as_json, things=things)

    learnt = app.tune(corpus, dataset, keep=not dry_run, show=show)
    name = app.settings.collection
    for remark in learnt.remarks:
        terminal.say(remark)
    if as_json:
        kept = learnt.changed and not dry_run
        print_json({"collection": name, **asdict(learnt), "kept": kept})
        return
    click.echo(f"{learnt.questions} questions of {learnt.source}; mean of nDCG@10 and recall@10:")
    click.echo(f"before  {learnt.before:.4f}")
    if not learnt.changed:
        click.echo(f"nothing better was found; collection {name} is searched as before")
        return
    click.echo(f"now     {learnt.after:.4f}, on questions not learnt from")
    click.echo(", ".join(f"{part} {value:g}" for part, value in asdict(learnt.fusion).items()))
    if dry_run:
        click.echo(f"not kept; without --dry-run collection {name} will be searched so")
    else:
        click.echo(f"kept with collection {name}; to go back: rag tune --reset --collection {name}")
