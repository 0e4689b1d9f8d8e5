"""What uploaded files are called, and whether they are what their names say.

Only what can be told without parsing: a file is parsed later, in a process with limits.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from rag.errors import InputError, UnsupportedFormat

_NAME_BYTES = 200
_SUFFIX_LENGTH = 20
_UNSEEN = {"Cc", "Cf", "Cs"}  # controls, marks that turn the direction of text, half characters
_TEXTS = {".htm", ".html", ".markdown", ".md", ".text", ".txt"}
_PDF_WITHIN = 1024  # bytes, as PDF viewers look for it
_PROGRAMS = (b"MZ", b"\x7fELF")
_OLE = b"\xd0\xcf\x11\xe0"  # begins old and encrypted Office files
_ZIP = b"PK\x03\x04"
_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_ENTRIES = 10_000  # a .docx has dozens
_UNPACKED = 2**30  # bytes, as the reader's
_SMALL, _DENSEST = 2**26, 100  # text packs to a tenth; what packs to a thousandth is a bomb
_BLOCK = 2**20


def clean_name(name: str) -> str:
    """The last part of a client's file name as one line that can be shown, in NFC.

    Up to 200 bytes with its suffix; a cut name ends in a digest, so that two stay two. Raises
    InputError where nothing is left.
    """
    base = re.split(r"[/\\]", name)[-1]
    seen = (c for c in base if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    plain = unicodedata.normalize("NFC", " ".join("".join(seen).split())).lstrip(". ")
    if not plain:
        raise InputError("the file has no name", "send one, such as report.pdf")
    whole = plain.encode()
    if len(whole) <= _NAME_BYTES:
        return plain
    suffix = PurePosixPath(plain).suffix
    if len(suffix) > _SUFFIX_LENGTH:
        suffix = ""
    end = f"~{hashlib.sha256(whole).hexdigest()[:8]}{suffix}"
    stem = plain.removesuffix(suffix).encode()[: _NAME_BYTES - len(end.encode())]
    return stem.decode(errors="ignore") + end


def suffix_of(name: str, known: Sequence[str]) -> str:
    """The suffix in small letters. Raises UnsupportedFormat unless it is one of the known."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in known:
        what = f"format {suffix!r}" if suffix else "a file without a suffix"
        raise UnsupportedFormat(f"no reader for {what}", f"formats read are {' '.join(known)}")
    return suffix


def check_content(path: Path, suffix: str) -> None:
    """Raise UnsupportedFormat if the file is not what its suffix says; InputError if it is empty.

    A format that only a third party's reader knows is left to it.
    """
    with path.open("rb") as file:
        head = file.read(_PDF_WITHIN)
    if not head:
        raise InputError("the file is empty", "send one that holds something")
    if suffix == ".pdf" and (b"%PDF-" not in head or head.startswith(_PROGRAMS)):
        raise _other("is no PDF")
    if suffix == ".docx":
        _check_docx(path, head)
    if suffix in _TEXTS and _holds_nul(path, head):
        raise _other("is no text")


def _check_docx(path: Path, head: bytes) -> None:
    if head.startswith(_OLE):
        raise _other("is password-protected or an old .doc", "save it as .docx without a password")
    # Counted before zipfile makes an object of each.
    if not head.startswith(_ZIP) or _entries(path) > _ZIP_ENTRIES:
        raise _other("is no .docx")
    try:
        with zipfile.ZipFile(path) as archive:
            items = archive.infolist()
    except Exception as error:  # it raises many kinds on broken files
        raise _other("is no .docx, or a broken one") from error
    # Word on the web calls its main part word/document2.xml.
    if not any(re.fullmatch(r"word/document\d*\.xml", item.filename) for item in items):
        raise _other("is an archive, but no .docx")
    unpacked = sum(item.file_size for item in items)
    if unpacked > _UNPACKED:
        raise _other("unpacks to more than 1 GB", "remove its pictures")
    if unpacked > max(_SMALL, _DENSEST * path.stat().st_size):
        raise _other("unpacks to far more than text does", "save it anew")


def _other(what: str, hint: str = "send it under the name of its own format") -> UnsupportedFormat:
    return UnsupportedFormat(f"the file {what}", hint)


def _entries(path: Path) -> int:
    """At least as many as the archive has files, counted up to just over the limit."""
    count, at = 0, -1
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        while count <= _ZIP_ENTRIES and (at := data.find(_ZIP_ENTRY, at + 1)) >= 0:
            count += 1
    return count


def _holds_nul(path: Path, head: bytes) -> bool:
    from ingest.readers.text import byte_order_mark

    if (byte_order_mark(head) or "utf-8").startswith(("utf-16", "utf-32")):
        return False
    with path.open("rb") as file:
        return any(b"\0" in block for block in iter(lambda: file.read(_BLOCK), b""))
