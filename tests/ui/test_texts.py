"""The page says the same in each language, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest

import ui
from ui import texts

SOURCES = [path.read_text("utf-8") for path in Path(ui.__file__).parent.glob("*.py")]


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_each_language_has_the_same_texts_with_the_same_values() -> None:
    english, chinese = texts.read("en"), texts.read("zh")
    assert english.keys() == chinese.keys()
    for name, text in english.items():
        assert text.strip() and chinese[name].strip(), name
        assert fields(text) == fields(chinese[name]), name
        assert name == "language" or not re.search("[\u4e00-\u9fff]", text), name


def test_every_text_is_used_and_every_used_one_is_there() -> None:
    known, all_of_it = texts.read("en"), "\n".join(SOURCES)
    quoted = set(re.findall(r"""["']([a-z]+[.][a-z_0-9]+)["']""", all_of_it))
    made = re.findall(r'f"([a-z]+\.[a-z_]*)\{', all_of_it)  # such as f"side.mode_{one}"
    sections = {name.partition(".")[0] for name in known if "." in name}
    used = {name for name in quoted if name.partition(".")[0] in sections}
    assert used <= known.keys()
    unused = {n for n in known if n not in used and not any(n.startswith(m) for m in made)}
    assert unused == {"language"}


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("zh-CN", "zh"),
        ("zh", "zh"),
        ("ZH-hans-cn", "zh"),
        ("en-GB", "en"),
        ("de", "en"),
        (None, "en"),
    ],
)
def test_the_language_is_that_of_the_browser(locale: str | None, language: str) -> None:
    assert texts.of_browser(locale) == language


def test_values_are_filled_in_as_they_are() -> None:
    say = texts.texts("en")
    assert say("passage.picture", page=3, name="{x}.pdf") == "Page 3 of {x}.pdf"
