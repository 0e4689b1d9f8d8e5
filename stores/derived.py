"""A file that is made from a `ChunkTable` and can be made again: an index, mapped by readers.

A stamp beside it says from which generation of the table it was made, and vouches for its bytes:
lost, foreign or damaged, it is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rag.errors import StoreUnavailable
from stores.sqlite import ChunkTable


class DerivedFile:
    """The file `name` in the folder of the table."""

    def __init__(self, table: ChunkTable, name: str) -> None:
        self.path = table.folder / name
        self._stamp_path = self.path.with_suffix(".json")
        self._table = table
        if self.stamp().get("generation", 0) > table.generation:
            # A table restored from a backup gives out numbers again that the file knows already.
            self._stamp_path.unlink(missing_ok=True)

    def stamp(self) -> dict[str, Any]:
        """What identifies the present file; `generation` is the table's. Empty for none."""
        try:
            stamp = json.loads(self._stamp_path.read_text("utf-8"))
            return stamp if isinstance(stamp["generation"], int) else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def is_sound(self, stamp: dict[str, Any]) -> bool:
        """Whether the file is the one that `stamp` describes, of this table. Raises OSError."""
        if not stamp or stamp["generation"] > self._table.generation:
            return False
        # The file is read whole only when something touched it.
        same = _identity(self.path) == stamp.get("file")
        return same or _sha256(self.path) == stamp.get("sha256")

    def save(self, write: Callable[[Path], None], generation: int) -> dict[str, Any]:
        """Replace the file by what `write` writes, atomically; returns its stamp.

        Empty when it could not be: another process writes, the disk is full. That costs only time.
        """
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            with self._table.exclusive():
                write(part)
                with part.open("rb") as file:
                    os.fsync(file.fileno())
                stamp = {"generation": generation, "sha256": _sha256(part), "file": _identity(part)}
                part.replace(self.path)
                part.write_text(json.dumps(stamp), "utf-8")
                part.replace(self._stamp_path)
                return stamp
        except (StoreUnavailable, RuntimeError, OSError):
            part.unlink(missing_ok=True)
            return {}


def _identity(path: Path) -> list[int]:
    """Changes whenever the file is written, so that it need not be read whole at every open."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
