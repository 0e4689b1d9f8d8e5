"""Any server with OpenAI's chat API: vLLM, TGI, llama-server, Ollama, TensorRT-LLM, SGLang."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import openai
from pydantic import BaseModel, SecretStr, field_validator

from rag.errors import ModelError, ModelUnavailable
from rag.openai_api import TRANSPORT_ERRORS, check_url, refusal, translated
from rag.types import Prompt, Usage

_CUT_SHORT = {"content_filter", "abort", "error"}  # a finish_reason that means half an answer


class OpenAIGenerator:
    """Streams from /chat/completions at `url`.

    Until the answer begins, connection errors, 429 and 5xx are tried again, `retries` times.
    `timeout_s` bounds each silence: before the first token, retries included, and from token to
    token. The whole answer is bounded by `max_tokens`.
    """

    notice = ""

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key: SecretStr | None = None,
        temperature: float = 0.0,
        max_tokens: int = 512,
        timeout_s: float = 120.0,
        retries: int = 2,
        options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """`options` go into each request, such as {"top_k": 1}; None takes a field out of it."""
        check_url(url, "generator")
        self.model = model
        self._discover = not model
        self._url = url
        self._fields: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "stream_options": {"include_usage": True},
            **(options or {}),
        }
        self._key = api_key.get_secret_value().strip() if api_key else ""
        self._timeout = timeout_s
        limit = self._fields.get("max_tokens") or self._fields.get("max_completion_tokens")
        # A piece has a token or more; a server that sends twice as many ignores the limit.
        self._most = 2 * limit + 64 if limit else math.inf
        self._retries = retries

    async def stream(self, prompt: Prompt) -> AsyncIterator[str | Usage]:
        reading = _Reading(self._url)
        try:
            async with aclosing(self._events(prompt)) as events:
                while not reading.done:
                    async with asyncio.timeout(self._timeout):
                        event = await anext(events, b"[END]")
                    if text := reading.text_of(event):
                        yield text
                    if reading.pieces > self._most:
                        raise ModelUnavailable(f"{self._url} does not stop", "look at its log")
        except TRANSPORT_ERRORS as error:
            # What comes after the finish reason is only the usage.
            if not reading.finish:
                raise self._failure(error, reading) from error
        self._check(reading)
        yield replace(reading.usage, truncated=reading.finish == "length")

    async def _events(self, prompt: Prompt) -> AsyncGenerator[bytes]:
        """The data of each server-sent event. Closing it closes the connection: the engine stops.

        Read here and not by the client's own stream, which hides whether [DONE] came and does not
        check the shape of what it gives.
        """
        async with self._client() as client:
            if not self.model:
                self.model = await _served(client)
            messages: list[Any] = list(prompt.messages)
            async with client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=messages,
                stream=True,
                extra_body={k: v for k, v in self._fields.items() if v is not None},
            ) as response:
                rest = b""
                async for piece in response.iter_bytes():
                    # On \n alone: U+2028 and its like may stand inside the JSON.
                    *lines, rest = (rest + piece).split(b"\n")
                    for line in lines:
                        if line.startswith(b"data:"):
                            yield line[5:].strip()

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            # No read timeout: the client would ask again when it passes, and a server's pings
            # would keep it from passing.
            timeout=openai.Timeout(None, connect=5.0),
            max_retries=self._retries,
        )

    def _failure(self, error: Exception, reading: _Reading) -> ModelError:
        if isinstance(error, TimeoutError):
            wait = f"{self._timeout:g} s"
            said = f"sent nothing for {wait}" if reading.written else f"did not answer in {wait}"
            return ModelUnavailable(
                f"{self._url} {said}", "try again, or raise generator.timeout_s"
            )
        failure = translated(error, "generator", self._url)
        if isinstance(error, openai.NotFoundError) and self._discover:
            self.model = ""  # the server has another one now: ask it next time
        return failure

    def _check(self, reading: _Reading) -> None:
        """Raise if what came is not a whole answer."""
        if not (reading.finish or reading.whole):
            if reading.written:
                raise ModelUnavailable(f"{self._url} broke off its answer", "try again")
            raise ModelUnavailable(
                f"{self._url} does not stream an answer",
                "check generator.url (it ends in /v1), and the server's log",
            )
        if reading.finish in _CUT_SHORT:
            raise ModelError(
                f"{self._url} stopped its answer ({reading.finish})", "look at the server's log"
            )
        if not reading.written:
            # Not an abstention: the model has a word for that.
            raise ModelError(
                f"{self.model} gave an empty answer",
                "raise generator.max_tokens (a reasoning model may spend it all before it answers)"
                if reading.finish == "length"
                else "look at the server's log",
            )


async def _served(client: openai.AsyncOpenAI) -> str:
    """The first model that the server lists."""
    response = await client.models.with_raw_response.list()
    models = _Models.model_validate(json.loads(response.content)).data
    if not models:
        raise ModelUnavailable(f"{client.base_url} serves no model", "set generator.model")
    return models[0].id


class _Reading:
    """What is known so far of one streamed answer."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.done = False  # nothing more is to be read
        self.whole = False  # the server said that this is all
        self.written = False
        self.pieces = 0
        self.finish = ""
        self.usage = Usage()

    def text_of(self, event: bytes) -> str:
        """The text that an event brings. ValueError if it is not of the protocol."""
        if event in (b"[DONE]", b"[END]"):
            self.done = True
            self.whole = event == b"[DONE]"
            return ""
        chunk = _Chunk.model_validate_json(event)
        if chunk.error:
            raise chunk.error.refusal(self._url)
        if chunk.usage:
            self.usage = Usage(chunk.usage.prompt_tokens or 0, chunk.usage.completion_tokens or 0)
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        self.finish = choice.finish_reason or self.finish
        text = (choice.delta and choice.delta.content) or ""
        self.written = self.written or bool(text.strip())
        self.pieces += bool(text)
        return text


# The fields of the protocol that are read. Servers leave out, add and null the others.
class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


class _Delta(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Error(BaseModel):
    message: str = ""
    code: int | str | None = None

    def refusal(self, url: str) -> ModelError:
        code = str(self.code)
        status = int(code) if code.isdecimal() else 500
        return refusal(status, self.message, "generator", url)


class _Chunk(BaseModel):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: _Error | None = None

    @field_validator("error", mode="before")
    @classmethod
    def _in_words(cls, error: Any) -> Any:
        return {"message": error} if isinstance(error, str) else error
