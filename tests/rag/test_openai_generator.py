"""The generator against a real llama-server, and against servers that fail in every way."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, cast

import pytest
from pydantic import SecretStr
from servers import MODEL, RawServer, Reply, answer, chunked, get, llama_server, stream, wait_until

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable
from rag.generators.openai import OpenAIGenerator
from rag.types import Prompt, Usage

STORY = "Tell me a long story about a lighthouse keeper."


@pytest.fixture(scope="session")
def llama() -> Iterator[str]:
    with llama_server("chat") as url:
        yield url


def asking(text: str) -> Prompt:
    return Prompt(question=text, passages=(), messages=({"role": "user", "content": text},))


def pieces_of(generator: OpenAIGenerator, text: str = "Hi") -> AsyncGenerator[str | Usage]:
    return cast("AsyncGenerator[str | Usage]", generator.stream(asking(text)))


def run(generator: OpenAIGenerator, text: str = "Hi") -> list[str | Usage]:
    async def collect() -> list[str | Usage]:
        return [piece async for piece in pieces_of(generator, text)]

    return asyncio.run(collect())


def text_of(pieces: list[str | Usage]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


# --- a real server


def test_streams_in_pieces_with_the_usage_at_the_end(llama: str) -> None:
    *pieces, usage = run(OpenAIGenerator(url=f"{llama}/v1", model=MODEL, max_tokens=12), STORY)
    assert isinstance(usage, Usage)
    assert usage.truncated
    assert len(pieces) > 5
    assert all(isinstance(piece, str) for piece in pieces)
    assert isinstance(usage, Usage)
    assert usage.completion_tokens == 12
    assert usage.prompt_tokens > 10


def test_temperature_and_options_reach_the_engine(llama: str) -> None:
    def told(temperature: float, seed: int) -> str:
        generator = OpenAIGenerator(
            url=f"{llama}/v1",
            model=MODEL,
            max_tokens=16,
            temperature=temperature,
            options={"seed": seed},  # not a parameter of the client: goes into the body
        )
        return text_of(run(generator, STORY))

    assert told(0.0, 1) == told(0.0, 2)
    assert told(1.5, 1) != told(1.5, 2)


def test_an_unset_model_is_the_one_that_the_server_lists(llama: str) -> None:
    generator = OpenAIGenerator(url=f"{llama}/v1", model="", max_tokens=2)
    run(generator)
    assert generator.model == MODEL


def test_a_prompt_over_the_window_is_too_long(llama: str) -> None:
    with pytest.raises(ContextTooLong, match="exceeds the available context"):
        run(OpenAIGenerator(url=f"{llama}/v1", model=MODEL), "word " * 3000)


@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_leaving_the_stream_stops_the_engine(llama: str, way: str) -> None:
    def busy() -> bool:
        return any(slot["is_processing"] for slot in get(f"{llama}/slots"))

    endless = OpenAIGenerator(  # more than ten seconds of generation
        url=f"{llama}/v1", model=MODEL, max_tokens=1900, options={"ignore_eos": True}
    )
    started, leave = asyncio.Event(), asyncio.Event()

    async def read() -> None:
        async with aclosing(pieces_of(endless, STORY)) as pieces:
            await anext(pieces)
            started.set()
            await leave.wait()

    async def begin_and_leave() -> None:
        reading = asyncio.create_task(read())
        await started.wait()
        assert await asyncio.to_thread(busy)
        if way == "closed":
            leave.set()
        else:
            reading.cancel()
        await asyncio.wait([reading])
        await asyncio.to_thread(wait_until, lambda: not busy(), 3)

    asyncio.run(begin_and_leave())


# --- what servers send


def token(text: str | None, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}]}


END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
WHOLE = stream(token("It holds "), token("5 l."), END, USAGE, "[DONE]")


def generator(server: RawServer, **settings: Any) -> OpenAIGenerator:
    settings = {"model": "m", "timeout_s": 0.2, **settings}
    return OpenAIGenerator(url=server.url, **settings)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param(
            [token("It holds "), token("5 l."), END, USAGE, "[DONE]"],
            ["It holds ", "5 l.", Usage(7, 3)],
            id="the usual",
        ),
        pytest.param([token("5 l."), END, "[DONE]"], ["5 l.", Usage()], id="no usage"),
        pytest.param(
            [token(None, role="assistant"), token("5 l.", "stop"), USAGE],
            ["5 l.", Usage(7, 3)],
            id="a role first, no [DONE]",
        ),
        pytest.param([token("5 l."), "[DONE]"], ["5 l.", Usage()], id="no finish reason"),
        pytest.param(
            [token(None, reasoning_content="Let me think"), token("5 l."), END],
            ["5 l.", Usage()],
            id="reasoning",
        ),
        pytest.param(
            [{"choices": []}, {"choices": None}, token("5 l."), END, {"usage": None}],
            ["5 l.", Usage()],
            id="chunks without choices",
        ),
        pytest.param(
            [{**token("5"), **USAGE, **token("5")}, {**END, "usage": {"prompt_tokens": 9}}],
            ["5", Usage(9, 0)],
            id="usage in each chunk",
        ),
        pytest.param(
            ['{"choices":[{"delta":{"content":"a\u2028b"}}]}', END], ["a\u2028b", Usage()]
        ),
        pytest.param([token("5"), END, "{broken"], ["5", Usage()], id="broken after the end"),
    ],
)
def test_whole_answers(events: list[object], expected: list[str | Usage]) -> None:
    with RawServer(Reply(stream(*events))) as server:
        assert run(generator(server)) == expected


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        pytest.param(Reply(then="hang"), ModelUnavailable, "did not answer in 0.2 s", id="silent"),
        pytest.param(
            Reply(answer(401, {"error": {"message": "bad key"}})),
            ModelError,
            "refused the key",
            id="key",
        ),
        pytest.param(
            Reply(answer(404, {"error": {"message": "no model m"}})),
            ModelError,
            r"no model m.*check generator\.url",
            id="unknown model",
        ),
        pytest.param(
            Reply(answer(400, {"error": {"message": "maximum context length is 4096 tokens"}})),
            ContextTooLong,
            "4096",
            id="too long, vLLM",
        ),
        pytest.param(
            Reply(answer(422, {"error": "`inputs` must have less than 1024 tokens. Given: 2000"})),
            ContextTooLong,
            "1024",
            id="too long, TGI",
        ),
        pytest.param(
            Reply(answer(400, {"error": {"message": "temperature: at most 2"}})),
            ModelError,
            "temperature",
            id="another bad request",
        ),
        pytest.param(
            Reply(answer(200, "<html>\ndata: none\n</html>")),
            ModelUnavailable,
            "does not speak OpenAI's API",
            id="HTML with a line like an event's",
        ),
        pytest.param(
            Reply(answer(200, "<html></html>")), ModelUnavailable, "ends in /v1", id="HTML"
        ),
        pytest.param(
            Reply(answer(200, {"choices": []})), ModelUnavailable, "does not stream", id="JSON"
        ),
        pytest.param(Reply(b"SSH-2.0-OpenSSH\r\n"), ModelUnavailable, "broke off", id="not HTTP"),
        pytest.param(Reply(stream()), ModelUnavailable, "does not stream", id="empty stream"),
        pytest.param(Reply(stream(USAGE)), ModelUnavailable, "does not stream", id="only usage"),
        pytest.param(
            Reply(stream(END, USAGE, "[DONE]")), ModelError, "empty answer", id="no text at all"
        ),
        pytest.param(
            Reply(stream(token(None, "length", reasoning_content="Let me think"), "[DONE]")),
            ModelError,
            "raise generator.max_tokens",
            id="all spent on reasoning",
        ),
    ],
)
def test_failures_before_the_first_token(reply: Reply, kind: type[ModelError], words: str) -> None:
    with RawServer(reply) as server, pytest.raises(ModelError, match=words) as raised:
        run(generator(server, retries=0, timeout_s=0.2 if reply.then == "hang" else 5))
    assert type(raised.value) is kind


TWO = (token("It holds "), token("5 "))


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        pytest.param(Reply(stream(*TWO)), ModelUnavailable, "broke off", id="ends without a word"),
        pytest.param(
            Reply(stream(*TWO, END)[:-20]), ModelUnavailable, "broke off", id="cut inside a line"
        ),
        pytest.param(
            Reply(chunked(stream(*TWO))), ModelUnavailable, "broke off", id="cut between chunks"
        ),
        pytest.param(
            Reply(chunked(stream(*TWO)), "reset"), ModelUnavailable, "broke off", id="reset"
        ),
        pytest.param(
            Reply(stream(*TWO), "hang"), ModelUnavailable, "sent nothing for 0.2 s", id="hung"
        ),
        pytest.param(
            Reply(stream(*TWO), "ping"), ModelUnavailable, "sent nothing for 0.2 s", id="only pings"
        ),
        pytest.param(
            Reply(stream(*TWO, {"error": {"message": "CUDA out of memory", "code": 500}})),
            ModelUnavailable,
            "CUDA out of memory",
            id="an error object",
        ),
        pytest.param(
            Reply(stream(*TWO, {"error": "the request exceeds the context size"})),
            ContextTooLong,
            "context size",
            id="an error in words",
        ),
        pytest.param(Reply(stream(*TWO, "{broken")), ModelUnavailable, "does not speak", id="JSON"),
        pytest.param(
            Reply(stream(*TWO, {"choices": [{"delta": "l."}]})),
            ModelUnavailable,
            "does not speak",
            id="another shape",
        ),
        pytest.param(
            Reply(stream(*TWO, token(None, "content_filter"))),
            ModelError,
            "content_filter",
            id="filter",
        ),
    ],
)
def test_failures_after_two_tokens(reply: Reply, kind: type[ModelError], words: str) -> None:
    pieces: list[str | Usage] = []

    async def collect(server: RawServer) -> None:
        async for piece in pieces_of(generator(server)):
            pieces.append(piece)

    with RawServer(reply, Reply(WHOLE)) as server:
        with pytest.raises(ModelError, match=words) as raised:
            asyncio.run(collect(server))
        assert len(server.requests) == 1, "what was half said is not asked for again"
    assert type(raised.value) is kind
    # A reset may throw away what the client had not read yet.
    assert reply.then == "reset" or pieces == ["It holds ", "5 "]


def test_connection_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    with pytest.raises(ModelUnavailable, match="no server answers"):
        run(OpenAIGenerator(url=url, model="m", retries=0))


# --- trying again

AT_ONCE = "Retry-After-Ms: 1"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_passing_failure_is_tried_again(status: int) -> None:
    with RawServer(Reply(answer(status, {}, AT_ONCE)), Reply(WHOLE)) as server:
        assert text_of(run(generator(server, timeout_s=5))) == "It holds 5 l."
        assert len(server.requests) == 2


def test_a_connection_dropped_before_the_answer_is_tried_again() -> None:
    with RawServer(Reply(), Reply(WHOLE)) as server:
        assert text_of(run(generator(server, timeout_s=5))) == "It holds 5 l."


def test_a_lasting_failure_is_tried_three_times() -> None:
    with RawServer(Reply(answer(500, "<html>no</html>", AT_ONCE))) as server:
        with pytest.raises(ModelUnavailable, match=r"failed \(500\)"):
            run(generator(server, timeout_s=5))
        assert len(server.requests) == 3


def test_silence_is_not_tried_again() -> None:
    with RawServer(Reply(then="hang"), Reply(WHOLE)) as server:
        with pytest.raises(ModelUnavailable, match="did not answer"):
            run(generator(server))
        assert len(server.requests) == 1


def test_waiting_to_try_again_counts_as_silence() -> None:
    started = time.monotonic()
    overloaded = Reply(answer(503, {}, "Retry-After: 30"))
    with (
        RawServer(overloaded) as server,
        pytest.raises(ModelUnavailable, match="did not answer"),
    ):
        run(generator(server))
    assert time.monotonic() - started < 5


# --- what is sent


def test_the_request_holds_the_settings_and_the_options() -> None:
    options = {"top_k": 1, "max_tokens": None, "max_completion_tokens": 9}
    with RawServer(Reply(WHOLE)) as server:
        run(generator(server, temperature=0.3, max_tokens=5, options=options))
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.3,
        "top_k": 1,
        "max_completion_tokens": 9,
    }


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ({"object": "list", "data": []}, "serves no model"),
        ({"models": ["m"]}, "does not speak"),
        ("<html></html>", "does not speak"),
    ],
)
def test_a_server_that_names_no_model(models: object, words: str) -> None:
    with (
        RawServer(Reply(answer(200, models))) as server,
        pytest.raises(ModelUnavailable, match=words),
    ):
        run(generator(server, model="", timeout_s=5))


def test_a_discovered_model_that_is_gone_is_discovered_again() -> None:
    old, new = (Reply(answer(200, {"data": [{"id": name}]})) for name in ("old", "new"))
    gone = Reply(answer(404, {"error": {"message": "no such model"}}))
    with RawServer(old, gone, new, Reply(WHOLE)) as server:
        asked = generator(server, model="", timeout_s=5)
        with pytest.raises(ModelError, match="no such model"):
            run(asked)
        run(asked)
    assert asked.model == "new"


@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "http://[::1/v1"])
def test_a_url_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=r"generator\.url"):
        OpenAIGenerator(url=url, model="m")


def test_the_key_is_in_no_error() -> None:
    key = SecretStr("sk-very-secret\n")
    refusing = Reply(answer(401, {"error": {"message": "wrong key sk-very-secret"}}))
    with RawServer(refusing) as server, pytest.raises(ModelError) as raised:
        run(generator(server, api_key=key))
    assert "very-secret" not in f"{raised.value}"
