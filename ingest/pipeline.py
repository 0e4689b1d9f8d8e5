"""files -> store: what is new is read, split, embedded and written; the rest is left alone.

The store is the only record of what was ingested. A document's id comes from its source, its
version from its bytes and from the settings that shape its chunks; its chunk 0 is written last, so
a version is whole if and only if chunk 0 is there. New versions are written before old ones are
deleted. So a run can die at any moment and the next one ends where an undisturbed run would.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ingest.embed import EMBED_VERSION, embed
from ingest.read import READER_VERSION, Limits, check, digest, read_all, unreadable
from ingest.split import SPLITTER_VERSION, Splitter
from ingest.walk import Walk, walk
from rag.errors import InputError, RagError, StoreError, UnsupportedFormat
from rag.filters import And, Compare, Not, check_metadata
from rag.protocols import Embedder, VectorStore
from rag.types import Chunk, Document, Metadata

_WINDOW = 128  # chunks embedded together: enough to sort by length, few enough to show progress


@dataclass(frozen=True, slots=True)
class Options:
    """How to ingest. `tokens` and `overlap` are in the embedder's tokens.

    `sources` has, by absolute path, what a file's source is where that is not its path.
    """

    tokens: int
    overlap: int
    limits: Limits = field(default_factory=Limits)
    metadata: Metadata = field(default_factory=dict)
    sources: Mapping[Path, str] = field(default_factory=dict)
    prune: bool = False
    dry_run: bool = False


class Skipped(NamedTuple):
    """A file that was not taken in. `failed` is false for a format that nobody asked to read."""

    source: str
    reason: str
    failed: bool


@dataclass(slots=True)
class Report:
    """What a run did, or with dry_run would do. Files and chunks are counts, seconds wall time."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    embedded: int = 0
    stored: int = 0
    deleted: int = 0
    seconds: dict[str, float] = field(
        default_factory=lambda: {"read": 0.0, "embed": 0.0, "write": 0.0, "total": 0.0}
    )

    @property
    def failed(self) -> bool:
        """Whether a file that should have been read was not."""
        return any(item.failed for item in self.skipped)

    def to_json(self) -> dict[str, Any]:
        """The report as `rag ingest --json` prints it."""
        return {
            "files": {
                "new": self.new,
                "changed": self.changed,
                "unchanged": self.unchanged,
                "removed": self.removed,
                "skipped": [{"source": s.source, "reason": s.reason} for s in self.skipped],
            },
            "chunks": {
                "embedded": self.embedded,
                "stored": self.stored,
                "deleted": self.deleted,
            },
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }


class Progress(NamedTuple):
    """How far a run is. `files` of `of_files` to read are stored, in `chunks` chunks."""

    files: int
    of_files: int
    chunks: int


def ingest(
    paths: Sequence[Path],
    *,
    store: VectorStore | None,
    embedder: Embedder,
    options: Options,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Make the collection hold what the files under `paths` hold now.

    `store` may be None in a dry run, for a collection that is not there. One bad file is reported
    and leaves the rest, and its own older version, intact. Raises InputError for a missing path,
    StoreError or ModelError when the run cannot go on; what was written by then stays.
    """
    if store is None and not options.dry_run:
        raise InputError("there is no collection to write to", "name one")
    check_metadata(options.metadata)
    return _Run(store, embedder, options, progress).ingest(paths)


def ingest_documents(
    documents: Iterable[Document],
    *,
    store: VectorStore,
    embedder: Embedder,
    options: Options,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Report:
    """Make the collection hold these documents, which come from elsewhere than files.

    Others that it holds stay. The version of a document is made here, from what it holds and the
    chunk settings. What `ingest` promises about runs that die holds here too.
    """
    return _Run(store, embedder, options, progress).ingest_documents(documents)


def document_id(source: str) -> str:
    """The id of the document at `source`: 64 bits of its SHA-256, in hexadecimal."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def version_of(file_digest: str, options: Options) -> str:
    """64 bits of the SHA-256 of all that decides what a document's chunks are, in hexadecimal."""
    shape = [
        file_digest,
        [READER_VERSION, SPLITTER_VERSION, EMBED_VERSION, options.tokens, options.overlap],
        dict(options.metadata),
    ]
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


class _Run:
    def __init__(
        self,
        store: VectorStore | None,
        embedder: Embedder,
        options: Options,
        progress: Callable[[Progress], None],
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._options = options
        self._progress = progress
        self._now = int(time.time())
        self.report = Report()
        self._known: dict[str, dict[str, bool]] = defaultdict(dict)  # id -> version -> complete
        self._sources: dict[str, str] = {}
        self._emitted: dict[tuple[str, str], int] = {}
        self._files = self._of_files = 0

    def ingest(self, paths: Sequence[Path]) -> Report:
        started = time.perf_counter()
        with self._timed("read"):
            found = walk(paths)
            self._look_up()
            for folder, reason in found.unreadable.items():
                self._skip(folder, f"cannot be listed ({reason}); check its permissions", True)
            outdated = self._outdated(found)
        self._of_files = len(outdated)
        if outdated:
            self._progress(Progress(0, self._of_files, 0))
            self._write(self._chunks(self._read(outdated)))
        if self._options.prune:
            self._prune(found)
        if not self._options.dry_run:
            self._verify()
        self.report.seconds["total"] = time.perf_counter() - started
        return self.report

    def ingest_documents(self, documents: Iterable[Document]) -> Report:
        started = time.perf_counter()
        with self._timed("read"):
            self._look_up()
        self._write(self._chunks(self._missing(documents)))
        self._verify()
        self.report.seconds["total"] = time.perf_counter() - started
        return self.report

    def _look_up(self) -> None:
        """Learn what the store holds."""
        for record in self._store.documents() if self._store is not None else ():
            self._known[record.id][record.version] = record.complete
            self._sources[record.source] = record.id

    def _outdated(self, found: Walk) -> list[Path]:
        """The files whose current version the store does not hold whole."""
        outdated = []
        for path in found.files:
            try:
                check(path, self._options.limits)
                version = self._version(digest(path))
            except UnsupportedFormat as error:
                self._skip(path, str(error), failed=path in found.named)
            except RagError as error:
                self._skip(path, str(error), failed=True)
            except OSError as error:
                self._skip(path, str(unreadable(path, error)), failed=True)
            else:
                document = document_id(self._source(path))
                if self._known[document].get(version):
                    self.report.unchanged += 1
                    self._drop_others(document, version)
                else:
                    outdated.append(path)
        return outdated

    def _read(self, paths: Sequence[Path]) -> Iterator[Document]:
        """Every readable file as a document."""
        results = read_all(paths, self._options.limits)
        while True:
            with self._timed("read"):
                path, result = next(results, (None, None))
            if path is None or result is None:
                return
            if isinstance(result, RagError):
                self._skip(path, str(result), failed=True)
                self._of_files -= 1
                continue
            read_digest, parsed = result
            source = self._source(path)
            untitled = parsed.title == path.stem
            yield Document(
                id=document_id(source),
                source=source,
                version=self._version(read_digest),
                title=Path(source).stem if untitled else parsed.title,
                pages=parsed.pages,
                metadata={**parsed.metadata, **self._options.metadata},
            )

    def _missing(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents that the store does not hold whole, with their versions."""
        for document in documents:
            content = json.dumps(asdict(document), sort_keys=True)
            version = self._version(hashlib.sha256(content.encode()).hexdigest())
            if self._known[document.id].get(version):
                self.report.unchanged += 1
                self._drop_others(document.id, version)
            elif any(page.text.strip() for page in document.pages):
                yield replace(document, version=version)
            else:
                self._skip(document.source, "holds no text", failed=False)

    def _chunks(self, documents: Iterable[Document]) -> Iterator[Chunk]:
        """The chunks of every document; of each, the one at position 0 last."""
        options = self._options
        # First: a setting that it refuses must be told before processes are started for reading.
        splitter = Splitter(self._embedder, options.tokens, options.overlap)
        for document in documents:
            with self._timed("read"):
                chunks = splitter.split(document, self._now)
            if any(self._known[document.id].values()):
                self.report.changed += 1
            else:
                self.report.new += 1
            self._emitted[document.id, document.version] = len(chunks)
            yield from chunks[1:]
            yield chunks[0]

    def _write(self, chunks: Iterator[Chunk]) -> None:
        """Embed and store the chunks, a window at a time, and drop what they replace."""
        window: list[Chunk] = []
        for chunk in chunks:
            window.append(chunk)
            if len(window) == _WINDOW:
                self._flush(window)
                window = []
        if window:
            self._flush(window)

    def _flush(self, window: list[Chunk]) -> None:
        store = self._store
        if store is None or self._options.dry_run:
            return
        with self._timed("embed"):
            vectors = embed(window, self._embedder)
        self.report.embedded += len(window)
        with self._timed("write"):
            # Two calls, so that no chunk 0 is there before the rest of its document.
            for first in (False, True):
                rows = [i for i, chunk in enumerate(window) if (chunk.position == 0) is first]
                if rows:
                    store.upsert([window[i] for i in rows], vectors[rows])
            self.report.stored += len(window)
        for chunk in window:
            if chunk.position == 0:
                self._drop_others(chunk.document_id, chunk.version)
                self._files += 1
        self._progress(Progress(self._files, self._of_files, self.report.stored))

    def _drop_others(self, document: str, version: str) -> None:
        """Delete every other version of the document, whole or not."""
        if all(known == version for known in self._known[document]):
            return
        others = And(
            (
                Compare("document_id", "eq", document),
                Not(Compare("version", "eq", version)),
            )
        )
        if self._store is not None and not self._options.dry_run:
            with self._timed("write"):
                self.report.deleted += self._store.delete(document_ids=[document], where=others)

    def _prune(self, found: Walk) -> None:
        """Delete documents below the folders named whose files are no longer there."""
        present = {self._source(path) for path in found.files}
        for source, document in self._sources.items():
            if source not in present and found.covers(source):
                self.report.removed += 1
                if self._store is not None and not self._options.dry_run:
                    with self._timed("write"):
                        self.report.deleted += self._store.delete(document_ids=[document])

    def _verify(self) -> None:
        """Every chunk that was emitted must be in the store: none is lost in silence."""
        if self._store is None or not self._emitted:
            return
        held = {(r.id, r.version): r for r in self._store.documents()}
        for key, emitted in self._emitted.items():
            record = held.get(key)
            if record is None or not record.complete or record.chunks != emitted:
                count = record.chunks if record else 0
                raise StoreError(
                    f"the store holds {count} of {emitted} chunks of document {key[0]}",
                    "run the same command again",
                )

    def _version(self, file_digest: str) -> str:
        return version_of(file_digest, self._options)

    def _source(self, path: Path) -> str:
        return self._options.sources.get(path, str(path))

    def _skip(self, path: Path | str, reason: str, failed: bool) -> None:
        named = self._source(path) if isinstance(path, Path) else path
        source = named.encode(errors="backslashreplace").decode()
        self.report.skipped.append(Skipped(source, reason, failed))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.report.seconds[stage] += time.perf_counter() - started
