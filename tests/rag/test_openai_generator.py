"""The generator against a real llama-server, and against servers that fail in every way."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
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


async def all_of(generator: OpenAIGenerator, text: str = "Hi") -> list[str | Usage]:
    return [piece async for piece in pieces_of(generator, text)]


def run(generator: OpenAIGenerator, text: str = "Hi") -> list[str | Usage]:
    return asyncio.run(all_of(generator, text))


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
    def told(temperature: float, seed: int, **options: str) -> str:
        generator = OpenAIGenerator(
            url=f"{llama}/v1",
            model=MODEL,
            max_tokens=16,
            temperature=temperature,
            seed=seed,
            options=options,
        )
        return text_of(run(generator, STORY))

    assert told(0.0, 1) == told(0.0, 2)
    assert told(1.5, 1) != told(1.5, 2)
    assert told(0.0, 1, grammar='root ::= "blue"') == "blue"


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
    settings = {"model": "m", "first_token_s": 0.2, **settings}
    made = OpenAIGenerator(url=server.url, **settings)
    made.backoff_s = 0.01
    return made


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
            Reply(
                answer(
                    400,
                    {
                        "error": {
                            "message": "max_tokens is too large: 6000. This model supports at most "
                            "4096 completion tokens, whereas you provided 6000."
                        }
                    },
                )
            ),
            ModelError,
            r"max_tokens is too large.*check the settings generator\.\*",
            id="too long an answer",
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
            Reply(answer(200, {"choices": []})), ModelUnavailable, "does not give", id="JSON"
        ),
        pytest.param(Reply(b"SSH-2.0-OpenSSH\r\n"), ModelUnavailable, "broke off", id="not HTTP"),
        pytest.param(Reply(stream()), ModelUnavailable, "does not give", id="empty stream"),
        pytest.param(Reply(stream(USAGE)), ModelUnavailable, "does not give", id="only usage"),
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
        run(generator(server, retries=0, first_token_s=0.2 if reply.then == "hang" else 5))
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


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_passing_failure_is_tried_again(status: int) -> None:
    with RawServer(Reply(answer(status, {})), Reply(WHOLE)) as server:
        assert text_of(run(generator(server, first_token_s=5))) == "It holds 5 l."
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(), id="before its status"),
        pytest.param(Reply(chunked(stream())[:-5]), id="after its status"),
        pytest.param(Reply(chunked(stream(token(None, role="assistant")))), id="after the role"),
    ],
)
def test_a_connection_dropped_before_the_answer_is_tried_again(reply: Reply) -> None:
    with RawServer(reply, Reply(WHOLE)) as server:
        assert text_of(run(generator(server, first_token_s=5))) == "It holds 5 l."


def test_a_connection_refused_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    made = OpenAIGenerator(url=url, model="m", retries=2)
    made.backoff_s = 0.1
    started = time.monotonic()
    with pytest.raises(ModelUnavailable, match="no server answers"):
        run(made)
    assert time.monotonic() - started >= 0.3, "two pauses, 0.1 and 0.2 s or more"


def test_a_lasting_failure_is_tried_three_times_at_growing_intervals() -> None:
    with RawServer(Reply(answer(500, "<html>no</html>"))) as server:
        made = generator(server, first_token_s=5)
        made.backoff_s = 0.05
        with pytest.raises(ModelUnavailable, match=r"failed \(500\)"):
            run(made)
        first, second, third = server.times
    # A random part of 0.05 comes on top of each: the same pause again would be under 0.1.
    assert second - first >= 0.05
    assert third - second >= 0.1


@pytest.mark.parametrize("status", [400, 404, 408, 422, 429])
def test_what_does_not_pass_is_not_tried_again(status: int) -> None:
    with RawServer(Reply(answer(status, {"error": {"message": "no"}})), Reply(WHOLE)) as server:
        with pytest.raises(ModelError):
            run(generator(server, first_token_s=5))
        assert len(server.requests) == 1


def test_silence_is_not_tried_again() -> None:
    with RawServer(Reply(then="hang"), Reply(WHOLE)) as server:
        with pytest.raises(ModelUnavailable, match=r"did not answer.*generator\.first_token_s"):
            run(generator(server))
        assert len(server.requests) == 1


def test_a_server_is_asked_again_when_it_wants_to_be() -> None:
    with RawServer(Reply(answer(503, {}, "Retry-After: 1")), Reply(WHOLE)) as server:
        run(generator(server, first_token_s=5))
        first, second = server.times
    assert second - first >= 1


@pytest.mark.parametrize("after", ["30", "Fri, 31 Dec 2199 23:59:59 GMT"])
def test_a_server_that_wants_to_be_asked_too_late_is_not_waited_for(after: str) -> None:
    started = time.monotonic()
    overloaded = Reply(answer(503, {}, f"Retry-After: {after}"))
    with (
        RawServer(overloaded) as server,
        pytest.raises(ModelUnavailable, match=r"failed \(503\); try again in \d+ s"),
    ):
        run(generator(server, first_token_s=20))
    assert time.monotonic() - started < 5


def test_waiting_to_try_again_counts_as_silence() -> None:
    with RawServer(Reply(answer(500, {}))) as server:
        made = generator(server)
        made.backoff_s = 10
        with pytest.raises(ModelUnavailable, match=r"did not answer in 0\.2 s"):
            run(made)


# --- how long an answer may take


def test_the_whole_answer_is_bounded_too() -> None:
    slow = Reply(stream(token("It ")), "ping")
    words = r"did not finish.*0\.3 s.*generator\.timeout_s"
    with RawServer(slow) as server, pytest.raises(ModelUnavailable, match=words):
        run(generator(server, first_token_s=5, timeout_s=0.3))


def test_an_answer_asked_for_whole_has_the_whole_time() -> None:
    words = r"did not finish.*0\.3 s.*generator\.timeout_s"
    with RawServer(Reply(then="hang")) as server, pytest.raises(ModelUnavailable, match=words):
        run(generator(server, stream=False, first_token_s=0.1, timeout_s=0.3))


def test_a_connection_left_open_after_the_end_does_not_keep_the_answer() -> None:
    with RawServer(Reply(WHOLE, "hang")) as server:
        assert run(generator(server))[-1] == Usage(7, 3)


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_the_silence_is_counted_from_token_to_token(field: str) -> None:
    slow = [{"choices": [{"delta": {field: "a"}}]}] * 5
    with RawServer(Reply(stream(*slow, token("b"), END), "drip")) as server:
        assert text_of(run(generator(server, first_token_s=1.0))).endswith("b")
        assert time.monotonic() - server.times[0] > 1


def test_what_the_reader_takes_is_no_silence_of_the_server() -> None:
    async def slowly(server: RawServer) -> list[str | Usage]:
        pieces = []
        async for piece in pieces_of(generator(server)):
            pieces.append(piece)
            await asyncio.sleep(0.25)
        return pieces

    with RawServer(Reply(WHOLE)) as server:
        assert asyncio.run(slowly(server))[-1] == Usage(7, 3)


# --- connections

KEPT = Reply(chunked(WHOLE.replace(b"Connection: close\r\n", b"")) + b"0\r\n\r\n", "keep")


def test_a_connection_is_used_again() -> None:
    async def twice(made: OpenAIGenerator) -> None:
        for _ in range(3):
            async for _ in pieces_of(made):
                pass

    with RawServer(KEPT) as server:
        asyncio.run(twice(generator(server)))
        assert (len(server.requests), server.connections) == (3, 1)


def test_each_event_loop_has_its_own_connections_and_closes_them() -> None:
    with RawServer(KEPT) as server:
        made = generator(server)
        run(made)
        run(made)  # the first loop is closed: its connection could not be used
        assert (len(server.requests), server.connections) == (2, 2)


def test_threads_with_loops_of_their_own_may_come_at_any_moment() -> None:
    class Loop(asyncio.SelectorEventLoop):
        """While it is looked at from one thread, another one comes."""

        others = 0

        def is_closed(self) -> bool:
            if self.others:
                self.others -= 1
                with ThreadPoolExecutor(1) as another:
                    another.submit(run, made).result()
            return super().is_closed()

    with RawServer(Reply(WHOLE)) as server, asyncio.Runner(loop_factory=Loop) as first:
        made = generator(server, first_token_s=10)
        first.run(all_of(made))
        cast("Loop", first.get_loop()).others = 1
        run(made)
        assert len(server.requests) == 3


def test_closing_closes_the_connections_and_the_next_answer_opens_new_ones() -> None:
    async def close_between(made: OpenAIGenerator) -> None:
        await made.aclose()
        for _ in range(2):
            async for _ in pieces_of(made):
                pass
            await made.aclose()

    with RawServer(KEPT) as server:
        asyncio.run(close_between(generator(server)))
        assert server.connections == 2


def test_leaving_one_answer_leaves_the_others() -> None:
    slow = Reply(stream(*TWO), "hang")

    async def leave_one(server: RawServer) -> str:
        made = generator(server, first_token_s=5)
        left = pieces_of(made)
        await anext(left)
        other = pieces_of(made)
        await anext(other)
        await left.aclose()
        rest = "".join([str(piece) async for piece in other if isinstance(piece, str)])
        await other.aclose()
        return rest

    with RawServer(slow, Reply(WHOLE)) as server:
        assert asyncio.run(leave_one(server)) == "5 l."


def test_many_answers_at_once() -> None:
    async def all_at_once(made: OpenAIGenerator) -> list[str]:
        async def one() -> str:
            return "".join([p async for p in pieces_of(made) if isinstance(p, str)])

        return await asyncio.gather(*(one() for _ in range(64)))

    with RawServer(Reply(WHOLE)) as server:
        assert set(asyncio.run(all_at_once(generator(server, first_token_s=10)))) == {
            "It holds 5 l."
        }


# --- what is sent


def test_the_request_holds_the_settings_and_the_options() -> None:
    options = {"min_p": 0.1, "max_tokens": None, "max_completion_tokens": 9}
    with RawServer(Reply(WHOLE)) as server:
        run(generator(server, temperature=0.3, max_tokens=5, stop=["\n"], seed=0, options=options))
    path, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.3,
        "stop": ["\n"],
        "seed": 0,
        "min_p": 0.1,
        "max_completion_tokens": 9,
    }


def test_every_setting_of_sampling_has_its_name() -> None:
    settings = {
        "top_p": 0.9,
        "top_k": 20,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.1,
    }
    with RawServer(Reply(WHOLE)) as server:
        run(generator(server, **settings))
        run(generator(server, **dict.fromkeys(settings), stop=[], seed=None))
    (_, all_set), (_, none_set) = server.requests
    assert all_set.items() >= settings.items()
    assert not {*settings, "stop", "seed"} & set(none_set)


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
        run(generator(server, model="", first_token_s=5))


def test_a_discovered_model_that_is_gone_is_discovered_again() -> None:
    old, new = (Reply(answer(200, {"data": [{"id": name}]})) for name in ("old", "new"))
    gone = Reply(answer(404, {"error": {"message": "no such model"}}))
    with RawServer(old, gone, new, Reply(WHOLE)) as server:
        asked = generator(server, model="", first_token_s=5)
        with pytest.raises(ModelError, match="no such model"):
            run(asked)
        assert asked.model == "old", "the answers under way are its own"
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
