"""Files that come in by the service, kept under names that are made of ids.

What the client calls a file is shown in citations and never used as a path. A new file lies in
`new/` of its collection until its job is done; then it takes the place of the one before it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote
from uuid import uuid4

from ingest.pipeline import document_id
from ingest.walk import IGNORE_FILE
from rag.errors import InputError, StoreUnavailable, TooLarge
from rag.filters import check_metadata
from rag.service.filetypes import check_content, clean_name, suffix_of
from rag.types import Metadata, Scalar
from stores.checks import check_name

_BLOCK = 2**20
_LEFT_S = 3_600  # so long after, a file that no job names is what a dead process left
_METADATA_BYTES = 16_384
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is on the disk. `source` is what citations show, `path` is made of ids."""

    collection: str
    source: str
    document_id: str
    path: Path


def source_of(name: str, stamp: Mapping[str, Scalar]) -> str:
    """The source of a client's file: `upload/FIELD=VALUE/NAME`, with a part for each field.

    `stamp` is `Caller.stamp`: the same name by the same tenant is the same document, by another
    tenant another one. Raises InputError for a name of which nothing is left.
    """
    tenant = [_tenant(field, value) for field, value in sorted(stamp.items())]
    return "/".join(["upload", *tenant, clean_name(name)])


def stamped(metadata: Mapping[str, object], stamp: Mapping[str, Scalar]) -> Metadata:
    """The metadata of an upload, and over it what puts it into its tenant. Raises InputError."""
    check_metadata(metadata)
    whole: dict[str, Scalar] = {**metadata, **stamp}  # type: ignore[dict-item]  # checked
    if len(json.dumps(whole)) > _METADATA_BYTES:  # every chunk carries it
        raise InputError("the metadata is over 16 KB", "send less of it")
    return whole


class Uploads:
    """Files by collection and document id in `folder`. Synchronous, for threads; it reads files.

    Several processes may share the folder. Raises StoreUnavailable where the disk fails.
    """

    def __init__(self, folder: Path, max_mb: int, suffixes: Sequence[str]) -> None:
        """A file may have `max_mb` megabytes (2**20 bytes), and a suffix that a reader knows."""
        self._folder = Path(os.path.abspath(folder))
        self._max_mb = max_mb
        self._suffixes = suffixes

    def keep(
        self, stream: BinaryIO, name: str, collection: str, stamp: Mapping[str, Scalar]
    ) -> Upload:
        """Keep a file; it is on the disk when this returns. `Jobs.add` takes it from here.

        Raises UnsupportedFormat, InputError or TooLarge, and then nothing is left of it.
        """
        check_name(collection)
        source = source_of(name, stamp)
        suffix = suffix_of(source, self._suffixes)
        ours = document_id(source)
        with self._translated():
            new = self._made(collection)
            part = new / f".{uuid4().hex}"
            path = new / f"{ours}-{uuid4().hex}{suffix}"
            try:
                with part.open("xb") as file:
                    self._receive(stream, file)
                    file.flush()
                    os.fsync(file.fileno())
                check_content(part, suffix)
                part.rename(path)
                _sync(new)
            finally:
                part.unlink(missing_ok=True)
        return Upload(collection, source, ours, path)

    def file_of(self, upload: Upload) -> Path | None:
        """Where the file of an upload lies now; None if it is gone."""
        if upload.path.exists():
            return upload.path
        return self.path_of(upload.collection, upload.document_id)  # it was settled

    def path_of(self, collection: str, document_id: str) -> Path | None:
        """The file that the document was made from; None for one that was not uploaded."""
        check_name(collection)
        if not _ID.fullmatch(document_id):
            return None
        folder = self._folder / collection
        # Not by a pattern, which would go through all names of the folder.
        places = (folder / f"{document_id}{suffix}" for suffix in self._suffixes)
        return next((place for place in places if place.exists()), None)

    def settle(self, upload: Upload) -> None:
        """The file's job is done: it takes the place of the document's older file. Idempotent."""
        self._check_new(upload.path)
        place = self._folder / upload.collection / f"{upload.document_id}{upload.path.suffix}"
        with self._translated(), suppress(FileNotFoundError):
            upload.path.replace(place)
            _sync(place.parent)

    def discard(self, path: Path) -> None:
        """Drop a file that will not be taken in; the document's older one stays. Idempotent."""
        self._check_new(path)
        with self._translated():
            path.unlink(missing_ok=True)

    def delete(self, collection: str, document_id: str) -> None:
        """Delete the document's file. One that waits for its job stays. Idempotent."""
        check_name(collection)
        if _ID.fullmatch(document_id):
            with self._translated():
                for path in (self._folder / collection).glob(f"{document_id}.*"):
                    path.unlink(missing_ok=True)

    def sweep(self, wanted: Collection[Path]) -> None:
        """Delete what dead processes left: old files in `new/` that are not wanted by a job."""
        with self._translated():
            for path in self._folder.glob("*/new/*"):
                with suppress(FileNotFoundError):  # another process may be at it too
                    if path not in wanted and time.time() - path.stat().st_mtime > _LEFT_S:
                        path.unlink()

    def _check_new(self, path: Path) -> None:
        """What is moved or dropped is a file that came in, never one of a person's own."""
        if path.parent.name != "new" or path.parents[2].name != self._folder.name:
            raise ValueError(f"{path} did not come in by the service")

    def _receive(self, stream: BinaryIO, file: BinaryIO) -> None:
        size = 0
        while block := stream.read(_BLOCK):
            size += len(block)
            if size > self._max_mb * 2**20:
                raise TooLarge(
                    f"the file is over {self._max_mb} MB",
                    "split it, or raise service.max_upload_mb",
                )
            file.write(block)

    def _made(self, collection: str) -> Path:
        """The folder for new files of a collection."""
        new = self._folder / collection / "new"
        if not new.is_dir():
            new.mkdir(parents=True, exist_ok=True)
            # `rag ingest` of a folder around this one must not take in what tenants uploaded.
            (self._folder / IGNORE_FILE).write_text("*\n", "utf-8")
            for folder in (new.parent, self._folder, self._folder.parent):
                _sync(folder)
        return new

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"the files in {self._folder} cannot be used ({error.strerror or error})",
                "check that the folder may be written and that the disk has room",
            ) from error


def _tenant(field: str, value: Scalar) -> str:
    """A part of a source that no other field and value make: `FIELD=TEXT`, or `FIELD:=JSON`."""
    if isinstance(value, str):
        return f"{_quoted(field)}={_quoted(value)}"
    return f"{_quoted(field)}:={json.dumps(value)}"


def _quoted(text: str) -> str:
    return "".join(
        quote(c, safe="", errors="backslashreplace") if c in "%/:=" or not c.isprintable() else c
        for c in text
    )


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
