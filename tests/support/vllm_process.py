"""What vLLM does in a process of its own, as JSON; tests/rag/test_vllm.py runs it.

    python vllm_process.py MODEL DATASET ANSWERS

First a generator that streams, with a chat template that refuses a system role and opens the
model's thoughts when it is asked to think; then `rag eval DATASET --answers --out ANSWERS`.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, redirect_stdout
from typing import Any
from weakref import ref

from rag.errors import RagError
from rag.types import Prompt

ENGINE = {"max_model_len": 1024, "max_num_seqs": 8, "dtype": "bfloat16", "enforce_eager": True}
TEMPLATE = """{% for m in messages %}\
{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if 'Think' in messages[-1].content %}<think>{% endif %}"""
PIECES = 16
RULES = {"role": "system", "content": "Tell stories."}


def main(model: str, dataset: str, answers: str) -> dict[str, Any]:
    from rag.generators.vllm import vllm_generator

    found: dict[str, Any] = {}
    engines = counted()
    generator: Any = vllm_generator(
        model=model,
        max_tokens=800,
        temperature=0.0,
        options={"chat_template": TEMPLATE, "ignore_eos": True},
        engine=ENGINE,
    )
    found["window"] = asyncio.run(generator.window())
    joined = {"role": "user", "content": "Tell stories.\n\nTell one."}
    found["tokens"] = [
        asyncio.run(generator.count_tokens(messages))
        for messages in ([RULES, {"role": "user", "content": "Tell one."}], [joined])
    ]
    wrong: list[dict[str, Any]] = [
        {"options": {"temperature": -1}},
        {"engine": {"dtype": "float17"}},
        {"engine": {"tensor_paralel_size": 2}},
        {"options": {"chat_template": "{{ raise_exception('No!') }}"}},
    ]
    found["refused"] = [
        refusal(vllm_generator(**{"model": model, "engine": ENGINE, **settings}))
        for settings in wrong
    ]
    found["before"] = names(engines)

    found["together"], found["free"] = asyncio.run(together(generator))
    found["streaming"] = names(engines)
    found["loops"] = [asyncio.run(begun(generator)) for _ in range(2)]
    found["cancelled"] = asyncio.run(cancelled(generator, engines[0]))
    found["thoughts"] = refusal(generator, "Think of " + "words " * 980)
    found["closed"] = asyncio.run(closed(generator))

    del engines[:]
    found["eval"] = evaluated(dataset, answers)
    found["batches"] = names(engines)
    return found


def counted() -> list[tuple[str, ref[Any]]]:
    """The engines that are made from now on, in order, with their kind."""
    from vllm import LLM
    from vllm.v1.engine.async_llm import AsyncLLM

    made: list[tuple[str, ref[Any]]] = []

    def count(kind: Any) -> None:
        make = kind.__init__

        def counting(self: Any, *given: Any, **named: Any) -> None:
            made.append((kind.__name__, ref(self)))
            make(self, *given, **named)

        kind.__init__ = counting

    count(LLM)
    count(AsyncLLM)
    return made


def names(engines: list[tuple[str, ref[Any]]]) -> list[str]:
    return [name for name, _ in engines]


def asking(text: str) -> Prompt:
    return Prompt(text, (), (RULES, {"role": "user", "content": text}))


async def begun(generator: Any, text: str = "Tell one about a lighthouse.") -> str:
    """The first pieces of an answer."""
    pieces = []
    async with aclosing(generator.stream(asking(text))) as stream:
        async for piece in stream:
            pieces.append(piece)
            if len(pieces) == PIECES:
                break
    return "".join(pieces)


async def together(generator: Any) -> tuple[list[str], bool]:
    """Eight answers begun while nothing is loaded, and whether threads are free meanwhile."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    tasks = [asyncio.create_task(begun(generator)) for _ in range(8)]
    asked = time.monotonic()
    for _ in range(20):  # by then all eight wait
        await asyncio.gather(*(asyncio.to_thread(time.sleep, 0.01) for _ in range(8)))
    free = time.monotonic() - asked < 5  # to load takes longer
    return await asyncio.gather(*tasks), free


async def cancelled(generator: Any, engine: tuple[str, ref[Any]]) -> list[int]:
    """The engine's unfinished requests while an answer streams, and soon after it is left."""
    started = asyncio.Event()

    async def follow() -> None:
        async for _ in generator.stream(asking("Tell a long one.")):
            started.set()

    def unfinished() -> int:
        running: Any = engine[1]()
        return int(running.get_num_unfinished_requests())

    ends = time.monotonic() + 5  # 800 tokens take much longer
    while unfinished() and time.monotonic() < ends:
        await asyncio.sleep(0.05)
    task = asyncio.create_task(follow())
    await started.wait()
    counts = [unfinished()]
    task.cancel()
    await asyncio.wait([task])
    ends = time.monotonic() + 5
    while unfinished() and time.monotonic() < ends:
        await asyncio.sleep(0.05)
    return [*counts, unfinished()]


async def closed(generator: Any) -> list[str]:
    """What an answer says whose generator is closed meanwhile."""
    stream = generator.stream(asking("Tell a long one."))
    await anext(stream)
    await asyncio.to_thread(generator.close)
    try:
        async for _ in stream:
            pass
    except RagError as error:
        return [type(error).__name__, str(error)]
    return []


def refusal(generator: Any, text: str = "Tell one.") -> list[str]:
    """The kind and the line of the error that an answer ends with."""

    async def answer() -> None:
        async for _ in generator.stream(asking(text)):
            pass

    try:
        asyncio.run(answer())
    except RagError as error:
        return [type(error).__name__, str(error)]
    return []


def evaluated(dataset: str, answers: str) -> Any:
    """What `rag eval DATASET --answers --json` prints."""
    from rag.cli import main as rag

    with redirect_stdout(io.StringIO()) as printed:
        assert rag(["eval", dataset, "--answers", "--json", "--out", answers]) == 0
    return json.loads(printed.getvalue())


if __name__ == "__main__":  # vLLM's own processes import this file
    print(json.dumps(main(*sys.argv[1:])))
