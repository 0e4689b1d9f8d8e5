"""What the page says, in the language of who looks at it: a file for each language."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, TypeAlias

LANGUAGES = ("en", "zh")

Texts: TypeAlias = Callable[..., str]
"""texts("chat.stop"): the text of that name; values for what stands in braces come by name."""


def of_browser(locale: str | None) -> str:
    """The language for what a browser asks for, such as zh-CN; English for any other."""
    return "zh" if (locale or "").lower().partition("-")[0] == "zh" else "en"


@cache
def texts(language: str) -> Texts:
    """The texts in one of `LANGUAGES`."""
    known = read(language)

    def text(name: str, /, **values: object) -> str:
        return Formatter().vformat(known[name], (), values) if values else known[name]

    return text


@cache
def read(language: str) -> dict[str, str]:
    """All texts by their names, such as "chat.stop"."""
    file = Path(__file__).with_name(f"{language}.toml")
    return dict(_flat("", tomllib.loads(file.read_text("utf-8"))))


def _flat(above: str, part: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in part.items():
        found += (
            _flat(f"{above}{name}.", value) if isinstance(value, dict) else [(above + name, value)]
        )
    return found
