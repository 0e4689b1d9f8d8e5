"""Any server with OpenAI's chat API: vLLM, TGI, llama-server, Ollama, TensorRT-LLM, SGLang."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import SecretStr

from rag.errors import ContextTooLong, ModelError, ModelUnavailable
from rag.generators.clients import Clients
from rag.generators.concessions import Concession, concession
from rag.generators.patience import Clock, retrying
from rag.generators.probe import Probe
from rag.generators.servers import Server
from rag.generators.tokenizer import Tokenizer
from rag.generators.wire import Messages, Reading
from rag.model_server import TRANSPORT_ERRORS, Refused, check_url, too_long, translated
from rag.types import Prompt, Usage

_LAST_CHUNK_S = 0.1  # it follows [DONE] at once


class OpenAIGenerator:
    """Streams from /chat/completions at `url`; with `stream` off, asks for the answer whole.

    Until the answer begins, connection errors and 5xx are tried again, `retries` times, after
    `backoff_s` seconds, doubled each time, and a random part of as many. `first_token_s` bounds the
    wait for the first token, retries included, and each silence from token to token; `timeout_s`
    bounds the whole answer. What is None is not sent.
    """

    notice = ""
    server: ClassVar[type[Server] | None] = None
    """The kind of server, where it need not be found out."""
    backoff_s = 0.5

    def __init__(
        self,
        *,
        url: str,
        model: str,
        api_key: SecretStr | None = None,
        stream: bool = True,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        repetition_penalty: float | None = None,
        context_tokens: int = 0,
        tokenizer: str = "",
        first_token_s: float = 60.0,
        timeout_s: float = 300.0,
        retries: int = 2,
        options: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """`options` go into each request, such as {"min_p": 0.1}; None takes a field out of it."""
        check_url(url, "generator")
        self.model = model
        self._asked_for = model  # "" until the server's own is discovered
        self._discover = not model
        self._url = url.rstrip("/")
        self._stream = stream
        fields = {
            "stream": stream,
            "stream_options": {"include_usage": True} if stream else None,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_tokens": max_tokens,
            "stop": list(stop) or None,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "repetition_penalty": repetition_penalty,
            **(options or {}),
        }
        self._fields = {name: value for name, value in fields.items() if value is not None}
        self._context_tokens = context_tokens
        self._tokenizer = Tokenizer(tokenizer) if tokenizer else None
        self._first_token = first_token_s
        self._timeout = timeout_s
        self._retries = retries
        self._clients = Clients(api_key.get_secret_value().strip() if api_key else "")
        self._conceded: list[Concession] = []
        self._probe = Probe(self._url, self._clients, self._conceded, self.server)

    async def stream(self, prompt: Prompt) -> AsyncGenerator[str | Usage]:
        clock = Clock(self._first_token if self._stream else self._timeout, self._timeout)
        reading = Reading(self._url)
        try:
            async with asyncio.timeout_at(clock.deadline()):
                first, reading, texts = await self._begun(prompt, clock)
            async with aclosing(texts):
                if first:
                    yield first
                async for text in texts:
                    if text:
                        yield text
        except (Refused, *TRANSPORT_ERRORS) as error:
            # What comes after the finish reason is only the usage.
            if not reading.finish:
                raise self._failure(error, reading, clock) from error
        reading.check(self.model)
        yield replace(reading.usage, truncated=reading.finish == "length")

    async def check(self) -> str:
        """The name of the served model: `model` if the server lists it, else the first listed.

        ModelUnavailable if the server is not ready.
        """
        return await self._probe.ready(self._asked_for)

    async def window(self) -> int:
        """`context_tokens`, or the server's own limit where that is lower or none is set."""
        told = await self._probe.window(self._asked_for)
        return min(self._context_tokens or told, told or self._context_tokens)

    async def count_tokens(self, messages: Messages) -> int | None:
        """Counted with `tokenizer` if that is set, else by the server."""
        if self._tokenizer:
            return await asyncio.to_thread(self._tokenizer.count, messages)
        return await self._probe.count(self._asked_for, messages)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; they close with the loop otherwise."""
        await self._clients.aclose()

    async def _begun(
        self, prompt: Prompt, clock: Clock
    ) -> tuple[str, Reading, AsyncGenerator[str]]:
        """The first token, and what goes on reading after it."""
        trying = retrying(self._retries, self.backoff_s, clock)
        if not self._asked_for:
            self.model = self._asked_for = (await trying(self._probe.listed))[0]
            self._probe.doubt()  # it was asked of no model in particular before
        asked = {"model": self._asked_for, "messages": list(prompt.messages)}
        asked |= self._fields | prompt.sampling.fields()
        while True:
            body, made = asked, list(self._conceded)
            for known in made:
                body = known.change(body)
            try:
                return await trying(self._attempt, body, clock)
            except Refused as refused:
                more = concession(refused.status, refused.said, made)
                if more is None:
                    raise
                if more not in self._conceded:  # another answer may have been refused as well
                    self._conceded.append(more)

    async def _attempt(
        self, body: dict[str, Any], clock: Clock
    ) -> tuple[str, Reading, AsyncGenerator[str]]:
        reading = Reading(self._url)
        texts = self._texts(body, reading, clock)
        return await anext(texts, ""), reading, texts

    async def _texts(
        self, body: dict[str, Any], reading: Reading, clock: Clock
    ) -> AsyncGenerator[str]:
        """The answer as it comes; "" for a token that is no text of it, such as of reasoning.

        Closing it closes the connection: the engine stops.
        """
        client = await self._clients.get()
        url = f"{self._url}/chat/completions"
        try:
            async with client.stream("POST", url, json=body) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise Refused(response)
                if response.headers.get("content-type", "").startswith("application/json"):
                    for text in reading.body(await response.aread()):
                        yield text
                    return
                async with (
                    aclosing(response.aiter_bytes()) as pieces,
                    aclosing(_read(pieces, reading, clock)) as texts,
                ):
                    async for text in texts:
                        yield text
        except (Refused, ContextTooLong, *TRANSPORT_ERRORS) as error:
            self._doubt(error)
            raise

    def _doubt(self, error: Exception) -> None:
        """Ask the server anew what it is, if `error` may mean that another one answers by now."""
        if isinstance(error, Refused):
            if error.status == 404 and self._discover:
                self._asked_for = ""
            if error.status != 404 and not too_long(error.status, error.said):
                return
        self._probe.doubt()

    def _failure(self, error: Exception, reading: Reading, clock: Clock) -> ModelError:
        if isinstance(error, TimeoutError):
            if clock.over():
                said, setting = f"did not finish its answer in {self._timeout:g} s", "timeout_s"
            else:
                wait = f"{self._first_token:g} s"
                said = f"sent nothing for {wait}" if reading.tokens else f"did not answer in {wait}"
                setting = "first_token_s"
            return ModelUnavailable(
                f"{self._url} {said}", f"try again, or raise generator.{setting}"
            )
        return translated(error, "generator", self._url)


async def _read(
    pieces: AsyncIterator[bytes], reading: Reading, clock: Clock
) -> AsyncGenerator[str]:
    """As in `OpenAIGenerator._texts`. TimeoutError if a token is late."""
    while not reading.done:
        async with asyncio.timeout_at(clock.deadline(reading)):
            data = await anext(pieces, b"")
        before, silent = (reading.tokens, reading.finish), True
        for text in reading.feed(data):
            silent = False
            yield text
        if (reading.tokens, reading.finish) != before:
            if silent:
                yield ""
            clock.heard()
    with suppress(*TRANSPORT_ERRORS):  # read to its end, the connection is used again
        async with asyncio.timeout(_LAST_CHUNK_S):
            await anext(pieces, b"")
