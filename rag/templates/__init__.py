"""The texts of the prompts: files that a user replaces by files of the same name."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from rag.errors import ConfigError

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.name for path in FOLDER.glob("*.j2")))


class Templates:
    """The texts in `folder`, and for those that it does not hold the ones that come along."""

    def __init__(self, folder: Path | None = None) -> None:
        """Raises ConfigError for a folder that is not there, or one with an unknown template."""
        if folder is not None:
            _check(folder)
        self._folder = folder
        self._environment = _environment(folder)

    @property
    def stamp(self) -> str:
        """What changes when a template is replaced or edited."""
        own = sorted(self._folder.glob("*.j2")) if self._folder else []
        return " ".join(f"{path.name}:{path.stat().st_mtime_ns}" for path in own)

    def render(self, name: str, **values: Any) -> str:
        """The text of a template, such as "system". Raises ConfigError for a mistake in it."""
        try:
            return self._environment.get_template(f"{name}.j2").render(**values).strip()
        except Exception as error:  # whatever the template does
            line = getattr(error, "lineno", None)
            where = f" in line {line}" if line else ""
            raise ConfigError(
                f"the template {name}.j2 has a mistake{where} ({error})",
                f"compare it with {FOLDER / name}.j2",
            ) from error

    def source(self, name: str) -> str:
        """The text of a template as it is written, before anything is filled in."""
        loader = self._environment.loader
        assert loader is not None
        return loader.get_source(self._environment, f"{name}.j2")[0]


@cache  # a compiled template is kept, and read again when its file changes
def _environment(folder: Path | None) -> Environment:
    folders = [FOLDER] if folder is None else [folder, FOLDER]
    return SandboxedEnvironment(
        loader=ChoiceLoader([FileSystemLoader(place) for place in folders]),
        undefined=StrictUndefined,
        keep_trailing_newline=False,
    )


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"answer.templates is {folder}, no folder", "see: rag config templates")
    for path in folder.glob("*.j2"):
        if path.name not in NAMES:
            raise ConfigError(f"{path} replaces no template", "templates are: " + ", ".join(NAMES))
