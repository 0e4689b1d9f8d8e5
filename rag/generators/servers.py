"""What servers tell besides answers: the model's window, and how many tokens messages have.

Paths are those beside /v1. No answer needs any of this: what is not told is 0 or None.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

from rag.generators.wire import Messages

Ask: TypeAlias = "Callable[[str, dict[str, Any] | None], Awaitable[Any]]"
"""Gives the JSON at a path, got or posted to; {} where there is none."""


class Server:
    """A server of which nothing is known but that it has OpenAI's API, such as TensorRT-LLM."""

    async def window(self, ask: Ask, model: str) -> int:
        """The tokens that prompt and answer may take together; 0 where it does not say."""
        return 0

    async def count(self, ask: Ask, model: str, messages: Messages) -> int | None:
        """The tokens of chat messages, the chat template included; None if it cannot say."""
        return None


class VLLM(Server):
    """vLLM, and others whose /v1/models gives max_model_len."""

    async def window(self, ask: Ask, model: str) -> int:
        entries = (await ask("/v1/models", None)).get("data", [])
        # An adapter's entry has none: the model's that it adapts counts.
        entries.sort(key=lambda entry: entry.get("id") != model)
        return int(next((e["max_model_len"] for e in entries if e.get("max_model_len")), 0))

    async def count(self, ask: Ask, model: str, messages: Messages) -> int | None:
        asked = {"model": model, "messages": messages, "add_generation_prompt": True}
        count: int | None = (await ask("/tokenize", asked)).get("count")
        return count


class LlamaServer(Server):
    """llama.cpp's llama-server."""

    async def window(self, ask: Ask, model: str) -> int:
        told = await ask("/props", None)
        return int(told.get("default_generation_settings", {}).get("n_ctx", 0))

    async def count(self, ask: Ask, model: str, messages: Messages) -> int | None:
        prompt = (await ask("/apply-template", {"model": model, "messages": messages})).get(
            "prompt"
        )
        if prompt is None:
            return None
        asked = {"model": model, "content": prompt, "add_special": True, "parse_special": True}
        tokens = (await ask("/tokenize", asked)).get("tokens")
        return None if tokens is None else len(tokens)


class TGI(Server):
    """Hugging Face's text-generation-inference."""

    async def window(self, ask: Ask, model: str) -> int:
        told = await ask("/info", None)
        return int(told.get("max_total_tokens") or told.get("max_input_tokens") or 0)

    async def count(self, ask: Ask, model: str, messages: Messages) -> int | None:
        told = await ask("/chat_tokenize", {"model": model, "messages": messages})
        tokens = told.get("tokenize_response")
        return None if tokens is None else len(tokens)


class Ollama(Server):
    """Ollama. It cuts longer prompts without a word, and its window is small unless it is set."""

    async def window(self, ask: Ask, model: str) -> int:
        """0 while the model is not loaded: only then its window is fixed."""
        for loaded in (await ask("/api/ps", None)).get("models", []):
            if model in (loaded.get("name"), str(loaded.get("name")).removesuffix(":latest")):
                return int(loaded.get("context_length", 0))
        return 0


_OWNERS: dict[str, type[Server]] = {
    "vllm": VLLM,
    "llamacpp": LlamaServer,
    "tensorrt_llm": Server,
    "openai": Server,
    "system": Server,
}


async def recognised(ask: Ask) -> Server | None:
    """Which server it is, from what it lists; None if it does not answer."""
    models = await ask("/v1/models", None)
    first: dict[str, Any] = next(iter(models.get("data", [])), {})
    if known := _OWNERS.get(first.get("owned_by", "")):
        return known()
    if first.get("max_model_len"):
        return VLLM()
    told = await ask("/info", None)
    if "max_total_tokens" in told or "max_input_tokens" in told:
        return TGI()
    if "models" in await ask("/api/ps", None):
        return Ollama()
    return Server() if models else None
