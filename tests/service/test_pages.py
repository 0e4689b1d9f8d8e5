"""Pages of PDFs as pictures: what is marked in them, whose they are, and hostile ones."""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pdfs
import pytest
from documents import taken_in
from http_client import client, problem
from PIL import Image
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfbase.pdfmetrics import stringWidth
from reportlab.pdfgen.canvas import Canvas
from service import SAMPLE, Service, ingest, new_key, sample_data, service

from rag.errors import NotFound, UnreadableFile
from rag.service.originals import Original
from rag.service.pictures import Pictures

MANUAL = SAMPLE / "manuals" / "hx-220-installation-manual.pdf"
NOTE = "The safe is behind the picture of the harbour."
SAFE = pdfs.page((60, 100, NOTE))
SLOW = pdfs.raw(
    b"BT /F 12 Tf 50 700 Td (The safe is behind the picture.) Tj ET /G gs 1 0 0 rg "
    + b"0 0 600 800 re f\n" * 20_000
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    data_dir = sample_data(tmp_path_factory.mktemp("pages") / "data")
    with service(data_dir, settings={"ingest.parse_seconds": 4}) as started:
        yield started
        assert "unexpected" not in started.stderr, started.stderr[-5000:]


@pytest.fixture
def api(running: Service) -> Iterator[httpx2.Client]:
    with client(running.url) as opened:
        yield opened


def uploaded(api: httpx2.Client, name: str, data: bytes | Path) -> str:
    """The path of a document that is taken in now."""
    return f"/documents/{taken_in(api, name, data)['document_id']}"


def picture(api: httpx2.Client, path: str, *marks: str, page: int = 1, found: int = 0) -> bytes:
    reply = api.get(f"{path}/pages/{page}", params={"mark": list(marks)})
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"] == "image/png"
    assert reply.headers["Cache-Control"] == "private, max-age=60"
    assert int(reply.headers["X-Marks-Found"]) == found
    return reply.content


def by_source(api: httpx2.Client, source: Path) -> Any:
    listed = api.get("/documents", params={"limit": 1000}).json()["documents"]
    return next(document for document in listed if document["source"] == str(source))


LEFT, RIGHT = (60, 330)
COLUMNS = [
    (LEFT, 100, "The left column begins here and its"),
    (LEFT, 118, "crew \ufb01les hold the repre-"),
    (LEFT, 136, "sentation of all skippers. It ends."),
    (RIGHT, 100, "Nothing of the right column is part"),
    (RIGHT, 118, "of that sentence, whatever stands in"),
    (RIGHT, 136, "the same line."),
]
CHINESE = [
    (60, 100, "潮汐仪器每一百二十天标定一次，逾期未标"),
    (60, 118, "定时不能写入。电池只能由受过培训的人员更"),
    (60, 136, "换。外壳不得打开。"),
]


@pytest.mark.parametrize(
    ("lines", "font", "mark", "marked"),
    [
        (COLUMNS, "Vera", "crew files  hold the representation\nof all skippers", [1, 2]),
        (COLUMNS, "Vera", "NOTHING of the right column is part of that sentence", [3, 4]),
        (CHINESE, "STSong-Light", "逾期未标定时不能写入。", [0, 1]),
        (CHINESE, "STSong-Light", "电池只能由受过培训的人员更换。", [1, 2]),
    ],
    ids=["hyphen and ligature", "second column", "wrapped", "wrapped again"],
)
def test_a_passage_is_marked_where_it_stands(
    api: httpx2.Client, lines: list[pdfs.Line], font: str, mark: str, marked: list[int]
) -> None:
    path = uploaded(api, "page.pdf", pdfs.page(*lines, font=font))
    difference, box = pdfs.marked(picture(api, path), picture(api, path, mark, found=1))
    assert box is not None
    for number, (x, y, text) in enumerate(lines):
        there = pdfs.share(difference, x, y, stringWidth(text, font, pdfs.SIZE))
        assert there > 0.1 if number in marked else there == 0, (number, text)
    ys = [lines[number][1] for number in marked]
    assert 2 * (min(ys) - 15) < box[1] and box[3] < 2 * (max(ys) + 8), "no higher, no lower"


@pytest.mark.parametrize(
    ("word", "y"),
    [
        ("files", 118),  # one letter draws two
        ("representation", 136),
        ("dual-encoder", 172),
        ("Cafe\u0301", 172),
    ],
)
def test_a_word_is_found_however_it_is_set(api: httpx2.Client, word: str, y: int) -> None:
    more = [(LEFT, 154, "and a dual-"), (LEFT, 172, "encoder stands there; a Café too.")]
    path = uploaded(api, "words.pdf", pdfs.page(*COLUMNS[:3], *more))
    _, box = pdfs.marked(picture(api, path), picture(api, path, word, found=1))
    assert box is not None
    assert box[1] < 2 * y - 6 < box[3] < 2 * (y + 8), "it ends in this line"


def test_exactly_the_words_are_marked(api: httpx2.Client) -> None:
    path = uploaded(api, "safe.pdf", SAFE)
    difference, box = pdfs.marked(
        picture(api, path), picture(api, path, "behind the picture", found=1)
    )
    before, words = (stringWidth(t, "Vera", 12) for t in ("The safe is ", "behind the picture"))
    assert box is not None
    assert abs(box[0] - 2 * (60 + before)) < 8 and abs(box[2] - 2 * (60 + before + words)) < 8
    assert pdfs.share(difference, 60 + before, 100, words) > 0.9


def test_what_is_not_there_as_a_whole_is_marked_in_parts_or_not_at_all(api: httpx2.Client) -> None:
    path = uploaded(api, "safe.pdf", SAFE)
    plain = picture(api, path)
    assert picture(api, path, "Nobody has ever written this anywhere.", "", " \n-") == plain
    half = "The safe is behind the — as is said — picture of the harbour."
    difference, _ = pdfs.marked(plain, picture(api, path, half, found=1))
    assert pdfs.share(difference, 60, 100, stringWidth(NOTE, "Vera", 12)) > 0.8
    lost = "Of all that is hidden, only little is behind the picture of a ship at sea in a storm."
    assert picture(api, path, lost) == plain


def test_several_are_counted_and_what_is_marked_twice_is_no_darker(api: httpx2.Client) -> None:
    path = uploaded(api, "safe.pdf", SAFE)
    once = picture(api, path, NOTE, found=1)
    assert picture(api, path, NOTE, "behind the picture", "not there at all", found=2) == once
    reply = api.get(f"{path}/pages/1", params={"mark": ["x"] * 21})
    problem(reply, 422, "invalid_request")
    problem(api.get(f"{path}/pages/1", params={"mark": "x" * 2001}), 422, "invalid_request")


def test_a_turned_page_is_marked_too(api: httpx2.Client) -> None:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, (pdfs.WIDTH, pdfs.HEIGHT))
    canvas.setPageRotation(90)  # what is above comes to the right
    canvas.drawString(60, 400, NOTE)
    canvas.save()
    path = uploaded(api, "turned.pdf", buffer.getvalue())
    _, box = pdfs.marked(picture(api, path), picture(api, path, NOTE, found=1))
    assert box is not None
    assert box[0] < 2 * 400 + 2 < box[2] < 2 * 420 and abs(box[1] - 2 * 60) < 8
    assert abs(box[3] - 2 * (60 + stringWidth(NOTE, "Helvetica", 12))) < 8


def test_each_page_is_its_own_and_no_other_is_there(running: Service, api: httpx2.Client) -> None:
    document = by_source(api, MANUAL)
    path = f"/documents/{document['id']}"
    pictures = [picture(api, path, page=n) for n in (1, 2)]
    assert pictures[0] != pictures[1]
    assert Image.open(io.BytesIO(pictures[0])).width == 1200
    for number in (10_000, 10_000_000):
        assert "page" in problem(api.get(f"{path}/pages/{number}"), 404, "not_found")["message"]
    problem(api.get(f"{path}/pages/0"), 422, "invalid_request")
    problem(api.get("/documents/0123456789abcdef/pages/1"), 404, "unknown_document")
    reply = api.get(f"{path}/pages/1", params={"collection": "none"})
    problem(reply, 404, "unknown_collection")
    note = uploaded(api, "note.txt", b"The safe is behind the picture.")
    assert "no PDF" in problem(api.get(f"{note}/pages/1"), 404, "not_found")["message"]


def test_a_file_of_this_machine_is_shown_only_while_it_is_the_one(
    running: Service, api: httpx2.Client, tmp_path: Path
) -> None:
    file = tmp_path / "safe.pdf"
    file.write_bytes(SAFE)
    ingest(running.data_dir, file, "--metadata", "team=ops")
    document = by_source(api, file)
    assert document["size"] == len(SAFE)
    path = f"/documents/{document['id']}"
    shown = picture(api, path, NOTE, found=1)

    def refused() -> dict[str, str]:
        return problem(api.get(f"{path}/pages/1"), 404, "not_found")

    os.utime(file, (0, 0))
    assert picture(api, path, NOTE, found=1) == shown
    file.write_bytes(pdfs.page((60, 100, "What nobody was to see.")))
    os.utime(file, (0, 0))
    assert "changed" in refused()["message"]
    os.utime(file, (time.time() + 60,) * 2)
    assert api.get(path).json()["size"] is None
    file.unlink()
    assert "not at hand" in refused()["message"]
    assert api.get(path).json()["size"] is None
    os.mkfifo(file)
    assert "not at hand" in refused()["message"]


def test_an_upload_is_told_with_its_size(api: httpx2.Client) -> None:
    path = uploaded(api, "sized.pdf", SAFE)
    assert api.get(path).json()["size"] == len(SAFE)
    listed = api.get("/documents", params={"limit": 1000}).json()["documents"]
    assert {d["source"]: d["size"] for d in listed}["upload/sized.pdf"] == len(SAFE)
    assert all(d["size"] for d in listed if d["source"].startswith(str(SAMPLE)))


def test_a_page_that_takes_too_long_costs_only_itself(api: httpx2.Client) -> None:
    good, slow = uploaded(api, "good.pdf", SAFE), uploaded(api, "slow.pdf", SLOW)
    reply = api.get(f"{slow}/pages/1")
    assert "longer than 4 seconds" in problem(reply, 422, "unreadable_file")["message"]
    picture(api, good, NOTE, found=1)
    assert api.get("/health/ready").status_code == 200


def test_a_tenant_sees_pages_of_its_own_documents_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    scopes = ("--scope", "read", "--scope", "write")
    keys = [new_key(data_dir, *scopes, "--tenant", f'{{"tenant": "{t}"}}') for t in ("a", "b")]
    reader = new_key(data_dir, "--scope", "read", "--collection", "other")
    with service(data_dir) as running, client(running.url, keys[0]) as api:
        path = uploaded(api, "safe.pdf", SAFE)
        picture(api, path, NOTE, found=1)
        with client(running.url, keys[1]) as other:
            problem(other.get(f"{path}/pages/1"), 404, "unknown_document")
        with client(running.url, reader) as limited:
            problem(limited.get(f"{path}/pages/1"), 403, "forbidden")
        with client(running.url) as stranger:
            problem(stranger.get(f"{path}/pages/1"), 401, "unauthenticated")
        # The kept file is gone, as after a restore of the store alone.
        for kept in (data_dir / "service" / "uploads" / "default").glob("*.pdf"):
            kept.unlink()
        said = problem(api.get(f"{path}/pages/1"), 404, "not_found")
        assert "not at hand" in said["message"] and "upload it again" in said["hint"]


# What only a file that went round the readers could be.


@pytest.fixture
def draw(tmp_path: Path) -> Iterator[Any]:
    pictures = Pictures(memory_mb=700, seconds=30)
    file = tmp_path / "page.pdf"

    def draw(data: bytes, number: int = 1, *marks: str) -> Any:
        file.write_bytes(data)
        return asyncio.run(pictures.draw(Original(file, "", None, 1), number, marks))

    yield draw
    pictures.close()


def locked() -> bytes:
    buffer = io.BytesIO()
    canvas = Canvas(buffer, encrypt=StandardEncryption("secret", "owner"))
    canvas.drawString(72, 700, NOTE)
    canvas.save()
    return buffer.getvalue()


def test_what_cannot_be_drawn_is_told_in_words_and_the_next_page_is_drawn(draw: Any) -> None:
    refused = {
        "is password-protected": locked(),
        "cannot be drawn": b"%PDF-1.7\nnothing of a PDF\n",
        "memory": pdfs.raw(b"BT /F 12 Tf 9 9 Td " + b"(the safe is here ) Tj " * 400_000 + b"ET"),
    }
    for said, data in refused.items():
        with pytest.raises(UnreadableFile, match=said):
            draw(data, 1, NOTE)
        assert draw(SAFE, 1, NOTE).found == 1
    with pytest.raises(NotFound, match="changed"):
        draw(SAFE + b"\n" * 2**20)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "page.pdf")
    pictures = Pictures(memory_mb=700, seconds=30)
    with pytest.raises(NotFound, match="no file"):
        asyncio.run(pictures.draw(Original(tmp_path / "page.pdf", "", None, 1), 1, []))
    pictures.close()


@pytest.mark.parametrize(
    ("media_box", "size"),
    [
        ((0, 0, 10**6, 10**6), (1200, 1200)),
        ((0, 0, 10, 10**6), (1, 3600)),
        ((0, 0, 10**6, 10), (1200, 1)),
        ((0, 0, 2**31 - 1, 2**31 - 1), (1200, 1200)),
    ],
)
def test_a_giant_page_is_drawn_small(
    draw: Any, media_box: tuple[int, ...], size: tuple[int, int]
) -> None:
    drawn = draw(pdfs.raw(b"BT /F 12 Tf 9 9 Td (Here) Tj ET", media_box=media_box), 1, "Here")
    assert Image.open(io.BytesIO(drawn.png)).size == size
