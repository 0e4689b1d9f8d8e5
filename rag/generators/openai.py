"""Any server with OpenAI's chat API: vLLM, TGI, llama-server, Ollama, TensorRT-LLM, SGLang."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from typing import Any

import openai
from pydantic import SecretStr

from rag.errors import ConfigError, ContextTooLong, ModelError, ModelUnavailable
from rag.types import Prompt, Usage


class OpenAIGenerator:
    """Streams from /chat/completions at `url`. Retries on connection errors and 5xx."""

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
        options: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not url:
            raise ConfigError(
                "generator.url is not set", "set it to the server's URL, ending in /v1"
            )
        self.model = model
        self._url = url
        self._arguments: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            **(options or {}),
        }
        self._key = api_key.get_secret_value() if api_key else ""
        self._timeout = timeout_s

    async def stream(self, prompt: Prompt) -> AsyncIterator[str | Usage]:
        client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key or "none",
            timeout=openai.Timeout(self._timeout, connect=5.0),
        )
        messages: Iterable[Any] = prompt.messages
        try:
            async with client:
                if not self.model:
                    self.model = await self._served(client)
                answer = await client.chat.completions.create(
                    model=self.model,
                    messages=messages,
                    stream=True,
                    stream_options={"include_usage": True},
                    **self._arguments,
                )
                # Closing the response closes the connection, which stops the engine.
                async with aclosing(answer.response):
                    async for chunk in answer:
                        if chunk.choices and chunk.choices[0].delta.content:
                            yield chunk.choices[0].delta.content
                        if chunk.usage:
                            yield Usage(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        except openai.OpenAIError as error:
            raise self._translated(error) from error
        except (OSError, ValueError) as error:  # broken off, or not the protocol
            raise ModelUnavailable(
                f"{self._url} broke off its answer ({type(error).__name__})", "try again"
            ) from error

    async def _served(self, client: openai.AsyncOpenAI) -> str:
        async for model in client.models.list():
            return model.id
        raise ModelUnavailable(f"{self._url} serves no model", "set generator.model")

    def _translated(self, error: openai.OpenAIError) -> ModelError:
        if isinstance(error, openai.APITimeoutError):
            return ModelUnavailable(
                f"{self._url} did not answer in {self._timeout:g} s",
                "try again, or raise generator.timeout_s",
            )
        if isinstance(error, openai.APIConnectionError):
            return ModelUnavailable(
                f"no model server answers at {self._url}", "start it, or set generator.url"
            )
        said = " ".join(str(getattr(error, "message", "") or error).split())[:200]
        status = getattr(error, "status_code", None)
        if status == 400 and ("context" in said or "too long" in said or "maximum" in said):
            return ContextTooLong(
                f"the prompt is too long for {self.model} ({said})", "set generator.context_tokens"
            )
        if status in (401, 403):
            return ModelError(f"{self._url} refused the key ({status})", "set generator.api_key")
        if status == 404:
            return ModelError(
                f"{self._url} does not know {self.model!r} ({said})",
                "check generator.url (it ends in /v1) and generator.model",
            )
        return ModelUnavailable(
            f"{self._url} failed ({status or said})", "look at the server's log"
        )
