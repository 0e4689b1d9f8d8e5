"""Lines of the log: JSON, one each, whatever happens, and nothing of persons in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rag.service import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """The logging of the other tests, and of pytest, as it was."""
    root = logging.root
    kept, level, shown = root.handlers[:], root.level, warnings.showwarning
    yield
    root.handlers[:] = kept
    root.setLevel(level)
    logging.captureWarnings(False)
    warnings.showwarning = shown
    structlog.reset_defaults()


def configured(level: str = "info", *, texts: bool = False) -> Lines:
    """Configure logging; what is returned gives the lines since it was called last."""
    stream = io.StringIO()
    logs.configure(level, texts=texts, stream=stream)

    def lines() -> list[dict[str, Any]]:
        written = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        assert written == "" or written.endswith("\n")
        assert written.isascii()
        return [json.loads(line, parse_constant=pytest.fail) for line in written.splitlines()]

    return lines


def test_a_request_is_one_line_with_all_that_matters() -> None:
    lines = configured()
    with logs.request("5f0c", trace_id="77"):
        logs.access(
            "POST",
            "/query",
            200,
            12.3456,
            caller="key-1",
            collection="handbook",
            degraded=("cache",),
            cached=True,
        )
    logs.access("GET", "unknown", 404, 0.1, failure="http_404")
    first, second = lines()
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "route": "/query",
        "status": 200,
        "ms": 12.35,
        "caller": "key-1",
        "collection": "handbook",
        "degraded": ["cache"],
        "cached": True,
        "request_id": "5f0c",
        "trace_id": "77",
    }
    assert second["failure"] == "http_404"
    assert not {"request_id", "caller", "collection", "degraded", "cached"} & set(second)


async def test_requests_of_one_loop_keep_their_own_id() -> None:
    lines = configured()

    async def work(name: str) -> None:
        with logs.request(name):
            await asyncio.sleep(0)
            await asyncio.to_thread(structlog.get_logger().info, "step", mine=name)

    await asyncio.gather(*(work(str(n)) for n in range(20)))
    found = lines()
    assert len(found) == 20
    assert all(line["request_id"] == line["mine"] for line in found)


def test_questions_and_documents_stay_out_unless_asked_for() -> None:
    lines = configured()
    structlog.get_logger().info("asked", question="Who?", asked={"text": "t", "k": 5})
    assert "Who?" not in json.dumps(line := lines()[0])
    assert line["asked"] == {"k": 5}
    lines = configured(texts=True)
    structlog.get_logger().info("asked", question="Who has 13812345678?", k=5)
    assert lines()[0]["question"] == "Who has [phone]?"


def test_every_value_is_redacted() -> None:
    lines = configured()
    structlog.get_logger().info(
        "mail to a@example.com",
        number=13812345678,
        time_ns=1732200000123456789,
        nested={"a@example.com": ["4111 1111 1111 1111", ("078-05-1120",)]},
        url="redis://:secret@cache:6379",
    )
    line = lines()[0]
    assert line["event"] == "mail to [mail]"
    assert line["number"] == "[phone]"
    assert line["time_ns"] == 1732200000123456789
    assert line["nested"] == {"[mail]": ["[card]", ["[id]"]]}
    assert line["url"] == "redis://[login]@cache:6379"


def test_an_exception_is_one_line_with_a_redacted_trace() -> None:
    lines = configured()
    try:
        raise ValueError("no such user a@example.com")
    except ValueError:
        logs.failed(part="store")
    [line] = lines()
    assert (line["event"], line["level"], line["part"]) == ("unexpected", "error", "store")
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: no such user [mail]")


def test_what_pydantic_quotes_of_a_request_is_a_text() -> None:
    class Body(BaseModel):
        k: int

    asked = "-".join(["a", "secret", "question"])  # the trace shows this line

    def trace(lines: Lines) -> str:
        try:
            Body.model_validate({"k": asked})
        except ValidationError:
            logs.failed()
        return str(lines()[0]["exception"])

    assert asked not in trace(configured())
    assert asked in trace(configured(texts=True))


def test_lines_of_libraries_and_warnings_go_the_same_way() -> None:
    lines = configured()
    logging.getLogger("uvicorn.error").info("started %d workers", 2)
    logging.getLogger("some.library").warning("slow\nforged line")
    logging.getLogger("some.library").info("not this")
    logging.getLogger("some.library").error("%d", "no number")
    logging.getLogger("some.library").log(35, "between")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    logs.say("warning: it is slow")
    found = lines()
    assert [(line["level"], line.get("logger")) for line in found] == [
        ("info", "uvicorn.error"),
        ("warning", "some.library"),
        ("error", "some.library"),
        ("warning", "some.library"),
        ("warning", "py.warnings"),
        ("warning", None),
    ]
    assert found[0]["event"] == "started 2 workers"
    assert found[1]["event"] == "slow\nforged line"


def test_levels_below_are_not_written_at_all() -> None:
    lines = configured("warning")
    logs.access("GET", "/search", 200, 1.0)
    logs.access("GET", "/search", 503, 1.0)
    logging.getLogger("uvicorn.error").info("started")
    assert [line["status"] for line in lines()] == [503]


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_no_json_can_hold_is_written_as_text() -> None:
    lines = configured()
    deep: list[Any] = []
    deep.append(deep)
    structlog.get_logger().info(
        "odd",
        hostile=Hostile(),
        deep=deep,
        many=list(range(10**5)),
        huge=10**5000,
        nan=float("nan"),
        raw=b"\xff",
        keys={Hostile(): 1, 2: 3},
        surrogate="\ud800",
        long="x" * 10**6,
        control="a\r\n\x1b[31m\x9b\u2028b",
    )
    [line] = lines()
    assert line["hostile"] == "<Hostile>"
    assert line["keys"] == {"<Hostile>": 1, "2": 3}
    assert line["nan"] == "nan"
    assert line["surrogate"] == "\ud800"
    assert line["control"] == "a\r\n\x1b[31m\x9b\u2028b"
    assert len(line["many"]) == 100
    assert len(line["long"]) < 20_000


def test_a_number_at_the_cut_of_a_long_text_is_not_shown_in_part() -> None:
    lines = configured()
    for shift in range(0, 40, 3):
        padding = "x" * (8192 - shift) + " 4111111111111111 " + "y" * 20_000
        structlog.get_logger().info("long", value=padding)
    assert "4111" not in json.dumps(lines())


class Mean(dict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no")


def test_a_line_that_cannot_be_made_is_told_of() -> None:
    lines = configured()
    structlog.get_logger().info("gone to a@example.com", values=Mean(a=1))
    [line] = lines()
    assert line == {"level": "info", "event": "gone to [mail]", "lost": "no"}


def test_a_closed_stream_breaks_nothing() -> None:
    stream = io.StringIO()
    logs.configure("info", stream=stream)
    stream.close()
    logs.access("GET", "/search", 200, 1.0)
    logging.getLogger("uvicorn.error").error("gone")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=())), _JSON)
def test_any_event_and_value_is_one_line(event: str, value: object) -> None:
    lines = configured()
    structlog.get_logger().info(event, value=value)
    assert len(lines()) == 1


def test_a_line_takes_tens_of_microseconds(tmp_path: Any) -> None:
    with (tmp_path / "log").open("w") as stream:
        logs.configure("info", stream=stream)

        def once() -> float:
            started = time.perf_counter()
            for n in range(1000):
                with logs.request(f"5f0c3c0e9a0b4f6fb1f2a3c4d5{n:06}"):
                    logs.access("POST", "/query", 200, 12.3, caller="key-1", collection="handbook")
            return (time.thread_time() - started) / 1000

        assert min(once() for _ in range(5)) < 60e-6  # about 35
