"""A generation for stores that do not number their changes: a text that is kept with a collection.

A handle marks the collection before its first write, and gives it a new random text when it is
closed. While the mark is there nobody is told a generation, and who dies leaves it there.

Of several writers each looks before and after every write whether the mark is still its own, and
marks the collection again if it is not; and when it is closed, it takes away no mark but its own.
So no write is acknowledged under a generation that was told before it. One case is left: a writer
is killed in the middle of a write during which another one began, wrote and was closed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from rag.errors import DimensionMismatch, InputError, StoreError, UnsupportedFilter
from rag.filters import Filter
from rag.protocols import VectorStore
from rag.types import Chunk, StoreInfo
from stores.around import StoreAround
from stores.checks import GENERATION_NOTE

if TYPE_CHECKING:
    from rag.types import Vectors

CAPABILITY = "generation"

_WRITING = "writing-"
_REFUSED = (InputError, DimensionMismatch, UnsupportedFilter)  # and nothing of it is on its way


def fresh() -> str:
    """A generation that no collection has had."""
    return uuid4().hex


class Marks:
    """The marks of one handle. `read` and `write` get and set the text; none is "".

    Nothing that is written to the collection may bring an earlier text back.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[str], None]) -> None:
        self._read, self._write = read, write
        self._own = ""
        self._certain = True
        self._lock = threading.Lock()

    def generation(self) -> str | None:
        """See `rag.protocols.Generations`."""
        kept = self._read()
        return None if not kept or kept.startswith(_WRITING) else kept

    @contextmanager
    def writing(self) -> Iterator[str]:
        """Around whatever changes the collection; gives the mark. Not for what changes nothing."""
        mark = self._set()
        try:
            yield mark
        except _REFUSED:
            self._set()
            raise
        except BaseException:
            self._certain = False  # it may be written yet
            raise
        self._set()

    def close(self) -> None:
        """Tell a generation again, if this handle has written. Idempotent, and raises nothing."""
        with self._lock, suppress(StoreError):  # then the mark stays, which is safe
            own, certain = self._own, self._certain
            self._own, self._certain = "", True
            if own and certain and self._read() == own:
                self._write(fresh())

    def _set(self) -> str:
        with self._lock:
            if not self._own or self._read() != self._own:
                mark = _WRITING + uuid4().hex
                self._write(mark)
                self._own = mark
            return self._own


class NotedStore(StoreAround):
    """A collection of a store that has no generation of its own: it is kept in a note."""

    def __init__(self, store: VectorStore) -> None:
        super().__init__(store)
        self._marks = Marks(self._noted, self._note)

    def describe(self) -> StoreInfo:
        info = super().describe()
        notes = {name: text for name, text in info.notes.items() if name != GENERATION_NOTE}
        return replace(info, capabilities=info.capabilities | {CAPABILITY}, notes=notes)

    def upsert(self, chunks: Sequence[Chunk], vectors: Vectors) -> None:
        if len(chunks):
            with self._marks.writing():
                super().upsert(chunks, vectors)

    def delete(
        self,
        *,
        ids: Sequence[str] | None = None,
        document_ids: Sequence[str] | None = None,
        where: Filter | None = None,
    ) -> int:
        if ids is None and document_ids is None and where is None:
            return 0
        with self._marks.writing():
            return super().delete(ids=ids, document_ids=document_ids, where=where)

    def annotate(self, notes: Mapping[str, str]) -> None:
        with self._marks.writing() as mark:
            # With the mark, as a store that writes all notes anew might bring back an earlier one.
            super().annotate({**notes, GENERATION_NOTE: mark})

    def generation(self) -> str | None:
        """See `rag.protocols.Generations`."""
        return self._marks.generation()

    def close(self) -> None:
        self._marks.close()
        super().close()

    def _noted(self) -> str:
        return super().describe().notes.get(GENERATION_NOTE, "")

    def _note(self, text: str) -> None:
        super().annotate({GENERATION_NOTE: text})
