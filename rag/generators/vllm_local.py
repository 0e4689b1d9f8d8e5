"""vLLM in this process: AsyncLLM for answers that stream, LLM for many prompts at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from rag.errors import ContextTooLong, ModelError, ModelUnavailable, RagError
from rag.generators.vllm_engine import (
    Engine,
    Engines,
    in_thread,
    offline,
    outputs_of,
    pieces_of,
    streaming,
)
from rag.generators.vllm_model import VLLMModel, failure
from rag.generators.wire import Messages, check_finish
from rag.types import Prompt, Usage

P = ParamSpec("P")
T = TypeVar("T")

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "max_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)


class LocalVLLM:
    """Loads `model`, a folder or a hub id, when it is first asked to write.

    `engine` are vLLM's own engine arguments by name, such as {"tensor_parallel_size": 2}; `options`
    are vLLM's sampling parameters by name, and `chat_template` and `chat_template_kwargs`, as they
    would go into a request to its server. Sampling that is not set is the model's own.

    Any event loop may stream from it, and any thread. One engine runs at a time: to stream ends
    the one for batches, and the other way round. Closed, it may be used again.
    """

    notice = ""

    def __init__(
        self,
        *,
        model: str,
        max_tokens: int = 512,
        context_tokens: int = 0,
        first_token_s: float = 60.0,
        timeout_s: float = 300.0,
        options: Mapping[str, Any] | None = None,
        engine: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda _: None,
        **settings: Any,
    ) -> None:
        self.model = model
        self._first_token = first_token_s
        self._timeout = timeout_s
        given = {"max_tokens": max_tokens, **settings}
        sampling = {n: given[n] for n in _SAMPLING if given.get(n) not in (None, [])}
        arguments = {
            "model": model,
            **({"max_model_len": context_tokens} if context_tokens else {}),
            **(engine or {}),
        }
        self._engines = Engines(arguments, say)
        self._describe = partial(VLLMModel, arguments, {**sampling, **(options or {})})
        self._description: Future[VLLMModel] | None = None
        self._lock = threading.Lock()
        self._batch = threading.Lock()  # LLM is of one thread at a time

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        model = await asyncio.wrap_future(self._described())
        parameters = model.parameters(stream=True, **prompt.sampling.fields())
        tokens = await asyncio.to_thread(self._fitting, model, prompt)
        engine = self._engines.get(streaming)
        running = await asyncio.wrap_future(engine.loaded)
        here, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(piece: Any) -> None:
            with suppress(RuntimeError):  # the loop that asked is gone
                here.call_soon_threadsafe(pieces.put_nowait, piece)

        ends = time.monotonic() + self._timeout
        generating = engine.submit(pieces_of(running, tokens, parameters, put))
        generating.add_done_callback(put)
        thoughts, written, completion, finish = model.thoughts(tokens), False, 0, ""
        try:
            while not finish:
                left = ends - time.monotonic()
                async with asyncio.timeout(min(self._first_token, max(left, 0))):
                    piece = await pieces.get()
                if piece is generating:
                    raise generating.exception() or RuntimeError("it broke off its answer")
                (said,) = piece.outputs
                completion += len(said.token_ids)
                finish = said.finish_reason or ""
                text = thoughts.left_out(said.text) + (thoughts.rest() if finish else "")
                written = written or bool(text.strip())
                if text:
                    yield text
        except TimeoutError as error:
            raise ModelUnavailable(
                f"the engine of {self.model} took too long",
                "raise generator.first_token_s or generator.timeout_s",
            ) from error
        except Exception as error:
            raise self._failure(engine, error) from error
        finally:
            generating.cancel()  # vLLM then drops the request
        check_finish("vLLM", self.model, finish, written)
        yield Usage(len(tokens), completion, truncated=finish == "length")

    def generate(self, prompts: Sequence[Prompt]) -> list[tuple[str, Usage] | ModelError]:
        """All prompts in one batch, by vLLM's offline `LLM`.

        For each the whole text, or why there is none: one that fails does not fail the others.
        """
        if not prompts:
            return []
        model = self._described().result()
        parameters = model.parameters(stream=False)
        made = [_tried(self._fitting, model, prompt) for prompt in prompts]
        with self._batch:
            engine = self._engines.get(offline)
            running = engine.loaded.result()
            asked = [tokens for tokens in made if not isinstance(tokens, ModelError)]
            writing = engine.submit(outputs_of(running, asked, parameters))
            try:
                outputs = iter(writing.result())
            except Exception as error:
                raise self._failure(engine, error) from error
            finally:
                writing.cancel()  # where someone interrupts the wait
        return [
            tokens
            if isinstance(tokens, ModelError)
            else _tried(self._answer, model, tokens, next(outputs).outputs[0])
            for tokens in made
        ]

    async def window(self) -> int:
        """The engine's max_model_len. Starts no engine."""
        return self._window(await asyncio.wrap_future(self._described()))

    async def count_tokens(self, messages: Messages) -> int | None:
        """By the model's own tokenizer and chat template. Starts no engine."""
        model = await asyncio.wrap_future(self._described())
        return len(await asyncio.to_thread(model.tokens, messages))

    def close(self) -> None:
        """End the engine and free its memory. What it writes now fails with ModelUnavailable."""
        self._engines.close()

    def _described(self) -> Future[VLLMModel]:
        with self._lock:
            known = self._description
            if known is None or (known.done() and known.exception()):
                known = self._description = in_thread(self._describe)
            return known

    def _window(self, model: VLLMModel) -> int:
        # An engine may have taken a smaller one, to fit the memory.
        running = self._engines.running()
        return int((running or model).model_config.max_model_len)

    def _fitting(self, model: VLLMModel, prompt: Prompt) -> list[int]:
        tokens = model.tokens(prompt.messages)
        if len(tokens) >= self._window(model):
            raise ContextTooLong(
                f"{len(tokens)} tokens do not fit the window of {self.model}",
                "ask a shorter question, or set generator.engine.max_model_len higher",
            )
        return tokens

    def _answer(self, model: VLLMModel, tokens: list[int], said: Any) -> tuple[str, Usage]:
        thoughts = model.thoughts(tokens)
        text = thoughts.left_out(said.text) + thoughts.rest()
        check_finish("vLLM", self.model, said.finish_reason, bool(text.strip()))
        truncated = said.finish_reason == "length"
        return text, Usage(len(tokens), len(said.token_ids), truncated)

    def _failure(self, engine: Engine, error: Exception) -> RagError:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, EngineDeadError):
            engine.end()  # the next question starts another
        if isinstance(error, CancelledError):
            return ModelUnavailable("vLLM was closed while it answered", "ask again")
        return failure(self.model, error)


def _tried(make: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | ModelError:
    try:
        return make(*given, **named)
    except ModelError as error:
        return error
