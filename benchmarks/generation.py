"""What `rag` adds to a language model's own time: to the first token, and with 16 answers at once.

    python benchmarks/generation.py --url http://127.0.0.1:8000/v1 [--questions 40] [--tokens 64]

The sample corpus is ingested, and its English questions are asked. To the first token: `rag` from
question to first token (embedding, search, prompt, count, request), its generator alone, and a bare
HTTP request with the same prompt, in turn; the prompt is sent once before, so that a server that
caches prefixes has it for all. Throughput: tokens a second of bare streams, of the generator alone
and of whole answers, in rounds one after the other, because machines are noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import islice
from pathlib import Path

import httpx2

from rag.answer import Answerer, Done, Token
from rag.app import App
from rag.generators.openai import OpenAIGenerator
from rag.settings import load
from rag.types import Prompt, Usage

ROOT = Path(__file__).parents[1]
sys.path.pop(0)  # the script's own folder would make `stores` the script beside this one


async def bare(
    client: httpx2.AsyncClient, url: str, model: str, prompt: Prompt, tokens: int
) -> tuple[float, int]:
    """Seconds to the first token of a request, and how many tokens came."""
    body = {
        "model": model,
        "messages": list(prompt.messages),
        "max_tokens": tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    started, first, count = time.perf_counter(), 0.0, 0
    async with client.stream("POST", f"{url}/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                told = json.loads(line[6:])
                if told.get("choices") and told["choices"][0]["delta"].get("content"):
                    first = first or time.perf_counter() - started
                count = (told.get("usage") or {}).get("completion_tokens", count)
    return first, count


async def generated(generator: OpenAIGenerator, prompt: Prompt) -> tuple[float, int]:
    """The same, by the generator."""
    started, first, count = time.perf_counter(), 0.0, 0
    async with aclosing(generator.stream(prompt)) as pieces:
        async for piece in pieces:
            first = first or time.perf_counter() - started
            if isinstance(piece, Usage):
                count = piece.completion_tokens
    return first, count


async def answered(answerer: Answerer, question: str) -> tuple[float, int]:
    """The same, from the question to the answer with its citations."""
    started, first, count = time.perf_counter(), 0.0, 0
    async with aclosing(answerer.stream(question, 3)) as events:
        async for event in events:
            if isinstance(event, Token):
                first = first or time.perf_counter() - started
            if isinstance(event, Done):
                count = event.answer.usage.completion_tokens
    return first, count


async def together(ask: Callable[[int], Awaitable[tuple[float, int]]], most: int, n: int) -> float:
    """Tokens a second of `n` answers, `most` at a time."""
    turns = asyncio.Semaphore(most)

    async def one(number: int) -> int:
        async with turns:
            return (await ask(number))[1]

    started = time.perf_counter()
    counts = await asyncio.gather(*(one(number) for number in range(n)))
    return sum(counts) / (time.perf_counter() - started)


async def measure(app: App, questions: Sequence[str], tokens: int, rounds: int) -> None:
    """Measure, and print a line for each figure."""
    url = app.settings.generator.url
    generator = app.generator
    assert isinstance(generator, OpenAIGenerator)
    model = await generator.check()
    with app.answerer() as answerer:
        async with httpx2.AsyncClient(timeout=300) as client:
            drafts = [await answerer.prepared(question, 3, None, ()) for question in questions]
            prompts = [draft.prompt for draft in drafts]
            took: dict[str, list[float]] = {"bare": [], "generator": [], "rag": []}
            for question, prompt in zip(questions, prompts, strict=True):
                await bare(client, url, model, prompt, 1)
                took["rag"].append((await answered(answerer, question))[0])
                took["bare"].append((await bare(client, url, model, prompt, tokens))[0])
                took["generator"].append((await generated(generator, prompt))[0])
            p50 = {name: statistics.median(times) * 1e3 for name, times in took.items()}
            print(f"{len(questions)} questions, {tokens} tokens each, model {model}")
            for name, ms in p50.items():
                print(f"first token, {name:<9} p50 {ms:7.1f} ms, {ms - p50['bare']:+6.1f}")

            def nth(number: int) -> int:
                return number % len(questions)

            rates: dict[str, list[float]] = {"bare": [], "generator": [], "rag": []}
            for _ in range(rounds):
                rates["bare"].append(
                    await together(
                        lambda n: bare(client, url, model, prompts[nth(n)], tokens), 16, 48
                    )
                )
                rates["generator"].append(
                    await together(lambda n: generated(generator, prompts[nth(n)]), 16, 48)
                )
                rates["rag"].append(
                    await together(lambda n: answered(answerer, questions[nth(n)]), 16, 48)
                )
            best = {name: statistics.median(values) for name, values in rates.items()}
            for name, rate in best.items():
                print(
                    f"16 at a time, {name:<9} {rate:7.1f} tokens/s, "
                    f"{rate / best['bare']:.1%} of the bare streams"
                )


def main() -> None:
    """Parse the arguments, ingest and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    lines = (ROOT / "sample_corpus/eval/queries.jsonl").read_text("utf-8").splitlines()
    english = (q["text"] for q in map(json.loads, lines) if q["metadata"]["lang"] == "en")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "data_dir": folder,
            "generator.url": asked.url,
            "generator.max_tokens": asked.tokens,
            "generator.options": {"ignore_eos": True},
            "answer.min_evidence": 0,
        }
        app = App(load(settings).settings)
        app.ingest([ROOT / "sample_corpus"], metadata={})
        asyncio.run(
            measure(app, list(islice(english, asked.questions)), asked.tokens, asked.rounds)
        )
        app.close()


if __name__ == "__main__":
    main()
