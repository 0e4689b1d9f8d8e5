"""The files that documents were made from: uploads that were kept, and files of this machine.

A kept upload is the document's by construction: it takes its place when its job is done. A file of
this machine may be another one by now, so it is shown only while its bytes, with the settings as
they are, make the version that the store holds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.pipeline import Options, document_id, version_of
from ingest.read import Limits, digest, read_all, unreadable
from rag.errors import NotFound, RagError, UnknownDocument
from rag.filters import Compare, Filter
from rag.types import Chunk, DocumentRecord, Metadata

if TYPE_CHECKING:
    from rag.protocols import VectorStore
    from rag.service.uploads import Upload, Uploads
    from rag.settings import IngestSettings

_UPLOAD_AGAIN = "upload it again"


@dataclass(frozen=True, slots=True)
class Original:
    """A file, and the version that its bytes must make with `options`; None: it is the one."""

    path: Path
    version: str
    options: Options | None
    most_mb: int

    def read(self) -> bytes:
        """The bytes, of the very file. Raises NotFound if it is another by now, or gone."""
        try:
            # A pipe would wait for somebody who writes to it.
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise NotFound("what the document was made from is no file any more")
                data = file.read(self.most_mb * 2**20 + 1)
        except (OSError, ValueError) as error:
            raise gone() from error
        changed = self.options and version_of(_digest(data), self.options) != self.version
        if changed or len(data) > self.most_mb * 2**20:
            raise NotFound(
                "the file, or how it is taken in, has changed since", "ingest the document again"
            )
        return data


class Originals:
    """Finds the files of documents. Synchronous, for threads: it looks at the disk."""

    def __init__(self, uploads: Uploads, settings: IngestSettings) -> None:
        self._uploads = uploads
        self._settings = settings

    def path_of(self, collection: str, record: DocumentRecord) -> Path | None:
        """Where the document's file should be now; None if there is none."""
        return self._uploads.path_of(collection, record.id) or _local(record)

    def size_of(self, collection: str, record: DocumentRecord) -> int | None:
        """The bytes of the document's file; None if it is gone, or was written to since.

        Told without reading it: by the time at which a file of this machine was last written.
        """
        path = self.path_of(collection, record)
        try:
            found = path and path.stat()
        except OSError:
            return None
        if not found:
            return None
        written_since = int(found.st_mtime) > record.ingested_at
        return None if path == _local(record) and written_since else found.st_size

    def of(self, collection: str, record: DocumentRecord, first: Chunk) -> Original:
        """The file of a document that is `held`. Raises NotFound where there is none."""
        path = self.path_of(collection, record)
        if path is None:
            raise gone()
        local = path == _local(record)
        options = _options(self._settings, first.metadata) if local else None
        return Original(path, record.version, options, self._settings.max_file_mb)


def held(store: VectorStore, where: Filter | None) -> tuple[DocumentRecord, Chunk]:
    """The newest whole version of the document that matches, and its first chunk.

    Raises UnknownDocument, also for one of which no version is whole yet.
    """
    records = [record for record in store.documents(where) if record.complete]
    for record in sorted(records, key=lambda record: record.ingested_at, reverse=True):
        if chunks := store.get([f"{record.id}:{record.version}:0"]):
            return record, chunks[0]
    raise UnknownDocument("the collection holds no such document", "see GET /documents")


def given(store: VectorStore, upload: Upload, path: Path, settings: IngestSettings) -> Metadata:
    """The metadata that a document got with its file; its chunks have that and the file's own.

    A kept upload is what it was: what differs from what the file says was given. A file of this
    machine may say something else by now, and then that is what counts.
    """
    record, first = held(store, Compare("document_id", "eq", upload.document_id))
    try:
        if version_of(digest(path), _options(settings, first.metadata)) == record.version:
            return first.metadata
    except OSError as error:
        raise unreadable(path, error) from error
    limits = Limits(settings.max_file_mb, settings.parse_seconds, settings.parse_memory_mb, 1)
    ((_, result),) = read_all([path], limits)
    if isinstance(result, RagError):  # it is told when it is taken in
        return first.metadata
    own = result[1].metadata
    differing = {k: v for k, v in first.metadata.items() if repr(own.get(k)) != repr(v)}
    kept = str(path) != upload.source
    if kept or version_of(result[0], _options(settings, differing)) == record.version:
        return differing
    return {k: v for k, v in first.metadata.items() if k not in own}


def gone() -> NotFound:
    """The error where a document's file is not at hand."""
    return NotFound("the file that the document was made from is not at hand", _UPLOAD_AGAIN)


def _local(record: DocumentRecord) -> Path | None:
    """The file at the document's source, if that is how `rag ingest` names files."""
    source = record.source
    path = Path(source)
    if not path.is_absolute() or os.path.abspath(source) != source:
        return None
    try:
        regular = document_id(source) == record.id and stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # ValueError: it holds NUL, or half a character
        return None
    return path if regular else None


def _options(settings: IngestSettings, metadata: Metadata) -> Options:
    return Options(settings.chunk_tokens, settings.overlap_tokens, metadata=dict(metadata))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
