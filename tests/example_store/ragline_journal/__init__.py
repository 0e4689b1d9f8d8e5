"""Collections as journals: a line of JSON for each write, replayed into the store in memory."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from filelock import FileLock

from rag.filters import Filter, matches
from rag.types import (
    BackendInfo,
    Chunk,
    CollectionSpec,
    DocumentKey,
    DocumentRecord,
    Fingerprint,
    Hit,
    StoreInfo,
)
from stores.checks import check_chunks, check_name, check_notes, check_same, gone, no_collection
from stores.memory import MemoryStore

if TYPE_CHECKING:
    from rag.types import Vectors

_VERSION = "1.0"


class JournalStore:
    """One collection. Every call first replays what other processes have written since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_suffix(".lock"), thread_local=False)
        with path.open("rb") as file:
            self._first = file.readline()
            self._read = file.tell()
        values = json.loads(self._first)
        del values["made"]
        embedder = values["embedder"]
        values["embedder"] = Fingerprint(**embedder) if embedder else None
        self.spec = CollectionSpec(**{**values, "name": path.stem})
        self._memory = MemoryStore(self.spec)

    def describe(self) -> StoreInfo:
        spec = self.spec
        return StoreInfo(
            "journal",
            spec.name,
            spec.dim,
            spec.metric,
            "exact",
            spec.embedder,
            self.count(),
            notes=self._notes(),
        )

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        vectors = check_chunks(chunks, vectors, self.spec.dim)
        if len(chunks):
            rows = base64.b64encode(vectors.tobytes()).decode()
            self._write({"chunks": [asdict(chunk) for chunk in chunks], "vectors": rows})

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        if ids is None and document_ids is None and where is None:
            return 0
        with self._lock:
            doomed = [
                chunk.id
                for chunks, _ in self.scan()
                for chunk in chunks
                if (ids is None or chunk.id in set(ids))
                and (document_ids is None or chunk.document_id in set(document_ids))
                and (where is None or matches(where, chunk.fields()))
            ]
            if doomed:
                self._write({"delete": doomed})
        return len(doomed)

    def get(self, ids: Sequence[str]) -> list[Chunk]:
        return self._replayed().get(ids)

    def vectors(self, ids: Sequence[str]) -> Vectors:
        return self._replayed().vectors(ids)

    def search(self, vectors: Vectors, k: int, where: Filter | None = None) -> list[list[Hit]]:
        return self._replayed().search(vectors, k, where)

    def documents(
        self,
        where: Filter | None = None,
        *,
        containing: str = "",
        after: DocumentKey | None = None,
        limit: int | None = None,
    ) -> Iterator[DocumentRecord]:
        memory = self._replayed()
        return memory.documents(where, containing=containing, after=after, limit=limit)

    def scan(self, batch: int = 1000) -> Iterator[tuple[list[Chunk], Vectors]]:
        return self._replayed().scan(batch)

    def count(self, where: Filter | None = None) -> int:
        return self._replayed().count(where)

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._lock:
            check_notes(self._notes(), notes)
            self._write({"notes": dict(notes)})

    def close(self) -> None:
        """Nothing is held open."""

    def _notes(self) -> Mapping[str, str]:
        return self._replayed().describe().notes

    def _write(self, entry: dict[str, Any]) -> None:
        """One line, on the disk before it counts. A line cut short by a crash is cut off."""
        with self._lock:
            end = self._end()
            with self._path.open("r+b") as file:
                file.seek(end)
                file.truncate()
                file.write(json.dumps(entry).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def _end(self) -> int:
        self._replayed()
        return self._read

    def _replayed(self) -> MemoryStore:
        with self._lock:
            if not self._path.exists():
                raise gone(self.spec.name)
            with self._path.open("rb") as file:
                if file.readline() != self._first:
                    raise gone(self.spec.name)
                file.seek(self._read)
                while (line := file.readline()).endswith(b"\n"):
                    self._apply(json.loads(line))
                    self._read = file.tell()
        return self._memory

    def _apply(self, entry: dict[str, Any]) -> None:
        if "delete" in entry:
            self._memory.delete(ids=entry["delete"])
            return
        if "notes" in entry:
            self._memory.annotate(entry["notes"])
            return
        chunks = [Chunk(**values) for values in entry["chunks"]]
        rows = np.frombuffer(base64.b64decode(entry["vectors"]), np.float32)
        self._memory.upsert(chunks, rows.reshape(len(chunks), self.spec.dim))


class JournalBackend:
    """Journals in a folder."""

    def __init__(self, *, data_dir: Path, folder: str = "journal") -> None:
        self._root = data_dir / folder

    def check(self) -> BackendInfo:
        return BackendInfo(str(self._root), _VERSION)

    def collections(self) -> list[str]:
        return sorted(path.stem for path in self._root.glob("*.jsonl"))

    def create(self, spec: CollectionSpec) -> JournalStore:
        check_name(spec.name)
        path = self._path(spec.name)
        if not path.exists():
            self._root.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part")
            # `made` tells it from one of the same name and kind that was there before.
            part.write_text(json.dumps({**asdict(spec), "made": uuid4().hex}) + "\n", "utf-8")
            part.replace(path)
        store = JournalStore(path)
        check_same(spec, store.spec)
        return store

    def open(self, name: str) -> JournalStore:
        return JournalStore(self._existing(name))

    def drop(self, name: str) -> None:
        self._existing(name).unlink()

    def replace(self, name: str, by: str) -> None:
        check_name(name)
        self._existing(by).replace(self._path(name))

    def close(self) -> None:
        """Nothing is held between the collections."""

    def _path(self, name: str) -> Path:
        return self._root / f"{name}.jsonl"

    def _existing(self, name: str) -> Path:
        check_name(name)
        if not self._path(name).exists():
            raise no_collection("journal", name)
        return self._path(name)
