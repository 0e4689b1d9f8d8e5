"""vLLM: a server by URL, or without one the engine in this process (rag/generators/vllm_local)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from rag.errors import ConfigError, MissingExtra
from rag.generators.openai import OpenAIGenerator
from rag.generators.servers import VLLM
from rag.protocols import Generator


class VLLMServer(OpenAIGenerator):
    """A server that is known to be vLLM, so that nothing has to be found out."""

    server = VLLM


def vllm_generator(*, url: str = "", model: str = "", **settings: Any) -> Generator:
    """A generator for `url`; where that is empty, one that loads `model` into this process.

    Raises MissingExtra, ConfigError.
    """
    if url:
        return VLLMServer(url=url, model=model, **settings)
    if find_spec("vllm") is None:
        raise MissingExtra(
            "the generator 'vllm' without a url needs vllm",
            "set generator.url to a server, or on a GPU host: pip install 'ragline[vllm]'",
        )
    if not model:
        raise ConfigError(
            "generator.kind is vllm, and neither a server nor a model is named",
            "set generator.url to a server, or generator.model to load one here",
        )
    from rag.generators.vllm_local import LocalVLLM

    return LocalVLLM(model=model, **settings)
