"""Files that come in: what they are called, what they are, where they are kept."""

from __future__ import annotations

import io
import os
import struct
import threading
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ingest.pipeline import document_id
from ingest.walk import walk
from rag import plugins
from rag.errors import InputError, RagError, StoreUnavailable, TooLarge, UnsupportedFormat
from rag.service.uploads import Upload, Uploads, source_of, stamped

CORPUS = Path(__file__).parents[2] / "sample_corpus"
PDF = next((CORPUS / "manuals").glob("*.pdf")).read_bytes()
DOCX = next((CORPUS / "policies").glob("*.docx")).read_bytes()


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "uploads", 1, plugins.names("reader"))


def keep(uploads: Uploads, name: str, data: bytes = b"text", **stamp: Any) -> Upload:
    return uploads.keep(io.BytesIO(data), name, "docs", stamp)


def files(tmp_path: Path) -> list[Path]:
    found = [path for path in tmp_path.rglob("*") if path.is_file()]
    return sorted(path for path in found if path.name != ".ragignore")


def archive(**entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for name, data in entries.items():
            made.writestr(name.replace("__", "/"), data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd.txt", "passwd.txt"),
        ("C:\\Users\\me\\报告 2024.docx", "报告 2024.docx"),
        ("..\\..\\x.md", "x.md"),
        ("...hidden.txt", "hidden.txt"),
        ("line\r\nbreak\t.txt", "line break .txt"),
        ("nul\0\x1b[31m.txt", "nul[31m.txt"),
        ("cod\u202egpj.txt", "codgpj.txt"),
        ("half\ud800.txt", "half.txt"),
        ("cafe\u0301.txt", "caf\u00e9.txt"),
        ("100%=a.txt", "100%=a.txt"),
    ],
)
def test_a_name_is_text_and_never_a_path(name: str, kept: str) -> None:
    assert source_of(name, {}) == f"upload/{kept}"


@pytest.mark.parametrize("name", ["", " ", "..", "../", ".", "\u200b", "a/b\\", "\n"])
def test_a_name_of_which_nothing_is_left_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="no name"):
        source_of(name, {})


def test_a_long_name_keeps_its_suffix_and_stays_its_own() -> None:
    one, two = (source_of("很长" * 300 + f"{n}.docx", {}).removeprefix("upload/") for n in (1, 2))
    assert one != two, "they would replace each other"
    for name in (one, two):
        assert 190 <= len(name.encode()) <= 200
        assert name.startswith("很长很长")
        assert name.endswith(".docx")
        assert unicodedata.is_normalized("NFC", name)
    assert len(source_of("x" * 300 + "." + "y" * 300, {}).encode()) <= 207


def test_what_belongs_to_one_tenant_has_another_source_than_anything_else() -> None:
    stamps: list[dict[str, Any]] = [
        {},
        {"tenant": "acme"},
        {"tenant": "globex"},
        {"tenant": "acme/x.txt"},
        {"tenant": "acme", "x": "y"},
        {"tenant": "acme/x=y"},
        {"tenant": 1},
        {"tenant": "1"},
        {"tenant": True},
        {"tenant": "true"},
        {"tenant:": "1"},
        {"tenant": "=1"},
        {"tenant": ".."},
        {"tenant": "a\ud800"},
        {"tenant": "a\\ud800"},
        {"tenant": "a%5Cud800"},
    ]
    sources = [source_of("x.txt", stamp) for stamp in stamps]
    assert len({document_id(source) for source in sources}) == len(stamps), sources
    assert sources[1] == "upload/tenant=acme/x.txt"
    assert source_of("x.txt", {"a": 1, "b": "租户"}) == "upload/a:=1/b=租户/x.txt"
    assert source_of("x.txt", {"b": "租户", "a": 1}) == source_of("x.txt", {"a": 1, "b": "租户"})
    assert all(
        len(source.split("/")) == 2 + len(s) for source, s in zip(sources, stamps, strict=True)
    )


def test_a_file_is_kept_under_ids(uploads: Uploads, tmp_path: Path) -> None:
    upload = keep(uploads, "../../../报告.TXT", "内容".encode(), tenant="acme")
    assert upload.source == "upload/tenant=acme/报告.TXT"
    assert upload.document_id == document_id(upload.source)
    assert files(tmp_path) == [upload.path]
    assert upload.path.parent == tmp_path / "uploads/docs/new"
    assert upload.path.name.startswith(upload.document_id)
    assert upload.path.suffix == ".txt"
    assert upload.path.read_text("utf-8") == "内容"


def test_the_newest_file_takes_the_place_of_the_older_once_its_job_is_done(
    uploads: Uploads, tmp_path: Path
) -> None:
    assert uploads.path_of("docs", document_id("upload/a.txt")) is None
    one = keep(uploads, "a.txt", b"one")
    uploads.settle(one)
    two = keep(uploads, "a.txt", b"two")
    found = uploads.path_of("docs", one.document_id)
    assert found is not None
    assert found.read_bytes() == b"one", "until it is done"
    assert uploads.file_of(two) == two.path
    uploads.settle(two)
    uploads.settle(two)
    assert uploads.path_of("docs", two.document_id) == found
    assert uploads.file_of(two) == found
    assert files(tmp_path) == [found]
    assert found.read_bytes() == b"two"


def test_a_deleted_file_is_gone_and_one_that_waits_stays(uploads: Uploads, tmp_path: Path) -> None:
    one = keep(uploads, "a.txt")
    uploads.settle(one)
    two = keep(uploads, "a.txt")
    uploads.delete("docs", one.document_id)
    uploads.delete("docs", one.document_id)
    assert uploads.path_of("docs", one.document_id) is None
    assert files(tmp_path) == [two.path]


@pytest.mark.parametrize("name", ["*", "../*", "", "x" * 16, "0" * 15, "0" * 16 + "\n"])
def test_an_id_that_is_none_leads_to_no_file(uploads: Uploads, name: str) -> None:
    uploads.settle(keep(uploads, "a.txt"))
    assert uploads.path_of("docs", name) is None


def test_a_collection_that_is_a_path_is_refused(uploads: Uploads, tmp_path: Path) -> None:
    for collection in ("../x", "", "a/b", "."):
        with pytest.raises(InputError, match="cannot name a collection"):
            uploads.keep(io.BytesIO(b"x"), "a.txt", collection, {})
        with pytest.raises(InputError, match="cannot name a collection"):
            uploads.path_of(collection, "0" * 16)
    assert files(tmp_path) == []


def bomb() -> bytes:
    """An archive that declares two entries of 600 MB each."""
    data = archive(word__document_xml=b"x", a=b"y").replace(b"document_xml", b"document.xml")
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data = data[: at + 24] + struct.pack("<I", 600 * 2**20) + data[at + 28 :]
    return data


def crowd() -> bytes:
    """A .docx with 10,001 entries."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as made:
        for number in range(10_000):
            made.writestr(f"{number}", b"")
        made.writestr("word/document.xml", b"")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "error", "says"),
    [
        ("virus.exe", b"MZ", UnsupportedFormat, "no reader for format '.exe'; formats read are "),
        ("README", b"x", UnsupportedFormat, "a file without a suffix"),
        ("a.pdf.exe", PDF, UnsupportedFormat, "'.exe'"),
        ("virus.pdf", b"MZ\x90\0" + b"\0" * 2000, UnsupportedFormat, "is no PDF"),
        ("virus.pdf", b"MZ\x90\0%PDF-1.7", UnsupportedFormat, "is no PDF"),
        ("late.pdf", b" " * 1100 + PDF, UnsupportedFormat, "is no PDF"),
        ("page.pdf", b"<html>", UnsupportedFormat, "is no PDF"),
        ("virus.docx", b"MZ\x90\0", UnsupportedFormat, "is no .docx"),
        ("archive.docx", archive(a=b"x"), UnsupportedFormat, "an archive, but no .docx"),
        ("sfx.docx", b"MZ" + DOCX, UnsupportedFormat, "is no .docx"),
        ("cut.docx", DOCX[:-30], UnsupportedFormat, "is no .docx, or a broken one"),
        ("old.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", UnsupportedFormat, "without a password"),
        ("bomb.docx", bomb(), UnsupportedFormat, "unpacks to more than 1 GB"),
        ("crowd.docx", crowd(), UnsupportedFormat, "is no .docx"),
        ("virus.txt", b"MZ\x90\0", UnsupportedFormat, "is no text"),
        ("late.md", b"x" * 500_000 + b"\0", UnsupportedFormat, "is no text"),
        ("picture.html", b"\x89PNG\r\n\x1a\n\0\0", UnsupportedFormat, "is no text"),
        ("empty.pdf", b"", InputError, "is empty"),
        ("big.txt", b"x" * (2**20 + 1), TooLarge, "over 1 MB"),
    ],
)
def test_what_is_refused_leaves_nothing(
    uploads: Uploads, tmp_path: Path, name: str, data: bytes, error: type[RagError], says: str
) -> None:
    with pytest.raises(error) as caught:
        keep(uploads, name, data)
    assert says in str(caught.value)
    assert caught.value.hint
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.PDF", PDF),
        ("a.pdf", b"\r\n" + PDF),
        ("a.docx", DOCX),
        ("a.docx", archive(word__document2_xml=b"").replace(b"document2_xml", b"document2.xml")),
        ("a.txt", "你好".encode("utf-16")),
        ("a.txt", "你好".encode("gb18030")),  # its reader says how to convert it
        ("a.html", b"<p>text"),
        ("a.txt", b"x" * 2**20),
    ],
)
def test_what_fits_its_name_is_kept(uploads: Uploads, name: str, data: bytes) -> None:
    assert keep(uploads, name, data).path.read_bytes() == data


def test_a_broken_archive_is_refused_wherever_it_is_broken(uploads: Uploads) -> None:
    end = DOCX.rfind(b"PK\x05\x06")
    for at in range(end, len(DOCX)):
        for value in (0, 0x7F, 0xFF):
            broken = DOCX[:at] + bytes([value]) + DOCX[at + 1 :]
            try:
                keep(uploads, "a.docx", broken)
            except UnsupportedFormat:
                continue


def test_a_file_over_the_limit_is_not_read_to_its_end(uploads: Uploads, tmp_path: Path) -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return b"x" * size

    stream: Any = Endless()
    with pytest.raises(TooLarge):
        uploads.keep(stream, "a.txt", "docs", {})
    assert stream.given <= 3 * 2**20
    assert files(tmp_path) == []


def test_a_client_that_breaks_off_leaves_nothing(uploads: Uploads, tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    stream: Any = Broken()
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        uploads.keep(stream, "a.txt", "docs", {})
    assert files(tmp_path) == []


def test_ingesting_a_folder_around_them_takes_in_no_upload(
    uploads: Uploads, tmp_path: Path
) -> None:
    upload = keep(uploads, "a.txt")
    uploads.settle(upload)
    keep(uploads, "b.txt")
    (tmp_path / "own.txt").write_text("own")
    found = walk([tmp_path])
    assert found.files == [tmp_path / "own.txt"]
    assert not found.covers(upload.source), "it would be pruned"
    kept = uploads.path_of("docs", upload.document_id)
    assert kept is not None
    assert walk([kept]).files == [kept], "its own job reads it"


def test_what_dead_processes_left_is_swept(uploads: Uploads, tmp_path: Path) -> None:
    old, wanted, young, settled = (keep(uploads, f"{n}.txt") for n in range(4))
    part = old.path.with_name(".part")
    part.write_bytes(b"x")
    uploads.settle(settled)
    place = uploads.path_of("docs", settled.document_id)
    assert place is not None
    for path in (old.path, wanted.path, part, place):
        os.utime(path, (time.time() - 7200,) * 2)
    uploads.sweep({wanted.path})
    assert files(tmp_path) == sorted([wanted.path, young.path, place])


def test_many_at_once(uploads: Uploads, tmp_path: Path) -> None:
    kept: list[Upload] = []
    threads = [
        threading.Thread(target=lambda n=n: kept.append(keep(uploads, f"{n % 5}.txt", b"%d" % n)))
        for n in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({upload.path for upload in kept}) == 40
    assert len({upload.document_id for upload in kept}) == 5
    assert len(files(tmp_path)) == 40


def test_the_tenant_stands_over_the_metadata() -> None:
    assert stamped({"lang": "en", "tenant": "globex"}, {"tenant": "acme"}) == {
        "lang": "en",
        "tenant": "acme",
    }
    for wrong in ({"source": "x"}, {"a": [1]}, {"$or": 1}, {"a": float("nan")}, {"a": "x" * 3000}):
        with pytest.raises(InputError):
            stamped(wrong, {})
    with pytest.raises(InputError, match="over 16 KB"):
        stamped({f"k{n}": "x" * 1000 for n in range(20)}, {})
