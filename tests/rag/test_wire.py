"""Recorded answers of servers with OpenAI's API, replayed over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import RECORDINGS, RawServer, Reply, answer, recording, stream

from rag.errors import ContextTooLong, ModelError, ModelUnavailable
from rag.generators.openai import OpenAIGenerator
from rag.generators.wire import Reading
from rag.types import Prompt, Usage

MESSAGES = (
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How much does the tank hold?"},
)
WHOLE = stream({"choices": [{"delta": {"content": "5 l."}, "finish_reason": "stop"}]}, "[DONE]")


def generator(server: RawServer, **settings: Any) -> OpenAIGenerator:
    made = OpenAIGenerator(url=server.url, **{"model": "m", "first_token_s": 5.0, **settings})
    made.backoff_s = 0.01
    return made


def run(made: OpenAIGenerator) -> tuple[str, Usage]:
    """The whole text and the usage, which comes once, at the end."""

    async def collect() -> list[str | Usage]:
        return [piece async for piece in made.stream(Prompt("q", (), MESSAGES))]

    *pieces, usage = asyncio.run(collect())
    assert isinstance(usage, Usage)
    return "".join(piece for piece in pieces if isinstance(piece, str)), usage


def test_each_recording_says_whether_it_is_one() -> None:
    for path in RECORDINGS.glob("*.http"):
        said = path.read_text("utf-8").splitlines()[0]
        assert re.fullmatch(r"# (Recorded from|Not recorded: written after) .+\.", said), path


# --- whole answers


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("vllm-answer", Usage(24, 9)),
        ("vllm-thinking", Usage(24, 21)),
        ("tgi-answer", Usage(42, 7)),
        ("tgi-2.0-answer", Usage()),
        ("ollama-answer", Usage(42, 7)),
        ("ollama-0.3-answer", Usage()),
        ("ollama-thinking", Usage(42, 9)),
        ("trtllm-answer", Usage(42, 7)),
    ],
)
def test_recorded_answers(name: str, usage: Usage) -> None:
    with RawServer(Reply(recording(name))) as server:
        assert run(generator(server)) == ("The tank holds 5 l.", usage)


@given(st.data())
@pytest.mark.parametrize("name", ["vllm-thinking", "tgi-2.0-answer", "trtllm-answer"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_answer_is_the_same_however_it_is_cut(name: str, end: str, data: st.DataObject) -> None:
    body = (RECORDINGS / f"{name}.http").read_text().partition("\n\n")[2].replace("\n", end)
    raw = body.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(raw) - 1), max_size=40)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    reading = Reading("u")
    text = "".join(part for piece in [*pieces, b""] for part in reading.feed(piece))
    assert text == "The tank holds 5 l."
    reading.check("m")


def test_an_answer_that_is_cut_off_says_so() -> None:
    with RawServer(Reply(recording("vllm-length"))) as server:
        assert run(generator(server)) == ("The tank holds", Usage(24, 3, truncated=True))


def test_a_server_that_does_not_stream() -> None:
    with RawServer(Reply(recording("vllm-whole"))) as server:
        assert run(generator(server, stream=False)) == ("The tank holds 5 l.", Usage(24, 9))
    body = server.requests[0][1]
    assert body["stream"] is False
    assert "stream_options" not in body


def test_a_whole_answer_instead_of_a_stream_is_taken() -> None:
    with RawServer(Reply(recording("vllm-whole"))) as server:
        assert run(generator(server))[0] == "The tank holds 5 l."


def test_a_stream_instead_of_a_whole_answer_is_taken() -> None:
    with RawServer(Reply(recording("vllm-answer"))) as server:
        assert run(generator(server, stream=False))[0] == "The tank holds 5 l."


def test_comments_and_other_fields_are_passed_over() -> None:
    chunk = json.dumps({"choices": [{"delta": {"content": "5 l."}, "finish_reason": "stop"}]})
    head = stream().decode()
    body = f": ping\n\nid: 1\nretry: 9\nevent: message\ndata:{chunk}\r\n\r\n:\n\n"
    with RawServer(Reply((head + body).encode())) as server:
        assert run(generator(server)) == ("5 l.", Usage())


# --- reasoning


def said(*texts: str | None, finish: str = "stop", **more: Any) -> Reply:
    chunks: list[object] = [{"choices": [{"delta": {"content": t, **more}}]} for t in texts]
    return Reply(stream(*chunks, {"choices": [{"delta": {}, "finish_reason": finish}]}, "[DONE]"))


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        (["<think>hm</think>5 l."], "5 l."),
        (["<thi", "nk>", "hm", "\n</thi", "nk", ">\n\n", "5", " l."], "5 l."),
        (["\n<think>", "\n</think>", "\n", "5 l."], "5 l."),
        (["<think>a</think><think>b</think>5 l."], "5 l."),
        (["<thin", " walls>"], "<thin walls>"),
        (["<"], "<"),
        ([" ", "5 l. <think>", "no tag</think>"], " 5 l. <think>no tag</think>"),
    ],
)
def test_thoughts_are_no_part_of_the_answer(texts: list[str], left: str) -> None:
    with RawServer(said(*texts)) as server:
        assert run(generator(server))[0] == left


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("hm\n</think>\n\n5 l.", "5 l."),
        ("<think>hm</think>5 l.", "5 l."),
        ("5 l. or < 6 l.", "5 l. or < 6 l."),
        ("hm</think>\n", None),
    ],
)
def test_a_whole_answer_needs_only_the_end_of_the_thoughts(text: str, left: str | None) -> None:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    with RawServer(Reply(answer(200, body))) as server:
        asked = generator(server, stream=False)
        if left is None:
            with pytest.raises(ModelError, match="empty answer"):
                run(asked)
        else:
            assert run(asked)[0] == left


@pytest.mark.parametrize(
    "reply",
    [
        said("<think>so ", "many things", finish="length"),
        said(None, finish="length", reasoning="so many things"),
        said("<think>hm</think>", finish="length"),
    ],
)
def test_an_answer_of_thoughts_alone_is_empty(reply: Reply) -> None:
    with RawServer(reply) as server, pytest.raises(ModelError, match=r"empty answer.*max_tokens"):
        run(generator(server))


# --- errors


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("vllm-too-long", ContextTooLong, "maximum context length is 2048"),
        ("vllm-unknown-model", ModelError, r"`nope` does not exist.*generator\.model"),
        ("vllm-bad-request", ModelError, "temperature must be non-negative"),
        ("tgi-too-long", ContextTooLong, "must be <= 4096"),
        ("tgi-too-long-in-stream", ContextTooLong, "must have less than 4096"),
        ("tgi-overloaded", ModelUnavailable, r"too much to do \(Model is overloaded\); try again$"),
        ("ollama-too-long", ContextTooLong, "exceeds the context length"),
        ("ollama-unknown-model", ModelError, "model 'llama9' not found"),
        ("trtllm-too-long", ContextTooLong, "9351"),
        ("openai-too-many-requests", ModelUnavailable, "Rate limit reached.*try again in 20 s"),
    ],
)
def test_recorded_refusals(name: str, kind: type[ModelError], words: str) -> None:
    with RawServer(Reply(recording(name))) as server:
        with pytest.raises(ModelError, match=words) as raised:
            run(generator(server))
        assert len(server.requests) == 1, "none of them passes in a moment"
    assert type(raised.value) is kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vllm-failed", "EngineCore encountered an issue"),
        ("vllm-0.6-failed", "Background loop has errored"),
        ("tgi-failed", "CUDA out of memory"),
        ("ollama-failed", "broke off"),
        ("ollama-failed-native", "unexpected EOF"),
        ("trtllm-failed", "broke off"),
        ("llama-server-failed", "context shift is disabled"),
    ],
)
def test_recorded_failures_in_the_middle(name: str, words: str) -> None:
    pieces: list[str | Usage] = []

    async def collect(server: RawServer) -> None:
        async for piece in generator(server).stream(Prompt("q", (), MESSAGES)):
            pieces.append(piece)

    with RawServer(Reply(recording(name, cut=name.startswith("trtllm")))) as server:
        with pytest.raises(ModelUnavailable, match=words):
            asyncio.run(collect(server))
        assert len(server.requests) == 1
    assert pieces == ["The", " tank"]


def test_an_error_event_of_any_shape() -> None:
    failed = b'event: error\ndata: {"why": "no reason"}\n\n'
    with RawServer(Reply(stream() + failed)) as server, pytest.raises(ModelUnavailable):
        run(generator(server))


@pytest.mark.parametrize("finish", ["content_filter", "abort", "error"])
def test_an_answer_that_was_stopped_is_none(finish: str) -> None:
    reply = said("The tank", finish=finish)
    with RawServer(reply) as server, pytest.raises(ModelError, match=finish):
        run(generator(server))


# --- what a server does not take


@pytest.mark.parametrize("refusal", ["trtllm-no-stream-options", "mistral-no-stream-options"])
def test_stream_options_are_left_out_once_they_were_refused(refusal: str) -> None:
    with RawServer(Reply(recording(refusal)), Reply(WHOLE)) as server:
        made = generator(server)
        assert run(made)[0] == run(made)[0] == "5 l."
    bodies = [body for _, body in server.requests]
    assert ["stream_options" in body for body in bodies] == [True, False, False]


def test_newer_names_of_openai() -> None:
    refusals = [
        Reply(recording(name)) for name in ("openai-max-completion-tokens", "openai-temperature")
    ]
    with RawServer(*refusals, Reply(WHOLE)) as server:
        made = generator(server, max_tokens=9)
        run(made)
        run(made)
    assert len(server.requests) == 4
    for _, body in server.requests[2:]:
        assert body["max_completion_tokens"] == 9
        assert not {"max_tokens", "temperature"} & set(body)


@pytest.mark.parametrize("refusal", ["tgi-no-system-role", "vllm-two-roles", "llama-server"])
def test_models_without_a_system_role(refusal: str) -> None:
    failed = {"error": {"code": 500, "message": "Jinja Exception: System role not supported"}}
    first = answer(500, failed) if refusal == "llama-server" else recording(refusal)
    with RawServer(Reply(first), Reply(WHOLE)) as server:
        made = generator(server)
        run(made)
        run(made)
    joined = [{"role": "user", "content": "Be short.\n\nHow much does the tank hold?"}]
    sent = [body["messages"] for _, body in server.requests]
    assert sent == [list(MESSAGES), joined, joined]


def test_a_refusal_that_does_not_end_is_said() -> None:
    with RawServer(Reply(recording("tgi-no-system-role"))) as server:
        with pytest.raises(ModelError, match="System role not supported"):
            run(generator(server))
        assert len(server.requests) == 2
