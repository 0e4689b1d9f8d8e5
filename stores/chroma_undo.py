"""What makes a folder of Chroma survive kill -9.

Chroma 1.5 saves an index in place, every 1,000 records: the vectors, then the map of ids, then,
in SQLite, up to which record it goes. Half of the kills during such a save left a collection that
could not be opened any more. SQLite keeps the records until the index with them is saved, so a
copy of the index from before is as good: the engine applies the rest when it opens.
"""

from __future__ import annotations

import pickletools
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import UUID

_MAP = "index_metadata.pickle"  # written last


class Undo:
    """Copies of the indexes in `folder`, from before the write that is under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copies = folder / "rag.undo"
        self._owners: dict[str, str] = {}

    def look(self) -> None:
        """Note which index is whose. Only while no engine is open: this takes SQLite's locks.

        The indexes of nobody are deleted; Chroma leaves them behind when a collection goes.
        """
        database = self._folder / "chroma.sqlite3"
        if not database.exists():
            return
        there = [path for path in self._folder.iterdir() if _is_index(path)]  # each has a row
        with closing(sqlite3.connect(database)) as db:
            self._owners = dict(
                db.execute("SELECT id, collection FROM segments WHERE scope = 'VECTOR'")
            )
        for index in there:
            if index.name not in self._owners:
                shutil.rmtree(index, ignore_errors=True)

    def size(self, collection: str) -> int:
        """How many bytes `save` would copy."""
        files = (file for index in self._to_copy(collection) for file in index.iterdir())
        return sum(file.stat().st_size for file in files)

    def save(self, collection: str) -> None:
        """Copy the index of `collection`, unless it is the one that was copied before."""
        copies = self._copies / collection
        copies.mkdir(parents=True, exist_ok=True)
        for index in self._to_copy(collection):
            _replace(copies / index.name, by=index)

    def _to_copy(self, collection: str) -> list[Path]:
        found = []
        for index in filter(_is_index, self._folder.iterdir()):
            copy = self._copies / collection / index.name
            # One that is not known yet is new, and may be the collection's.
            if self._owners.get(index.name, collection) == collection and not (
                copy.exists() and _stamp(copy) == _stamp(index)
            ):
                found.append(index)
        return found

    def restore(self) -> None:
        """Put back each index that was not saved whole. Only while no engine is open."""
        for name, collection in self._owners.items():
            index, copies = self._folder / name, self._copies / collection
            copy = copies / name
            saved = _stamp(copy) != _stamp(index) and _is_whole(index / _MAP)
            if copies.exists() and not saved:
                if copy.exists():
                    _replace(index, by=copy)
                else:
                    shutil.rmtree(index, ignore_errors=True)

    def forget(self) -> None:
        """Delete the copies: nothing is under way."""
        shutil.rmtree(self._copies, ignore_errors=True)


def _is_index(path: Path) -> bool:
    try:
        UUID(path.name)
    except ValueError:
        return False
    return path.is_dir()


def _replace(folder: Path, by: Path) -> None:
    """Make `folder` like `by`; no crash leaves half of it under this name."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(by, part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _stamp(index: Path) -> tuple[int, int] | None:
    try:
        status = (index / _MAP).stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_whole(pickle: Path) -> bool:
    """Whether the pickle has its end. It is read, not loaded: nothing in it is run."""
    try:
        for _ in pickletools.genops(pickle.read_bytes()):
            pass
    except (OSError, ValueError):
        return False
    return True
