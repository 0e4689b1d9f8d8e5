"""Chroma's engine in this process, on a folder that other processes may use, too.

The engine has no lock. What another process wrote is missing from the vectors that it holds in
memory, without a word, and two that write lose each other's (1.5.9). So processes take turns, and
one of them is the writer until it is done (`rag.writer`). The file `rag.turn` is locked by the one
whose turn it is, and counts the changes: where the count has moved on, the engine is opened again.
After a crash it says "writing", and what was half saved is undone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import chromadb
from filelock import FileLock, Timeout

from rag.errors import StoreUnavailable
from stores.chroma_connection import settings, translated
from stores.chroma_undo import Undo

_WAIT_S = 60  # for the turn
_TURN_S = 0.1  # how long threads join the turn of others of this process
_SPARE_MB = 300  # the largest batch, in SQLite with its indexes and in the index of vectors


class ChromaFolder:
    """The one connection of this process to a folder; get it with `at`."""

    _known: ClassVar[dict[Path, ChromaFolder]] = {}

    @classmethod
    def at(cls, folder: Path) -> ChromaFolder:
        """The same for the same folder, as Chroma has one engine for a path in a process, too."""
        return cls._known.setdefault(folder.resolve(), cls(folder.resolve()))

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder
        self._files: tuple[int, int] | None = None  # descriptors of rag.queue and rag.turn
        self._users = 0
        self._until = 0.0
        self._idle = threading.Condition()
        self._thread = threading.local()
        self._one_change = threading.Lock()
        self._writer = FileLock(folder / "rag.writer", timeout=0, thread_local=False)
        self._owners: set[int] = set()
        self._undo = Undo(folder)
        self._client: Any = None
        self._number = -1  # of changes that the engine knows

    @contextmanager
    def use(self) -> Iterator[Any]:
        if getattr(self._thread, "inside", False):
            yield self._client
            return
        with translated(f"in {self.location}", _hint):
            client = self._enter()
            self._thread.inside = True
            try:
                yield client
            finally:
                self._thread.inside = False
                self._leave()

    @contextmanager
    def writing(self, collection: str = "") -> Iterator[None]:
        with self._one_change:
            number, whole = self._read_state()
            if not whole:
                raise StoreUnavailable(f"a write to {self.location} has failed", "run this again")
            if collection:
                self._check_space(self._undo.size(collection))
                self._undo.save(collection)
            try:
                self._write_state(number + 1, whole=False)
                yield
                self._write_state(number + 1, whole=True)
            except BaseException:
                self._until = 0  # in the next turn it is opened again, and undone
                raise

    def claim(self, owner: object) -> None:
        with self._idle:
            if not self._owners:
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    self._writer.acquire()
                except Timeout as error:
                    raise self._busy("is being written by another process") from error
            self._owners.add(id(owner))

    def release(self, owner: object) -> None:
        with self._idle:
            self._owners.discard(id(owner))
            if not self._owners:
                self._writer.release()

    def close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._users == 0)
            self._disconnect()
            self._owners.clear()
            self._writer.release()
            if self._files is None:
                return
            queue, turn = self._files
            with suppress(BlockingIOError):
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._read_state()[1]:
                    self._undo.forget()
            os.close(queue)
            os.close(turn)
            self._files = None

    def _enter(self) -> Any:
        with self._idle:
            # Later threads wait for the next turn: they could keep other processes out for ever.
            self._idle.wait_for(lambda: self._users == 0 or time.monotonic() < self._until)
            if self._users == 0:
                turn = self._take_turn()
                try:
                    self._refresh()
                except BaseException:
                    fcntl.flock(turn, fcntl.LOCK_UN)
                    raise
                self._until = time.monotonic() + _TURN_S
            self._users += 1
            return self._client

    def _leave(self) -> None:
        with self._idle:
            self._users -= 1
            if self._users == 0:
                assert self._files is not None
                fcntl.flock(self._files[1], fcntl.LOCK_UN)
                self._idle.notify_all()

    def _take_turn(self) -> int:
        """Wait until no other process is inside; the file of the turn.

        Who waits stands in the queue, where one that was just inside cannot overtake it. Bare
        locks of the system, because FileLock takes 0.3 ms, where a search takes 2.
        """
        if self._files is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            queue, turn = (
                os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o666)
                for name in ("rag.queue", "rag.turn")
            )
            self._files = queue, turn
        queue, turn = self._files
        deadline = time.monotonic() + _WAIT_S
        self._lock(queue, deadline)
        try:
            self._lock(turn, deadline)
        finally:
            fcntl.flock(queue, fcntl.LOCK_UN)
        return turn

    def _lock(self, file: int, deadline: float) -> None:
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise self._busy(f"was busy in other processes for {_WAIT_S} s") from error
            time.sleep(0.002)

    def _busy(self, how: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the Chroma folder {self.location} {how}",
            "wait until they are done; or let a server share the folder, and set its "
            f"host and port: chroma run --path {self.location} --host 127.0.0.1",
        )

    def _refresh(self) -> None:
        """Open the engine, unless it is open and knows all that was written."""
        number, whole = self._read_state()
        if self._client is not None and whole and number == self._number:
            return
        self._disconnect()
        try:
            self._undo.look()
        except sqlite3.Error as error:
            raise StoreUnavailable(
                f"Chroma in {self.location} failed ({error})", _hint(str(error))
            ) from error
        if not whole:
            self._undo.restore()
        client = chromadb.PersistentClient(self._folder, settings())
        if not whole:
            for collection in client.list_collections():
                collection.count()  # the engine applies what was not saved, and saves it
            self._write_state(number + 1, whole=True)
        self._undo.forget()
        self._client, self._number = client, self._read_state()[0]

    def _check_space(self, copied: int) -> None:
        """The engine does not notice when it cannot write its index, and goes on (1.5.9)."""
        free = shutil.disk_usage(self._folder).free // 10**6
        needed = _SPARE_MB + copied // 10**6
        if free < needed:
            raise StoreUnavailable(
                f"only {free} MB are free for the Chroma folder {self.location}",
                f"free {needed} MB and run this again; what was written before is kept",
            )

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _read_state(self) -> tuple[int, bool]:
        """How many changes there were, and whether the last one came to its end."""
        assert self._files is not None
        text = os.pread(self._files[1], 32, 0)
        number = re.match(rb"\d+", text)
        return int(number[0]) if number else 0, b"writing" not in text

    def _write_state(self, number: int, *, whole: bool) -> None:
        assert self._files is not None
        word = "written" if whole else "writing"
        os.pwrite(self._files[1], f"{number:020} {word}".encode(), 0)
        self._number = number


def _hint(reason: str) -> str:
    if re.search("(?i)disk I/O|is full|no space", reason):
        return "free some space there and run this again; what was written before is kept"
    if re.search("(?i)malformed|not a database|hnsw|pickle|finding id", reason):
        return "it is damaged: restore the folder, or delete the collection and ingest again"
    if "locked" in reason:
        return "close the other program that uses the folder, then run this again"
    return "check that the folder exists and may be written"
