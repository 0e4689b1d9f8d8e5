"""The documents of a folder in BEIR's layout."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.clean import clean
from rag.errors import InputError
from rag.evaluation.files import counted, one_of, records
from rag.filters import check_metadata
from rag.types import Document, Page, Scalar


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of a BEIR folder, read from the file each time they are asked for."""

    name: str
    path: Path
    digest: str
    ids: frozenset[str]
    remarks: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path) -> Corpus:
        """The corpus of the folder, read through. InputError if it is malformed or empty."""
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}", "name one with a corpus.jsonl in it")
        path = one_of(folder, "corpus.jsonl", "corpus.jsonl.gz")
        times: Counter[str] = Counter()
        empty = 0
        for _, record, name, text in records(path):
            times[name] += 1
            empty += not (text.strip() or str(record.get("title") or "").strip())
        if not times:
            raise InputError(f"{path} holds no documents", "name a folder with a corpus")
        remarks = counted(
            {
                "documents that repeat an id (the first counts)": times.total() - len(times),
                "documents without text (never found)": empty,
            }
        )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = folder.resolve().name
        return cls(name, path, digest, frozenset(times), remarks)

    def documents(self) -> Iterator[Document]:
        """Every document, its title before its text."""
        seen: set[str] = set()
        for _, record, name, text in records(self.path):
            if name in seen:
                continue
            seen.add(name)
            title = str(record.get("title") or "").strip()
            # A line of its own, not a paragraph: the splitter would make a chunk of the title.
            whole = text if text.startswith(title) else f"{title}\n{text}"
            yield Document(
                id=name,
                source=f"beir/{self.name}/{name}",
                version="",
                title=title,
                pages=(Page(clean(whole)),),
                metadata=_flat(record.get("metadata")),
            )

    def collection(self, *settings: object) -> str:
        """The name of the collection that holds this corpus, indexed with these settings."""
        key = hashlib.sha256(repr((self.digest, *settings)).encode()).hexdigest()[:12]
        plain = re.sub("[^a-z0-9]+", "-", self.name.lower()).strip("-")[:40]
        return f"eval-{plain or 'dataset'}-{key}"


def _flat(metadata: object) -> dict[str, Scalar]:
    """What a store takes of a document's metadata."""
    flat = {}
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        with suppress(InputError):
            check_metadata({key: value})
            flat[key] = value
    return flat
