"""Questions with judgements for evaluations: folders that were put beside the service's data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from rag.errors import InputError, NotFound
from rag.evaluation.dataset import read_qrels, with_relevant
from rag.evaluation.files import one_of

DATASET = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"


@dataclass(frozen=True, slots=True)
class Listed:
    """A dataset. `queries` are those with a relevant document; None where that cannot be read.

    `corpus`: it has documents of its own, and need not be asked of a collection.
    """

    name: str
    queries: int | None
    corpus: bool


class Datasets:
    """The folders in BEIR's layout in a folder. Synchronous, for threads; it reads files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def listed(self) -> list[Listed]:
        """All of them, by name."""
        return sorted(self._listed(), key=lambda dataset: dataset.name)

    def folder_of(self, name: str) -> Path:
        """The folder of a dataset. Raises NotFound for a name that is not listed."""
        folder = self._folder / name
        if not re.fullmatch(DATASET, name) or not _whole(folder):
            raise NotFound(f"there is no dataset {name!r}", "see GET /datasets")
        return folder

    def _listed(self) -> Iterator[Listed]:
        if not self._folder.is_dir():
            return
        for folder in self._folder.iterdir():
            if re.fullmatch(DATASET, folder.name) and _whole(folder):
                state = (folder / "qrels/test.tsv").stat()
                queries = _queries(folder / "qrels/test.tsv", state.st_mtime_ns, state.st_size)
                yield Listed(folder.name, queries, has_corpus(folder))


def has_corpus(folder: Path) -> bool:
    """Whether a dataset has documents of its own."""
    return _holds(folder, "corpus.jsonl", "corpus.jsonl.gz")


def _whole(folder: Path) -> bool:
    return _holds(folder, "qrels/test.tsv") and _holds(folder, "queries.jsonl", "queries.jsonl.gz")


def _holds(folder: Path, *names: str) -> bool:
    try:
        one_of(folder, *names)
    except InputError:
        return False
    return True


@lru_cache(maxsize=256)
def _queries(qrels: Path, _written: int, _size: int) -> int | None:
    """The last two tell when to read the file again."""
    try:
        return len(with_relevant(read_qrels(qrels)[0]))
    except InputError:
        return None
