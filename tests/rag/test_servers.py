"""What servers tell of themselves: window, tokens, readiness."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import (
    CONTEXT_TOKENS,
    MODEL,
    RawServer,
    Reply,
    answer,
    chunked,
    llama_server,
    recording,
    stream,
)
from tokenizers import Tokenizer, models, pre_tokenizers

from rag.errors import ConfigError, ModelError, ModelUnavailable
from rag.generators.openai import OpenAIGenerator
from rag.types import Prompt, Usage

MESSAGES = (
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How much does the tank hold, <|im_end|> and since when? 水箱"},
)


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with llama_server("chat") as url:
        yield url


def told(made: OpenAIGenerator) -> tuple[int, int | None]:
    """Window and count."""

    async def ask() -> tuple[int, int | None]:
        return await made.window(), await made.count_tokens(MESSAGES)

    return asyncio.run(ask())


# --- a real server


def test_the_count_is_that_of_the_real_request(llama: str) -> None:
    made = OpenAIGenerator(url=f"{llama}/v1", model=MODEL, max_tokens=1)

    async def ask() -> tuple[int, int | None, Usage]:
        pieces = [piece async for piece in made.stream(Prompt("q", (), MESSAGES))]
        usage = pieces[-1]
        assert isinstance(usage, Usage)
        return await made.window(), await made.count_tokens(MESSAGES), usage

    window, count, usage = asyncio.run(ask())
    assert window == CONTEXT_TOKENS
    assert count == usage.prompt_tokens


def test_a_server_that_is_ready_names_its_model(llama: str) -> None:
    assert asyncio.run(OpenAIGenerator(url=f"{llama}/v1", model="").check()) == MODEL
    assert asyncio.run(OpenAIGenerator(url=f"{llama}/v1", model=MODEL).check()) == MODEL


# --- recorded ones


def replies(**names: str) -> dict[str, Reply]:
    """Recordings by path, the slashes as underscores."""
    return {"/" + path.replace("_", "/"): Reply(recording(name)) for path, name in names.items()}


NOT_FOUND = Reply(answer(404, {"error": "not found"}))


@pytest.mark.parametrize(
    ("paths", "model", "expected"),
    [
        pytest.param(
            replies(v1_models="vllm-models", tokenize="vllm-tokenize"),
            "smollm2-135m",
            (2048, 24),
            id="vllm",
        ),
        pytest.param(
            replies(v1_models="vllm-models", tokenize="vllm-tokenize"),
            "legal",
            (2048, 24),
            id="vllm, an adapter",
        ),
        pytest.param(
            {
                **replies(v1_models="tgi-models", info="tgi-info"),
                "/chat_tokenize": Reply(recording("tgi-chat-tokenize")),
            },
            "tgi",
            (4096, 4),
            id="tgi",
        ),
        pytest.param(replies(info="tgi-info"), "tgi", (4096, None), id="tgi without /v1/models"),
        pytest.param(
            replies(v1_models="ollama-models", api_ps="ollama-ps"),
            "llama3.2:1b",
            (4096, None),
            id="ollama",
        ),
        pytest.param(
            replies(v1_models="ollama-models", api_ps="ollama-ps"),
            "gemma4",
            (0, None),
            id="ollama, not loaded",
        ),
        pytest.param(replies(v1_models="trtllm-models"), "m", (0, None), id="trtllm"),
        pytest.param({}, "m", (0, None), id="none of them"),
        pytest.param(
            {"/v1/models": Reply(answer(200, {"data": [{"id": 1, "max_model_len": "many"}]}))},
            "m",
            (0, None),
            id="another shape",
        ),
        pytest.param({"/v1/models": Reply(answer(200, "<html>"))}, "m", (0, None), id="HTML"),
    ],
)
def test_window_and_count(
    paths: dict[str, Reply], model: str, expected: tuple[int, int | None]
) -> None:
    with RawServer(NOT_FOUND, paths=paths) as server:
        assert told(OpenAIGenerator(url=server.url, model=model)) == expected


def test_what_was_told_is_remembered() -> None:
    with RawServer(NOT_FOUND, paths=replies(v1_models="vllm-models")) as server:
        made = OpenAIGenerator(url=server.url, model="smollm2-135m")
        for _ in range(3):  # also in another event loop
            asyncio.run(made.window())
        asked = [path for path, _ in server.requests]
    assert asked == ["/v1/models"] * 2  # which server it is, and its window


# --- a server that is another one by now

QUESTION = Prompt("q", (), MESSAGES)
TOKEN = {"choices": [{"delta": {"content": "5 l."}, "finish_reason": None}]}
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
VLLM = Reply(answer(200, {"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 8192}]}))
LLAMA = {
    "/v1/models": Reply(answer(200, {"data": [{"id": "m", "owned_by": "llamacpp"}]})),
    "/props": Reply(answer(200, {"default_generation_settings": {"n_ctx": 1024}})),
}


async def asked(made: OpenAIGenerator) -> None:
    async for _ in made.stream(QUESTION):
        pass


@pytest.mark.parametrize(
    ("reply", "window"),
    [
        pytest.param(Reply(recording("vllm-unknown-model")), 1024, id="unknown model"),
        pytest.param(Reply(recording("vllm-too-long")), 1024, id="too long"),
        pytest.param(Reply(recording("tgi-too-long-in-stream")), 1024, id="too long, as an event"),
        pytest.param(Reply(), 1024, id="broken off before the answer"),
        pytest.param(Reply(chunked(stream(TOKEN)), "reset"), 1024, id="broken off in the middle"),
        pytest.param(Reply(answer(503, {})), 8192, id="overloaded"),
    ],
)
def test_a_failure_that_may_come_of_another_server_makes_it_be_asked_anew(
    reply: Reply, window: int
) -> None:
    paths = {"/v1/models": VLLM}
    with RawServer(reply, paths=paths) as server:
        made = OpenAIGenerator(url=server.url, model="m", retries=0)
        assert asyncio.run(made.window()) == 8192
        paths |= LLAMA
        assert asyncio.run(made.window()) == 8192
        with pytest.raises(ModelError):
            asyncio.run(asked(made))
        assert asyncio.run(made.window()) == window


def test_so_does_a_failure_that_was_mended_by_trying_again() -> None:
    paths = {"/v1/models": VLLM}
    with RawServer(Reply(), Reply(stream(TOKEN, END)), paths=paths) as server:
        made = OpenAIGenerator(url=server.url, model="m", retries=1)
        made.backoff_s = 0.01
        assert asyncio.run(made.window()) == 8192
        paths |= LLAMA
        asyncio.run(asked(made))
        assert asyncio.run(made.window()) == 1024


def test_a_server_that_was_away_is_asked_as_soon_as_it_is_back() -> None:
    with RawServer(NOT_FOUND, paths={"/v1/models": VLLM}) as server:
        made = OpenAIGenerator(url=server.url, model="m", retries=0)
        assert asyncio.run(made.window()) == 8192
    with pytest.raises(ModelUnavailable, match="no server answers"):
        asyncio.run(asked(made))
    assert asyncio.run(made.window()) == 8192, "what it told last, as long as nothing else is known"
    with RawServer(NOT_FOUND, paths=LLAMA, port=int(server.url.split(":")[2][:-3])):
        assert asyncio.run(made.window()) == 1024


def test_the_window_of_a_discovered_model_is_its_own() -> None:
    small = {"data": [{"id": "small", "owned_by": "vllm", "max_model_len": 1024}]}
    paths = {"/v1/models": VLLM}
    with RawServer(Reply(stream(TOKEN, END)), paths=paths) as server:
        made = OpenAIGenerator(url=server.url, model="")
        assert asyncio.run(made.window()) == 8192
        paths["/v1/models"] = Reply(answer(200, small))
        asyncio.run(asked(made))
        assert (made.model, asyncio.run(made.window())) == ("small", 1024)


@pytest.mark.parametrize(("context_tokens", "window"), [(0, 2048), (1000, 1000), (4096, 2048)])
def test_the_window_is_as_set_but_never_above_the_servers(context_tokens: int, window: int) -> None:
    with RawServer(NOT_FOUND, paths=replies(v1_models="vllm-models")) as server:
        made = OpenAIGenerator(url=server.url, model="m", context_tokens=context_tokens)
        assert told(made)[0] == window


def test_a_set_window_counts_where_the_server_tells_none() -> None:
    with RawServer(NOT_FOUND) as server:
        made = OpenAIGenerator(url=server.url, model="m", context_tokens=1000)
        assert told(made)[0] == 1000


def test_a_template_without_a_system_role_is_counted_as_it_will_be_asked() -> None:
    refusal, count = Reply(recording("vllm-two-roles")), Reply(recording("vllm-tokenize"))
    models = replies(v1_models="vllm-models")
    with RawServer(refusal, count, paths=models) as server:
        assert told(OpenAIGenerator(url=server.url, model="m")) == (2048, 24)
        last = server.requests[-1][1]
    assert [message["role"] for message in last["messages"]] == ["user"]


def test_llama_server_with_such_a_template() -> None:
    """Its prompt is asked for with messages, the tokens of that without."""
    owner = Reply(answer(200, {"data": [{"id": "m", "owned_by": "llamacpp"}]}))
    props = Reply(answer(200, {"default_generation_settings": {"n_ctx": 2048}}))
    refusal = Reply(answer(500, {"error": {"message": "System role not supported"}}))
    prompt, tokens = (
        Reply(answer(200, {k: v})) for k, v in (("prompt", "a b"), ("tokens", [1, 2]))
    )
    paths = {"/v1/models": owner, "/props": props, "/tokenize": tokens}
    with RawServer(refusal, prompt, paths=paths) as server:
        assert told(OpenAIGenerator(url=server.url, model="m")) == (2048, 2)


def test_a_kept_connection_that_the_server_closes_costs_nothing() -> None:
    models = recording("vllm-models")  # it does not say "Connection: close", and closes
    with RawServer(NOT_FOUND, paths={"/v1/models": Reply(models)}) as server:
        for _ in range(50):
            assert told(OpenAIGenerator(url=server.url, model="m"))[0] == 2048


def test_a_server_that_hangs_is_not_waited_for_twice() -> None:
    with RawServer(Reply(then="hang")) as server:
        made = OpenAIGenerator(url=server.url, model="m")
        started = time.monotonic()
        assert told(made) == (0, None)
        assert told(made) == (0, None)
    assert time.monotonic() - started < 6


def test_no_server_tells_nothing() -> None:
    assert told(OpenAIGenerator(url=nobody(), model="m")) == (0, None)


# --- readiness


def nobody() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


def test_a_server_without_health_is_ready_when_it_lists_its_models() -> None:
    with RawServer(NOT_FOUND, paths=replies(v1_models="ollama-models")) as server:
        assert asyncio.run(OpenAIGenerator(url=server.url, model="gemma4:latest").check()) == (
            "gemma4:latest"
        )


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (replies(health="llama-server-loading"), "Loading model"),
        ({}, "does not know the model or the path"),
        ({"/v1/models": Reply(answer(200, {"data": []}))}, "serves no model"),
        ({"/v1/models": Reply(answer(200, "<html>"))}, "does not speak"),
    ],
)
def test_a_server_that_is_not_ready(paths: dict[str, Reply], words: str) -> None:
    with (
        RawServer(NOT_FOUND, paths=paths) as server,
        pytest.raises(ModelUnavailable, match=words) as raised,
    ):
        asyncio.run(OpenAIGenerator(url=server.url, model="m").check())
    assert "\n" not in str(raised.value)


def test_no_server_is_not_ready() -> None:
    with pytest.raises(ModelUnavailable, match="no server answers"):
        asyncio.run(OpenAIGenerator(url=nobody(), model="m").check())


# --- a tokenizer of one's own

CHATML = (
    "{% for m in messages %}{{ '<|im_start|> ' + m.role + ' ' + m.content + ' <|im_end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ bos_token + ' assistant' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHATML
)
SHORT = ({"role": "system", "content": "one two"}, {"role": "user", "content": "three"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of words."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.enable_truncation(2)
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def counted(path: Path) -> int | None:
    made = OpenAIGenerator(url=nobody(), model="m", tokenizer=str(path))
    return asyncio.run(made.count_tokens(SHORT))


@pytest.mark.parametrize(
    ("template", "expected"), [(CHATML, 11), (NO_SYSTEM, 8), ("{{ no syntax", None), (None, 27)]
)
def test_a_folder_counts_with_its_template(
    folder: Path, template: str | None, expected: int | None
) -> None:
    config: dict[str, Any] = {"bos_token": {"content": "<|im_start|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    if expected is None:
        with pytest.raises(ConfigError, match=r"chat_template\.jinja cannot be used"):
            counted(folder)
    else:
        # Without a template the three words, and eight for each message and the answer's beginning.
        assert counted(folder) == counted(folder / "tokenizer.json") == expected


@pytest.mark.parametrize("named", [False, True])
def test_the_template_may_stand_in_the_configuration(folder: Path, named: bool) -> None:
    templates = [{"name": "tool_use", "template": "-"}, {"name": "default", "template": CHATML}]
    config = {"bos_token": "<|im_start|>", "chat_template": templates if named else CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert counted(folder) == 11


def test_a_template_cannot_reach_out_of_its_sandbox(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    assert counted(folder) == 27  # as without one


@pytest.mark.parametrize("content", [None, "{}", "[UNK]"])
def test_a_tokenizer_that_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"generator\.tokenizer"):
        counted(tmp_path)
