"""file -> text, page by page. Formats live in `ingest.readers`, one file each.

A reader is a function `read(data: bytes) -> Parsed`, found by the file's suffix. Formats with
parsers that hostile or broken files can hang or crash are read in worker processes with limits of
memory and time, so that such a file costs itself and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.walk import is_regular
from rag import plugins
from rag.errors import RagError, UnreadableFile, UnsupportedFormat
from rag.types import Page, Scalar

READER_VERSION = 1
"""Raise it when a reader's text changes, so that stored documents are read again."""

_IN_PROCESS = {".md", ".markdown", ".text", ".txt"}
# Tab and newline stay. Soft hyphens and zero-width marks only hide words from a search.
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u200b\ufeff\ud800-\udfff]")
_LIGATURES = {0xFB00 + i: s for i, s in enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"))}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a reader gets out of a file. An empty `title` means that the file names none."""

    pages: tuple[Page, ...]
    title: str = ""
    metadata: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one file may cost: megabytes on disk, seconds and megabytes of memory to parse."""

    file_mb: int = 200
    seconds: float = 120.0
    memory_mb: int = 4096
    workers: int = 2


def digest(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path) -> tuple[str, Parsed]:
    """(digest, text) of one file. Raises UnreadableFile or UnsupportedFormat."""
    reader = plugins.load("reader", path.suffix.lower())
    try:
        data = path.read_bytes()
        parsed: Parsed = reader(data)
    except (RagError, MemoryError):
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # a foreign parser met a file that its authors did not foresee
        reason = f"{type(error).__name__}: {error}".strip(": ")[:200]
        raise UnreadableFile(f"cannot be parsed ({reason})", "repair or re-export it") from error
    pages = [Page(clean(page.text), page.number) for page in parsed.pages]
    if not any(page.text for page in pages):
        raise UnreadableFile("holds no text", "if it is a scan, run OCR on it first (ocrmypdf)")
    title = " ".join(clean(parsed.title).split())[:200] or path.stem
    kept = tuple(page for page in pages if page.text)
    return hashlib.sha256(data).hexdigest(), Parsed(kept, title, parsed.metadata)


def check(path: Path, limits: Limits) -> None:
    """Raise UnsupportedFormat or UnreadableFile for what need not be opened to be refused."""
    if path.suffix.lower() not in plugins.names("reader"):
        what = f"format {path.suffix!r}" if path.suffix else "a file without a suffix"
        known = " ".join(plugins.names("reader"))
        raise UnsupportedFormat(f"no reader for {what}", f"formats read are {known}")
    try:
        os.fsencode(path).decode()
        if not is_regular(path):
            raise UnreadableFile("is not a regular file", "name a file or a folder")
        size = path.stat().st_size
    except UnicodeDecodeError as error:
        raise UnreadableFile("has a name that is not UTF-8", "rename it") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if size > limits.file_mb * 2**20:
        raise UnreadableFile(
            f"is larger than {limits.file_mb} MB", "split it, or raise ingest.max_file_mb"
        )


def read_all(
    paths: Iterable[Path], limits: Limits
) -> Iterator[tuple[Path, tuple[str, Parsed] | RagError]]:
    """Each path with its text or the error that says why not, in order, a few files ahead."""
    pool: Any = None
    ahead: deque[tuple[Path, Future[tuple[str, Parsed]] | None]] = deque()
    try:
        for path in paths:
            future = None
            if path.suffix.lower() not in _IN_PROCESS:
                pool = pool or _pool(limits)
                future = pool.schedule(read, args=[path], timeout=limits.seconds)
            ahead.append((path, future))
            if len(ahead) > 4 * limits.workers:
                yield _result(*ahead.popleft(), limits)
        while ahead:
            yield _result(*ahead.popleft(), limits)
    finally:
        if pool is not None:
            pool.stop()
            pool.join()


def clean(text: str) -> str:
    """Text in NFC with ligatures spelt out, invisible characters gone, blank lines single."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " ")
    text = _INVISIBLE.sub("", text).translate(_LIGATURES)
    text = unicodedata.normalize("NFC", text)
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", lines).strip()


def unreadable(path: Path, error: OSError) -> UnreadableFile:
    """The error for a file that the system would not give."""
    return UnreadableFile(
        f"cannot be opened ({error.strerror or error})", "check its permissions and try again"
    )


def _result(
    path: Path, future: Future[tuple[str, Parsed]] | None, limits: Limits
) -> tuple[Path, tuple[str, Parsed] | RagError]:
    from pebble import ProcessExpired

    try:
        return path, read(path) if future is None else future.result()
    except RagError as error:
        return path, error
    except TimeoutError:
        reason = f"takes longer than {limits.seconds:g} seconds to parse"
        return path, UnreadableFile(reason, "re-export it, or raise ingest.parse_seconds")
    except MemoryError:
        reason = f"needs more than {limits.memory_mb} MB of memory to parse"
        return path, UnreadableFile(reason, "split it, or raise ingest.parse_memory_mb")
    except ProcessExpired as error:
        reason = f"crashed its parser (exit {error.exitcode})"
        return path, UnreadableFile(reason, "repair or re-export it")


def _pool(limits: Limits) -> Any:
    from multiprocessing import get_context

    from pebble import ProcessPool

    # Spawned, because forking a process with the threads of a model in it can deadlock.
    return ProcessPool(
        max_workers=limits.workers,
        context=get_context("spawn"),
        initializer=_limit_memory,
        initargs=[limits.memory_mb],
    )


def _limit_memory(megabytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * 2**20, megabytes * 2**20))
