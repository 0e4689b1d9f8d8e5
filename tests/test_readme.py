"""What README.md shows is what happens."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import rag

from rag.cli import cli
from rag.errors import EXIT_CODES
from rag.settings import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def timeless(text: str) -> list[str]:
    """The lines without those that tell seconds, and scores to one place: they vary a little."""
    lines = [line for line in text.strip().splitlines() if not re.match(r"\d+\.\d s: ", line)]
    return [re.sub(r"(score \d\.\d)\d", r"\1x", line) for line in lines]


@pytest.mark.usefixtures("models_dir")
def test_the_transcript_is_real() -> None:
    transcript = README.split("```text\n")[1].split("```")[0]
    turns = re.split(r"^\$ ", transcript, flags=re.MULTILINE)[1:]
    assert len(turns) >= 4
    for turn in turns:
        command, _, shown = turn.partition("\n")
        name, *arguments = shlex.split(command)
        assert name == "rag"
        assert timeless(rag(*arguments, cwd=ROOT).out) == timeless(shown), command


def test_every_command_and_exit_status_is_listed() -> None:
    for name in cli.commands:
        assert f"`rag {name}" in README, name
    for status, meaning in EXIT_CODES.items():
        assert f"| {status} | {meaning} |" in README


def test_the_settings_shown_are_settings(tmp_path: Path) -> None:
    shown = README.split("```toml\n")[1].split("```")[0]
    (tmp_path / "rag.toml").write_text(shown, "utf-8")
    loaded = load({}, tmp_path / "rag.toml")
    assert loaded.settings.embedder.model == "intfloat/multilingual-e5-small"


def test_the_settings_of_the_service_are_all_shown_with_their_defaults(tmp_path: Path) -> None:
    shown = (ROOT / "docs" / "service.md").read_text("utf-8").split("```toml\n")[1].split("```")[0]
    (tmp_path / "rag.toml").write_text(shown, "utf-8")
    loaded, default = load({}, tmp_path / "rag.toml").settings, load({}).settings
    written = tomllib.loads(shown)
    for name in ("service", "cache", "oidc"):
        section = getattr(default, name)
        assert getattr(loaded, name) == section
        assert set(written[name]) == set(type(section).model_fields)


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_snippets_run_and_find_the_leave(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "Leave is 25 days" in done.stdout
