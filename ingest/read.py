"""file -> text, page by page. Formats live in `ingest.readers`, one file each.

A reader is a function `read(data: bytes) -> Parsed`, found by the file's suffix. Formats with
parsers that hostile or broken files can hang or crash are read in worker processes with limits of
memory and time, so that such a file costs itself and nothing else.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from typing import Any

from ingest.clean import clean
from ingest.walk import is_regular
from rag import plugins
from rag.errors import RagError, UnreadableFile, UnsupportedFormat
from rag.types import Page, Scalar

READER_VERSION = 1
"""Raise it when a reader's text changes, so that stored documents are read again."""

_PLAIN = {".text", ".txt"}  # YAML in Markdown can be written to explode
_PLAIN_BYTES = 2**16  # up to which plain text cannot cost much, and need not wait for a worker
_NO_TITLE = re.compile(
    r"((word |pdf )?document|(powerpoint )?presentation|title|untitled)\W*\d*", re.IGNORECASE
)


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
        pages = tuple(Page(clean(page.text), page.number) for page in parsed.pages)
        title = _title(parsed.title) or path.stem
    except (RagError, MemoryError):
        raise
    except OSError as error:
        raise unreadable(path, error) from error
    except (Exception, SystemExit) as error:  # a parser met a file that nobody foresaw
        reason = f"{type(error).__name__}: {error}".strip(": ")[:200]
        raise UnreadableFile(f"cannot be parsed ({reason})", "repair or re-export it") from error
    kept = tuple(page for page in pages if page.text)
    if not kept:
        raise UnreadableFile("holds no text", "fill it, or name it in a .ragignore")
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
    if size == 0:  # or a file of /proc, which never says its size
        raise UnreadableFile("is empty", "delete it, or write it again")
    if size > limits.file_mb * 2**20:
        raise UnreadableFile(
            f"is larger than {limits.file_mb} MB", "split it, or raise ingest.max_file_mb"
        )


def read_all(
    paths: Iterable[Path], limits: Limits
) -> Iterator[tuple[Path, tuple[str, Parsed] | RagError]]:
    """Each path with its text or the error that says why not, in order, a few files ahead."""
    pool: Any = None
    paths = iter(paths)
    first = list(islice(paths, 4 * limits.workers))
    # No worker without work: one that still starts when the pool is stopped writes a trace.
    workers = limits.workers
    if len(first) < 4 * workers:
        workers = min(workers, max(1, sum(not _is_cheap(path) for path in first)))
    ahead: deque[tuple[Path, Future[tuple[str, Parsed]] | None]] = deque()
    try:
        for path in chain(first, paths):
            future = None
            if not _is_cheap(path):
                pool = pool or processes(workers, limits.memory_mb)
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


def unreadable(path: Path, error: OSError) -> UnreadableFile:
    """The error for a file that the system would not give."""
    return UnreadableFile(
        f"cannot be opened ({error.strerror or error})", "check its permissions and try again"
    )


def _title(text: str) -> str:
    """What a person would call a title in `text`; empty for a program's default."""
    title = " ".join(clean(text).split())
    title = re.sub(r"^(file:|[A-Za-z]:\\|\\\\|/).*[/\\]", "", title)
    title = re.sub(
        r"^Microsoft \w+ - |\.(docx?|html?|indd|odt|pdf|pptx?|rtf|tex|xlsx?)$", "", title
    )
    named = any(c.isalnum() for c in title) and not _NO_TITLE.fullmatch(title)
    return title[:200] if named else ""


def _is_cheap(path: Path) -> bool:
    try:
        return path.suffix.lower() in _PLAIN and path.stat().st_size <= _PLAIN_BYTES
    except OSError:  # to be told by `read`
        return True


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


def processes(workers: int, memory_mb: int) -> Any:
    """A pebble.ProcessPool for what hostile files can hang or crash; none outlives its parent."""
    from pebble import ProcessPool

    # Spawned, because forking a process with the threads of a model in it can deadlock.
    return ProcessPool(
        max_workers=workers,
        context=multiprocessing.get_context("spawn"),
        initializer=_prepare_worker,
        initargs=[memory_mb],
    )


def _prepare_worker(memory_mb: int) -> None:
    warnings.simplefilter("ignore")  # parsers warn their authors, not those who ingest
    Thread(target=_follow_parent, daemon=True).start()
    with suppress(ImportError, ValueError):  # Windows has no such limit; a stricter one stays
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_mb * 2**20, memory_mb * 2**20))


def _follow_parent() -> None:
    """Die with the parent, whatever this worker is doing and however the parent was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
