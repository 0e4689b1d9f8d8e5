"""vLLM in this process: AsyncLLM for answers that stream, LLM for many prompts at once."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any
from uuid import uuid4

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable
from rag.types import Prompt, Usage

_TEMPLATE = ("chat_template", "chat_template_kwargs")  # options that shape the prompt
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


class VLLMEngine:
    """Loads `model`, a folder or a hub id, when it is first used.

    `engine` are vLLM's own engine arguments by name, such as {"tensor_parallel_size": 2}; `options`
    are vLLM's sampling parameters by name, and `chat_template` and `chat_template_kwargs`, as they
    would go into a request to its server. Sampling that is not set is the model's own.

    The engine runs in a thread with an event loop of its own, so any loop may stream from it.
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
        self._say = say
        given = {"max_tokens": max_tokens, **settings}
        sampling = {n: given[n] for n in _SAMPLING if given.get(n) not in (None, [])}
        extra = dict(options or {})
        self._template = {name: extra.pop(name) for name in _TEMPLATE if name in extra}
        self._sampling = {**sampling, **extra}
        self._arguments = {
            "model": model,
            **({"max_model_len": context_tokens} if context_tokens else {}),
            **(engine or {}),
        }
        self._lock = threading.Lock()
        self._async: Any = None
        self._offline: Any = None

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        engine = await asyncio.to_thread(self._started)
        tokens = self._tokens(engine, prompt.messages)
        here, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(piece: Any) -> None:
            with suppress(RuntimeError):  # the loop that asked is gone
                here.call_soon_threadsafe(pieces.put_nowait, piece)

        ends = time.monotonic() + self._timeout
        generating = self._submit(self._generate(engine, tokens, put))
        try:
            completion, finish = 0, None
            while finish is None:
                left = ends - time.monotonic()
                async with asyncio.timeout(min(self._first_token, max(left, 0))):
                    piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise self._failure(piece) from piece
                (said,) = piece.outputs
                completion += len(said.token_ids)
                finish = said.finish_reason
                if said.text:
                    yield said.text
        except TimeoutError as error:
            raise ModelUnavailable(
                f"the engine of {self.model} took too long",
                "raise generator.first_token_s or generator.timeout_s",
            ) from error
        finally:
            generating.cancel()  # vLLM then drops the request
        yield Usage(len(tokens), completion, truncated=finish == "length")

    def generate(self, prompts: Sequence[Prompt]) -> list[tuple[str, Usage]]:
        """All prompts in one batch, by vLLM's offline `LLM`."""
        if not prompts:
            return []
        engine = self._loaded_offline()
        conversations = [list(prompt.messages) for prompt in prompts]
        try:
            found = engine.chat(
                conversations, self._parameters(engine), use_tqdm=False, **self._template
            )
        except Exception as error:
            raise self._failure(error) from error
        return [
            (
                output.outputs[0].text,
                Usage(
                    len(output.prompt_token_ids),
                    len(output.outputs[0].token_ids),
                    truncated=output.outputs[0].finish_reason == "length",
                ),
            )
            for output in found
        ]

    async def window(self) -> int:
        """The engine's max_model_len."""
        engine = await asyncio.to_thread(self._any)
        return int(engine.model_config.max_model_len)

    async def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int | None:
        """By the model's own tokenizer and chat template."""
        return len(self._tokens(await asyncio.to_thread(self._any), messages))

    def close(self) -> None:
        """End the engine and free its memory."""
        with self._lock:
            engine, self._async, self._offline = self._async, None, None
            if engine is not None:

                async def stop() -> None:
                    engine.shutdown()

                self._submit(stop()).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                del self._loop

    async def _generate(self, engine: Any, tokens: list[int], put: Callable[[Any], None]) -> None:
        try:
            prompt = {"prompt_token_ids": tokens}
            async for piece in engine.generate(prompt, self._parameters(engine), uuid4().hex):
                put(piece)
        except Exception as error:
            put(error)

    def _parameters(self, engine: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        own = engine.model_config.get_diff_sampling_param()
        kind = RequestOutputKind.DELTA if engine is self._async else RequestOutputKind.FINAL_ONLY
        try:
            return SamplingParams(**{**own, **self._sampling}, output_kind=kind)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"vLLM refuses the sampling parameters ({error})",
                "check generator.options and the settings beside it",
            ) from error

    def _tokens(self, engine: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
        template = dict(self._template)
        template |= template.pop("chat_template_kwargs", {})
        found = engine.get_tokenizer().apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=True, **template
        )
        tokens: list[int] = list(found["input_ids"])
        if len(tokens) >= engine.model_config.max_model_len:
            raise ContextTooLong(
                f"{len(tokens)} tokens do not fit the window of {self.model}",
                "ask a shorter question, or set generator.engine.max_model_len higher",
            )
        return tokens

    def _any(self) -> Any:
        """An engine that tells about the model: the one that runs already, if one does."""
        return self._offline or self._started()

    def _started(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        with self._lock:
            if self._async is None:
                self._check(AsyncEngineArgs)

                async def start() -> Any:
                    return AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))

                self._async = self._load(lambda: self._submit(start()).result())
            return self._async

    def _loaded_offline(self) -> Any:
        from vllm import LLM
        from vllm.engine.arg_utils import EngineArgs

        with self._lock:
            if self._offline is None:
                self._check(EngineArgs)
                self._offline = self._load(lambda: LLM(**self._arguments))
            return self._offline

    def _load(self, make: Callable[[], Any]) -> Any:
        # Its log of hundreds of lines is for who asks for it.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._say(f"loading {self.model} into vLLM, which takes a while")
        try:
            return make()
        except Exception as error:
            raise self._failure(error) from error

    def _check(self, arguments: Any) -> None:
        known = [field.name for field in fields(arguments)]
        for name in self._arguments:
            if name not in known:
                close = get_close_matches(name, known, n=3)
                raise ConfigError(
                    f"vLLM has no engine argument {name!r} (generator.engine)",
                    f"did you mean {' or '.join(close)}?" if close else "see vLLM's documentation",
                )

    def _failure(self, error: Exception) -> ModelError:
        from vllm.v1.engine.exceptions import EngineDeadError

        if isinstance(error, ModelError):
            return error
        said = " ".join(str(error).split())[:300]
        if isinstance(error, EngineDeadError):
            self._async = None  # the next question starts another
        return ModelUnavailable(
            f"vLLM failed with {self.model} ({said or type(error).__name__})",
            "set VLLM_LOGGING_LEVEL=INFO to see its log",
        )

    def _submit(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="vllm", daemon=True).start()
        return loop
