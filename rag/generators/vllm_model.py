"""What vLLM knows of a model without an engine: its window, its tokens, its sampling."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from rag.errors import ConfigError, ModelError, ModelUnavailable, RagError
from rag.generators.concessions import two_roles
from rag.generators.wire import Messages, Thoughts

_TEMPLATE = ("chat_template", "chat_template_kwargs")  # options that shape the prompt
_TAIL = 8  # tokens, in which the end of a prompt may open the model's thoughts


class VLLMModel:
    """A model as vLLM's engine `arguments` describe it.

    `sampling` are vLLM's sampling parameters by name, and may hold `chat_template` and
    `chat_template_kwargs`. Making one reads the model's configuration and tokenizer, which takes
    seconds, but no weights. Raises ConfigError, ModelUnavailable.
    """

    def __init__(self, arguments: Mapping[str, Any], sampling: Mapping[str, Any]) -> None:
        # Its log of hundreds of lines is for who asks for it; read when vLLM is imported.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        from vllm.engine.arg_utils import EngineArgs
        from vllm.tokenizers import cached_tokenizer_from_config

        self.name = arguments["model"]
        _check(arguments, EngineArgs)
        try:
            self.model_config = EngineArgs(**arguments).create_model_config()
            self._own = self.model_config.get_diff_sampling_param()
            self._tokenizer = cached_tokenizer_from_config(self.model_config)
        except Exception as error:
            raise failure(self.name, error) from error
        self._sampling = {n: value for n, value in sampling.items() if n not in _TEMPLATE}
        given = {n: sampling[n] for n in _TEMPLATE if n in sampling}
        of_template = given.pop("chat_template_kwargs", {})
        self._template = {**given, **of_template}

    def tokens(self, messages: Messages) -> list[int]:
        """The prompt by the model's own tokenizer and chat template.

        ModelError if the template does not take the messages, even without a system role.
        """
        from jinja2 import TemplateError

        try:
            try:
                return self._rendered(messages)
            except TemplateError:
                return self._rendered(two_roles(messages))
        except Exception as error:  # a template's, and those of tokenizers with no template
            raise ModelError(
                f"the chat template of {self.name} fails ({_said(error)})",
                "set generator.options.chat_template to one that takes the prompt",
            ) from error

    def thoughts(self, tokens: list[int]) -> Thoughts:
        """What leaves out the thoughts of an answer to a prompt, which may have opened them."""
        thoughts = Thoughts()
        if self._tokenizer.decode(tokens[-_TAIL:]).rstrip().endswith(Thoughts.OPEN):
            thoughts.left_out(Thoughts.OPEN)
        return thoughts

    def parameters(self, *, stream: bool, **asked: float) -> Any:
        """The sampling parameters; what is not set is the model's own. Raises ConfigError."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        kind = RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY
        try:
            return SamplingParams(**{**self._own, **self._sampling, **asked}, output_kind=kind)
        except Exception as error:  # of many kinds, msgspec's among them
            raise ConfigError(
                f"vLLM refuses the sampling parameters ({_said(error)})",
                "check generator.options and the settings beside it",
            ) from error

    def _rendered(self, messages: Messages) -> list[int]:
        tokens: list[int] = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
            **self._template,
        )
        return tokens


def failure(model: str, error: BaseException) -> RagError:
    """What an error of vLLM means: a setting is wrong, or the engine cannot be used."""
    from vllm.exceptions import VLLMClientError
    from vllm.v1.engine.exceptions import EngineGenerateError

    if isinstance(error, RagError):
        return error
    if isinstance(error, EngineGenerateError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, (TypeError, ValueError, VLLMClientError)):
        return ConfigError(
            f"vLLM refuses what it is given for {model} ({_said(error)})",
            "check generator.model, generator.engine and generator.options",
        )
    return ModelUnavailable(
        f"vLLM failed with {model} ({_said(error)})",
        "set VLLM_LOGGING_LEVEL=INFO to see its log",
    )


def _said(error: BaseException) -> str:
    from pydantic import ValidationError

    said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return " ".join(said.split())[:300] or type(error).__name__


def _check(arguments: Mapping[str, Any], known_by: Any) -> None:
    known = [field.name for field in fields(known_by)]
    for name in arguments:
        if name not in known:
            close = get_close_matches(name, known, n=3)
            raise ConfigError(
                f"vLLM has no engine argument {name!r} (generator.engine)",
                f"did you mean {' or '.join(close)}?" if close else "see vLLM's documentation",
            )
