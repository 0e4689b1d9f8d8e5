"""llama.cpp in this process, with real weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from servers import smollm2

from rag.errors import ConfigError, ContextTooLong, ModelUnavailable
from rag.generators.llamacpp import LlamaCppGenerator
from rag.types import Prompt, Usage

STORY = "Tell me a long story about a lighthouse keeper."
ENGINE = {"n_threads": 1, "warmup": False}


def asking(text: str) -> Prompt:
    return Prompt(text, (), ({"role": "user", "content": text},))


@pytest.fixture(scope="module")
def generator() -> Iterator[LlamaCppGenerator]:
    generator = LlamaCppGenerator(
        model=str(smollm2()), max_tokens=24, context_tokens=1024, engine=ENGINE
    )
    yield generator
    generator.close()


def run(generator: LlamaCppGenerator, text: str) -> list[str | Usage]:
    async def collect() -> list[str | Usage]:
        return [piece async for piece in generator.stream(asking(text))]

    return asyncio.run(collect())


def test_streams_with_the_usage_at_the_end(generator: LlamaCppGenerator) -> None:
    *pieces, usage = run(generator, STORY)
    assert len(pieces) > 10
    assert isinstance(usage, Usage)
    assert (usage.completion_tokens, usage.truncated) == (24, True)
    assert generator.model == "SmolLM2-135M-Instruct.Q4_1"


def test_counts_tokens_as_the_model_gets_them(generator: LlamaCppGenerator) -> None:
    *_, usage = run(generator, STORY)
    assert isinstance(usage, Usage)
    counted = asyncio.run(generator.count_tokens(asking(STORY).messages))
    assert counted == usage.prompt_tokens
    assert asyncio.run(generator.window()) == 1024


def test_what_is_longer_than_the_window_is_too_long(generator: LlamaCppGenerator) -> None:
    with pytest.raises(ContextTooLong):
        run(generator, "word " * 2000)


def test_leaving_the_stream_leaves_the_model_free() -> None:
    """It has one slot, and would keep it for 880 tokens more; another answer begins before 200."""
    endless = LlamaCppGenerator(
        model=str(smollm2()),
        max_tokens=900,
        context_tokens=1024,
        options={"ignore_eos": True},
        engine=ENGINE,
    )

    async def leave() -> None:
        now = asyncio.get_running_loop().time
        started = now()
        async with aclosing(endless.stream(asking(STORY))) as pieces:
            for _ in range(20):
                await anext(pieces)
            taken = now() - started
        async with asyncio.timeout(10 * taken), aclosing(endless.stream(asking("Hi"))) as pieces:
            assert await anext(pieces)

    asyncio.run(leave())
    endless.close()


def test_nobody_else_may_use_its_port(generator: LlamaCppGenerator) -> None:
    address = generator._engine.listening_address
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(HTTPError, match="401"):
        urlopen(f"{address}/v1/models", timeout=10)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "/nowhere.gguf"}, ConfigError, "no file"),
        ({"model": ""}, ConfigError, "no file"),
        ({"engine": {"n_gpu_layer": 3}}, ConfigError, "n_gpu_layers"),
        ({"engine": {"n_ctx": "many"}}, ConfigError, r"engine\.n_ctx"),
    ],
)
def test_wrong_settings_are_told_in_a_line(
    changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        LlamaCppGenerator(**{"model": str(smollm2()), **changes})


def test_a_file_that_is_no_model_is_told_in_a_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelUnavailable, match="cannot load"):
        LlamaCppGenerator(model=str(broken))
