"""vLLM's engines in this process: one at a time, each in a thread with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from rag.errors import ModelUnavailable
from rag.generators.vllm_model import failure

T = TypeVar("T")
Start: TypeAlias = Callable[[Mapping[str, Any]], tuple[Any, Callable[[], None]]]
"""Loads an engine from its arguments; gives it, and what ends it."""

_END_S = 30.0  # an engine that has not ended by then hangs, and is left behind


def streaming(arguments: Mapping[str, Any]) -> tuple[Any, Callable[[], None]]:
    """AsyncLLM, for answers that stream. It belongs to the event loop that runs now."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    return engine, engine.shutdown


def offline(arguments: Mapping[str, Any]) -> tuple[Any, Callable[[], None]]:
    """LLM, for many prompts at once."""
    from vllm import LLM

    engine = LLM(**arguments)
    return engine, engine.llm_engine.engine_core.shutdown


async def pieces_of(
    engine: Any, tokens: list[int], parameters: Any, put: Callable[[Any], None]
) -> None:
    """Put the pieces of an answer by AsyncLLM as they come."""
    async for piece in engine.generate({"prompt_token_ids": tokens}, parameters, uuid4().hex):
        put(piece)


async def outputs_of(engine: Any, prompts: Sequence[list[int]], parameters: Any) -> list[Any]:
    """What LLM writes to each prompt. Of one batch at a time."""
    asked = [{"prompt_token_ids": tokens} for tokens in prompts]
    ids = engine.enqueue(asked, parameters, use_tqdm=False)
    done: list[Any] = []
    try:
        while len(done) < len(ids):
            # Step by step, not by LLM.generate, so that it can be closed meanwhile.
            await asyncio.sleep(0)
            done += [output for output in engine.llm_engine.step() if output.finished]
    finally:
        if len(done) < len(ids):
            engine.llm_engine.abort_request(ids, internal=True)
    return sorted(done, key=lambda output: int(output.request_id))


class Engine:
    """The life of one engine, from loading to its end. Once ended, it is not used again.

    `loaded` gives vLLM's own engine, or why it could not be loaded. Who waits for it cannot
    cancel it for the others.
    """

    def __init__(self, start: Start, arguments: Mapping[str, Any], before: Engine | None) -> None:
        """Starts to load once the engine `before` has ended: both would not fit into the memory."""
        self.start = start
        self.loaded: Future[Any] = Future()
        self.loaded.set_running_or_notify_cancel()
        self.ended = False
        self._arguments = arguments
        self._before = before
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Let `work` run beside the engine, which cancels it when it ends."""
        with self._lock:
            if self.ended:
                work.close()
                raise _closed()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def end(self) -> None:
        """Let it end, once it is loaded; does not wait for it."""
        with self._lock:
            if not self.ended:
                self.ended = True
                with suppress(RuntimeError):  # it could not be loaded, and has ended
                    self._loop.call_soon_threadsafe(self._end.set)

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended, and its memory is free."""
        self._thread.join(seconds)

    def _live(self) -> None:
        if self._before:
            self._before.end()
            self._before.wait()
            self._before = None
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        try:
            if self.ended:
                raise _closed()
            engine, shutdown = self.start(self._arguments)
        except BaseException as error:  # whatever it is, someone waits
            self.end()
            told = failure(self._arguments["model"], error)
            told.__cause__ = error
            self.loaded.set_exception(told)
            return
        self.loaded.set_result(engine)
        await self._end.wait()
        shutdown()
        # Nothing may hold it: what is left at the interpreter's end fails to free itself.
        self.loaded = Future()
        self.loaded.set_exception(_closed())


class Engines:
    """Engines with the same arguments, of which one runs at a time. `say` hears of each start."""

    def __init__(self, arguments: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._arguments = arguments
        self._say = say
        self._lock = threading.Lock()
        self._current: Engine | None = None

    def get(self, start: Start) -> Engine:
        """The engine that `start` makes, loading or loaded; one that runs otherwise is ended."""
        with self._lock:
            now = self._current
            if now is None or now.ended or now.start is not start:
                self._say(f"loading {self._arguments['model']} into vLLM, which takes a while")
                now = self._current = Engine(start, self._arguments, before=now)
            return now

    def running(self) -> Any:
        """vLLM's own engine, if one is loaded."""
        now = self._current
        loaded = now.loaded if now and not now.ended else None
        return loaded.result() if loaded and loaded.done() and not loaded.exception() else None

    def close(self) -> None:
        """End the engine. One that is still loading ends by itself as soon as it is loaded."""
        with self._lock:
            now = self._current
        if now:
            now.end()
            if now.loaded.done():
                now.wait(_END_S)


def _closed() -> ModelUnavailable:
    return ModelUnavailable("vLLM was closed", "ask again")


def in_thread(make: Callable[[], T]) -> Future[T]:
    """What `make` gives, made in a thread of its own. Who waits for it cannot cancel it."""
    made: Future[T] = Future()
    made.set_running_or_notify_cancel()

    def work() -> None:
        try:
            made.set_result(make())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=work, name="vllm", daemon=True).start()
    return made
