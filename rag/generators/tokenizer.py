"""Counts a model's tokens with its own tokenizer and chat template, from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from rag.errors import ConfigError
from rag.generators.concessions import two_roles
from rag.generators.wire import Messages

_PER_MESSAGE = 8
"""Allowed for what a chat template puts around a message: ChatML and Llama 3 put five tokens."""


class Tokenizer:
    """The tokenizer in a tokenizer.json, or in a folder with one.

    The chat template is beside it, in chat_template.jinja or tokenizer_config.json. Without one,
    eight tokens are allowed for each message and for the answer's beginning.
    """

    def __init__(self, path: str) -> None:
        """ConfigError if there is no such file."""
        given = Path(path).expanduser()
        self._file = given / "tokenizer.json" if given.is_dir() else given
        if not self._file.is_file():
            raise ConfigError(
                f"there is no tokenizer {self._file}",
                "set generator.tokenizer to a tokenizer.json or to the model's folder",
            )

    def count(self, messages: Messages) -> int:
        """The tokens of chat messages as the model gets them. Safe in several threads."""
        prompt = self._rendered(messages)
        if prompt is not None:
            return self._tokens(prompt)
        return sum(self._tokens(m["content"]) + _PER_MESSAGE for m in messages) + _PER_MESSAGE

    def _rendered(self, messages: Messages) -> str | None:
        """The prompt; None without a template that takes these messages."""
        from jinja2 import TemplateError

        if self._template is not None:
            for taken in (messages, two_roles(messages)):  # the second as in `wire.CONCESSIONS`
                with suppress(TemplateError):
                    return str(self._template.render(messages=taken, **self._names))
        return None

    def _tokens(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer as Loaded

        try:
            tokenizer = Loaded.from_file(str(self._file))
        except Exception as error:  # the library raises Exception itself
            raise _unusable(self._file, error) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        file = self._file.with_name("tokenizer_config.json")
        try:
            config: Mapping[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
        except ValueError as error:
            raise _unusable(file, error) from error
        return config

    @cached_property
    def _names(self) -> dict[str, Any]:
        """What templates ask for. Special tokens are texts, or objects with a content."""
        special = {name: self._config.get(name) or "" for name in ("bos_token", "eos_token")}
        return {
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
            **{n: str(t["content"] if isinstance(t, dict) else t) for n, t in special.items()},
        }

    @cached_property
    def _template(self) -> Any:
        from jinja2 import TemplateSyntaxError

        file = self._file.with_name("chat_template.jinja")
        source = file.read_text("utf-8") if file.is_file() else self._config.get("chat_template")
        if isinstance(source, list):  # templates by name
            source = next((t["template"] for t in source if t["name"] == "default"), None)
        try:
            return _compiled(source) if source else None
        except TemplateSyntaxError as error:
            raise _unusable(file, error) from error


def _unusable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file} cannot be used ({error})", "mend it, or set generator.tokenizer")


def _compiled(source: str) -> Any:
    """The template as transformers would run it, but kept from harm: its maker wrote it."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(words: str) -> NoReturn:
        raise TemplateError(words)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **kwargs: json.dumps(
        value, ensure_ascii=False, **kwargs
    )
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)
