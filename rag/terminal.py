"""What the command line prints for people."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from ingest.pipeline import Progress, Report
    from rag.types import Answer, Citation, DocumentRecord, Hit, StoreInfo


# Controls, marks that turn the direction of text, and halves of characters.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def say(line: str) -> None:
    """A line about what goes on, on standard error."""
    print(f"rag: {printable(line)}", file=sys.stderr, flush=True)


def printable(text: object) -> str:
    """Text without characters that a terminal would obey, such as escape sequences."""
    return _OBEYED.sub("\ufffd", str(text))


def lines(text: str) -> str:
    """Like `printable`, for text of several lines."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def shown_source(source: str) -> str:
    """A source as short as it can be told from here."""
    relative = os.path.relpath(source) if Path(source).is_absolute() else source
    return printable(source if relative.startswith("..") else relative)


def write(text: str, file: TextIO | None = None) -> None:
    """Print text, wrapped to the terminal's width by words and wide characters."""
    from rich.console import Console

    out = Console(file=file or sys.stdout, highlight=False, markup=False, emoji=False)
    out.print(lines(text), soft_wrap=not out.is_terminal)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns on a terminal, tab-separated lines anywhere else."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(printable(cell) for cell in row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*head, box=box.SIMPLE)
    for row in rows:
        drawn.add_row(*(Text(printable(cell)) for cell in row))
    Console().print(drawn)


def answer(found: Answer, *, streamed: bool = False) -> None:
    """The answer, then the sources it rests on. `streamed`: its text is on the screen already."""
    if not streamed:
        write(found.text)
    if found.citations:
        write("\nSources")
        for citation in found.citations:
            source(citation)
    loose = [found.text[s.start : s.end] for s in found.statements if not s.supported]
    if loose:
        write("\nNot found in the sources")
        for text in loose:
            write(f"    > {printable(text)}")
    if found.notice:
        write(f"\nNote: {found.notice}.")


def source(citation: Citation) -> None:
    """One citation: title, file, page, score and the sentences quoted."""
    page = f", page {citation.page}" if citation.page else ""
    write(f"[{citation.marker}] {printable(citation.title)}")
    write(f"    {shown_source(citation.source)}{page}  (score {citation.score:.2f})")
    for quote in citation.quotes():
        write(f"    > {printable(quote)}")


def hits(found: Sequence[Citation], explained: Sequence[Hit] = ()) -> None:
    """Search hits: where each is and how it begins; of those `explained`, how each leg saw them."""
    for number, citation in enumerate(found):
        source(citation)
        for leg in explained[number].legs if explained else ():
            write(
                f"    {leg.name}: rank {leg.rank}, score {leg.score:.3f}, weight {leg.weight:.2f}"
            )
        begin = " ".join(citation.text.split())
        write(f"    {printable(begin[:200])}{' ...' if len(begin) > 200 else ''}\n")


def report(done: Report, *, dry_run: bool) -> None:
    """The closing summary of an ingestion."""
    for item in done.skipped:
        write(f"skipped {shown_source(item.source)}: {item.reason}")
    would = "would be " if dry_run else ""
    files = done.new + done.changed + done.unchanged + len(done.skipped)
    write(
        f"{files} files: {done.new} {would}new, {done.changed} {would}changed, "
        f"{done.unchanged} unchanged, {done.removed} {would}removed, {len(done.skipped)} skipped"
    )
    if not dry_run:
        write(f"{done.embedded} chunks embedded, {done.stored} stored, {done.deleted} deleted")
    seconds = done.seconds
    write(
        f"{seconds['total']:.1f} s: reading {seconds['read']:.1f}, "
        f"embedding {seconds['embed']:.1f}, writing {seconds['write']:.1f}"
    )


def collections(found: Sequence[StoreInfo]) -> None:
    """The collections of a store."""
    table(
        ("collection", "chunks", "dim", "metric", "index", "embedder"),
        [
            (
                i.collection,
                i.count,
                i.dim,
                i.metric,
                i.index,
                i.embedder.model if i.embedder else "",
            )
            for i in found
        ],
    )


def documents(found: Sequence[DocumentRecord]) -> None:
    """The documents of a collection."""
    table(
        ("document", "chunks", "ingested", "title", "source"),
        [
            (
                r.id,
                r.chunks if r.complete else f"{r.chunks}, incomplete",
                datetime.fromtimestamp(r.ingested_at, UTC).strftime("%Y-%m-%d %H:%M"),
                r.title,
                shown_source(r.source),
            )
            for r in found
        ],
    )


@contextmanager
def progress(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """What to tell an ingestion's progress to: a bar on a terminal, otherwise plain lines."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        started = time.perf_counter()

        def line(now: Progress) -> None:
            if not now.chunks:
                return
            rate = now.files / max(time.perf_counter() - started, 1e-9)
            left = (now.of_files - now.files) / rate if rate else 0.0
            say(
                f"{now.files} of {now.of_files} files, {now.chunks} chunks, "
                f"{rate:.1f} files/s, {left:.0f} s left"
            )

        yield line


@contextmanager
def chunk_progress(
    done_word: str, *, quiet: bool, things: str = "chunks"
) -> Iterator[Callable[[int, int], None]]:
    """What to tell (done, of) chunks to: a bar on a terminal, otherwise a line a few seconds."""
    if quiet:
        yield lambda _done, _of: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(done_word, total=None)
            yield lambda done, of: bar.update(task, completed=done, total=of)
    else:
        told = time.perf_counter()

        def line(done: int, of: int) -> None:
            nonlocal told
            if done == of or time.perf_counter() - told > 5:
                told = time.perf_counter()
                say(f"{done} of {of} {things} {done_word}")

        yield line


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich import progress as bars
    from rich.console import Console

    columns: list[Any] = [
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("files, {task.fields[chunks]} chunks, {task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    ]
    started = time.perf_counter()
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("ingesting", total=None, chunks=0, rate="")

        def show(now: Progress) -> None:
            rate = now.files / max(time.perf_counter() - started, 1e-9)
            bar.update(
                task,
                total=now.of_files,
                completed=now.files,
                chunks=now.chunks,
                rate=f"{rate:.1f} files/s",
            )

        yield show
