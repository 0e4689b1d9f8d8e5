"""Chroma's engine in this process, on a folder that other processes may use, too.

The engine has no lock. What another process wrote is missing from the vectors that it holds in
memory, without a word, and two that write lose each other's (1.5.9). So one process at a time is
inside an operation (`rag.turn.lock`), one is the writer until it is done (`rag.writer.lock`), and
`rag.state` counts the changes: where it has moved on, the engine is opened again. It says
"writing" after a crash, and then what was half saved is undone.
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import chromadb
from filelock import FileLock, Timeout

from rag.errors import StoreUnavailable
from stores.chroma_connection import settings, translated
from stores.chroma_undo import Undo

_WAIT_S = 60  # for another process that is inside an operation
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
        self._writer = FileLock(folder / "rag.writer.lock", timeout=0, thread_local=False)
        self._owners: set[object] = set()
        self._turn: int | None = None  # the descriptor of rag.turn.lock
        self._users = 0
        self._idle = threading.Condition()
        self._one_change = threading.RLock()
        self._undo = Undo(folder)
        self._client: Any = None
        self._state = ""

    @contextmanager
    def use(self) -> Iterator[Any]:
        with translated(f"in {self.location}", _hint):
            client = self._enter()
            try:
                yield client
            finally:
                self._leave()

    @contextmanager
    def writing(self, collection: str = "") -> Iterator[None]:
        with self._one_change:
            number = _number(self._read_state()) + 1
            try:
                self._write_state(f"{number} writing")
                if collection:
                    self._undo.save(collection)
                    self._check_space()
                yield
                self._write_state(str(number))
            except BaseException:
                self._state = "failed"  # so that it is opened again, and undone
                raise

    def claim(self, owner: object) -> None:
        with self._idle, translated(f"in {self.location}", _hint):
            if not self._writer.is_locked:
                self._folder.mkdir(parents=True, exist_ok=True)
                try:
                    self._writer.acquire()
                except Timeout as error:
                    raise self._busy("is being written by another process") from error
            self._owners.add(owner)

    def release(self, owner: object) -> None:
        with self._idle:
            self._owners.discard(owner)
            if not self._owners and self._writer.is_locked:
                if self._state.isdigit():
                    self._undo.forget()
                self._writer.release()

    def close(self) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._users == 0)
            for owner in list(self._owners):
                self.release(owner)
            self._disconnect()
            if self._turn is not None:
                os.close(self._turn)
                self._turn = None

    def _enter(self) -> Any:
        with self._idle:
            if self._users == 0:
                turn = self._take_turn()
                try:
                    self._refresh()
                except BaseException:
                    fcntl.flock(turn, fcntl.LOCK_UN)
                    raise
            self._users += 1
            return self._client

    def _leave(self) -> None:
        with self._idle:
            self._users -= 1
            if self._users == 0:
                assert self._turn is not None
                fcntl.flock(self._turn, fcntl.LOCK_UN)
                self._idle.notify_all()

    def _take_turn(self) -> int:
        """Wait until no other process is inside.

        A bare flock, because FileLock takes 0.3 ms, where a search takes 2.
        """
        if self._turn is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._turn = os.open(self._folder / "rag.turn.lock", os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._turn
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise self._busy(f"was busy in another process for {_WAIT_S} s") from error
            time.sleep(0.01)

    def _refresh(self) -> None:
        """Open the engine, unless it is open and knows all that was written."""
        state = self._read_state()
        if self._client is not None and state == self._state:
            return
        self._disconnect()
        try:
            self._undo.look()
        except sqlite3.Error as error:
            raise StoreUnavailable(
                f"Chroma in {self.location} failed ({error})", _hint(str(error))
            ) from error
        crashed = not state.isdigit()
        if crashed:
            self._undo.restore()
        client = chromadb.PersistentClient(self._folder, settings())
        if crashed:
            for collection in client.list_collections():
                collection.count()  # the engine applies what was not saved, and saves it
            self._write_state(str(_number(state) + 1))
            self._undo.forget()
        self._client, self._state = client, self._read_state()

    def _check_space(self) -> None:
        """The engine does not notice when it cannot write its index, and goes on (1.5.9)."""
        free = shutil.disk_usage(self._folder).free // 10**6
        if free < _SPARE_MB:
            raise StoreUnavailable(
                f"only {free} MB are free for the Chroma folder {self.location}",
                f"free {_SPARE_MB} MB and run this again; what was written before is kept",
            )

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _read_state(self) -> str:
        try:
            return (self._folder / "rag.state").read_text("ascii")
        except FileNotFoundError:
            return "0"

    def _write_state(self, state: str) -> None:
        part = self._folder / "rag.state.part"
        part.write_text(state, "ascii")
        part.replace(self._folder / "rag.state")
        self._state = state

    def _busy(self, what: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the Chroma folder {self.location} {what}",
            "wait until it is done; or let a server share the folder, and set its host and port: "
            f"chroma run --path {self.location} --host 127.0.0.1",
        )


def _hint(reason: str) -> str:
    if re.search("(?i)disk I/O|is full|no space", reason):
        return "free some space there and run this again; what was written before is kept"
    if re.search("(?i)malformed|not a database|hnsw|pickle|finding id", reason):
        return "it is damaged: restore the folder, or delete the collection and ingest again"
    if "locked" in reason:
        return "close the other program that uses the folder, then run this again"
    return "check that the folder exists and may be written"


def _number(state: str) -> int:
    found = re.match(r"\d+", state)
    return int(found[0]) if found else 0
