"""vLLM with real weights: its server by URL, and its engines in a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from commands import rag
from servers import wait_until
from vllm_server import CONTEXT_TOKENS, MODEL, PYTHON, SETTINGS, WEIGHTS, install, vllm_server

from rag.errors import ConfigError, ContextTooLong
from rag.generators.openai import OpenAIGenerator
from rag.generators.vllm import vllm_generator
from rag.types import Prompt, Usage

STORY = "Tell me a long story about a lighthouse keeper."
PAGE = "# Depot\n\nThe depot opens at seven in the morning. Parking costs four pounds a day.\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(tmp_path_factory.mktemp("vllm") / "log") as url:
        yield url


def asking(text: str, system: str = "") -> Prompt:
    messages = [{"role": "system", "content": system}] if system else []
    return Prompt(text, (), (*messages, {"role": "user", "content": text}))


def generator(server: str, **settings: Any) -> OpenAIGenerator:
    made = vllm_generator(url=f"{server}/v1", **settings)
    assert isinstance(made, OpenAIGenerator)
    return made


def run(made: OpenAIGenerator, prompt: Prompt) -> list[str | Usage]:
    async def collect() -> list[str | Usage]:
        return [piece async for piece in made.stream(prompt)]

    return asyncio.run(collect())


def text_of(pieces: list[str | Usage]) -> str:
    return "".join(piece for piece in pieces if isinstance(piece, str))


def usage_of(pieces: list[str | Usage]) -> Usage:
    usage = pieces[-1]
    assert isinstance(usage, Usage)
    return usage


def test_it_is_ready_and_names_its_model_and_window(server: str) -> None:
    made = generator(server)
    assert asyncio.run(made.check()) == MODEL
    assert asyncio.run(made.window()) == CONTEXT_TOKENS


def test_streams_with_the_usage_at_the_end(server: str) -> None:
    pieces = run(generator(server, max_tokens=12), asking(STORY))
    assert len(pieces) > 5
    assert usage_of(pieces) == Usage(usage_of(pieces).prompt_tokens, 12, truncated=True)


def test_the_whole_answer_at_once_is_the_same(server: str) -> None:
    streamed, whole = (
        run(generator(server, max_tokens=12, stream=stream), asking(STORY))
        for stream in (True, False)
    )
    assert len(whole) == 2
    assert text_of(whole) == text_of(streamed)
    assert usage_of(whole) == usage_of(streamed)


@pytest.mark.parametrize("system", ["", "Answer in Chinese. 用中文回答。"])
def test_tokens_are_counted_as_the_engine_counts_them(server: str, system: str) -> None:
    made = generator(server, max_tokens=2)
    prompt = asking(STORY, system)
    counted = asyncio.run(made.count_tokens(prompt.messages))
    assert counted == usage_of(run(made, prompt)).prompt_tokens


def test_sampling_reaches_the_engine(server: str) -> None:
    def told(**sampling: Any) -> str:
        return text_of(run(generator(server, max_tokens=16, **sampling), asking(STORY)))

    greedy = told()
    assert told(temperature=2.0, top_k=1) == greedy
    assert told(temperature=1.5, seed=7) == told(temperature=1.5, seed=7)
    assert told(temperature=1.5, seed=7) != told(temperature=1.5, seed=8)
    assert told(repetition_penalty=2.0) != greedy
    first = greedy.split()[3]
    assert first not in told(stop=[first])
    forced = told(options={"logit_bias": {"260": 100}})
    assert forced == forced[: len(forced) // 16] * 16


def test_what_is_longer_than_the_window_is_too_long(server: str) -> None:
    with pytest.raises(ContextTooLong):
        run(generator(server), asking("word " * 3000))


@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_leaving_the_stream_stops_the_engine(server: str, way: str) -> None:
    def running() -> float:
        with urlopen(f"{server}/metrics", timeout=10) as response:
            found = re.search(
                r"^vllm:num_requests_running\{.*\} (\S+)$", response.read().decode(), re.M
            )
        assert found
        return float(found[1])

    pieces: AsyncGenerator[str | Usage] = generator(
        server, max_tokens=1800, options={"ignore_eos": True}
    ).stream(asking(STORY))

    async def leave() -> None:
        if way == "closed":
            async with aclosing(pieces):
                await anext(pieces)
                assert await asyncio.to_thread(running) == 1
        else:
            begun = asyncio.Event()

            async def follow() -> None:
                async for _ in pieces:
                    begun.set()

            task = asyncio.create_task(follow())
            await begun.wait()
            assert await asyncio.to_thread(running) == 1
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(leave())
    wait_until(lambda: running() == 0, 5)  # 1,800 tokens take half a minute


def test_a_question_is_answered_by_the_server(server: str, tmp_path: Path) -> None:
    (tmp_path / "depot.md").write_text(PAGE)
    assert rag("ingest", tmp_path).status == 0
    environment = {
        "RAG_GENERATOR_KIND": "vllm",
        "RAG_GENERATOR_URL": f"{server}/v1",
        "RAG_GENERATOR_MAX_TOKENS": "48",
    }
    answer = rag("ask", "When does the depot open?", "--json", **environment).json
    assert answer["model"] == MODEL
    assert answer["degraded"] == []
    assert answer["usage"]["prompt_tokens"] > 100
    assert answer["dropped"] == 0
    assert answer["statements"]
    for statement in answer["statements"]:
        assert answer["answer"][statement["start"] : statement["end"]] == statement["text"]


# --- in a process


def in_environment(*arguments: str | Path, **environment: str) -> Any:
    """What Python with vLLM and `rag` prints last, as JSON."""
    install()
    done = subprocess.run(
        [PYTHON, *arguments],
        env={**os.environ, **SETTINGS, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


ENGINE = {
    "RAG_GENERATOR_KIND": "vllm",
    "RAG_GENERATOR_MODEL": str(WEIGHTS),
    "RAG_GENERATOR_MAX_TOKENS": "32",
    "RAG_GENERATOR_ENGINE": json.dumps(
        {"max_model_len": 1024, "max_num_seqs": 8, "dtype": "bfloat16", "enforce_eager": True}
    ),
}


def test_a_question_is_answered_by_the_engine_in_the_process(tmp_path: Path) -> None:
    """`rag ask` streams from AsyncLLM."""
    (tmp_path / "depot.md").write_text(PAGE)
    assert rag("ingest", tmp_path).status == 0
    question = "When does the depot open?"
    answer = in_environment("-m", "rag.cli", "ask", question, "--json", **ENGINE)
    assert answer["model"] == str(WEIGHTS)
    assert answer["degraded"] == []
    assert answer["notice"] in ("", "the answer was cut off at generator.max_tokens")
    assert answer["usage"]["completion_tokens"] > 0
    assert answer["timings_ms"]["first_token"] > 0


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/support/vllm_process.py found, and the `answers` that its `rag eval` wrote."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "qrels").mkdir()
    rows = [("d1", "Depot", PAGE), ("d2", "Moon", "The moon is made of rock. It has no air.")]
    asked = [
        ("q1", "When does the depot open?", "d1", "seven"),
        ("q2", "What does parking at the depot cost?", "d1", "four pounds"),
        ("q3", "What is the moon made of?", "d2", "rock"),
    ]
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in rows)
    )
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": q, "answers": [a]}) + "\n" for i, q, _, a in asked)
    )
    (folder / "qrels/test.tsv").write_text("".join(f"{i}\t{d}\t1\n" for i, _, d, _ in asked))
    out = folder / "answers.jsonl"
    script = Path(__file__).parents[1] / "support" / "vllm_process.py"
    environment = {
        **ENGINE,
        "RAG_DATA_DIR": str(folder / "data"),
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    found: dict[str, Any] = in_environment(script, WEIGHTS, folder, out, **environment)
    return {**found, "answers": [json.loads(line) for line in out.read_text().splitlines()]}


def test_the_window_and_the_tokens_need_no_engine(process: dict[str, Any]) -> None:
    assert process["window"] == 1024
    assert process["before"] == []


def test_without_a_system_role_the_rules_go_to_the_user(process: dict[str, Any]) -> None:
    assert len(set(process["tokens"])) == 1


def test_what_is_wrong_is_told_in_a_line(process: dict[str, Any]) -> None:
    sampling, argument, unknown, template = process["refused"]
    assert sampling[0] == argument[0] == unknown[0] == "ConfigError"
    assert "temperature" in sampling[1]
    assert "bfloat16" in argument[1]
    assert "did you mean tensor_parallel_size" in unknown[1]
    assert template[0] == "ModelError"
    assert "chat template" in template[1] and "No!" in template[1]
    assert not any("\n" in line for _, line in process["refused"])


def test_eight_that_come_at_once_share_an_engine(process: dict[str, Any]) -> None:
    assert process["streaming"] == ["AsyncLLM"]
    assert process["free"], "no thread of the event loop waits for the engine"
    assert len(process["together"]) == 8
    assert all(process["together"])


def test_any_event_loop_streams_from_it(process: dict[str, Any]) -> None:
    first, second = process["loops"]
    assert first == second != ""


def test_cancelling_a_stream_stops_the_engine_in_the_process(process: dict[str, Any]) -> None:
    assert process["cancelled"] == [1, 0]


def test_thoughts_are_no_answer(process: dict[str, Any]) -> None:
    kind, line = process["thoughts"]
    assert kind == "ModelError"
    assert "empty answer" in line and "max_tokens" in line


def test_an_answer_fails_when_its_generator_is_closed(process: dict[str, Any]) -> None:
    kind, line = process["closed"]
    assert kind == "ModelUnavailable"
    assert "closed" in line


def test_answers_are_measured_by_one_engine_in_batches(process: dict[str, Any]) -> None:
    """`rag eval --answers` gives all prompts to LLM at once, and AsyncLLM is not started."""
    assert process["batches"] == ["LLM"]
    assert process["eval"]["settings"]["models"] == [str(WEIGHTS)]
    assert [answer["_id"] for answer in process["answers"]] == ["q1", "q2", "q3"]
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in process["answers"])
    assert all(answer["degraded"] == [] for answer in process["answers"])


def test_without_a_server_or_a_model_it_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"generator\.(url|kind)|vllm"):
        vllm_generator()
