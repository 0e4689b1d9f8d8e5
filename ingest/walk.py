"""From the paths that a user names to the files to read."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from rag.errors import InputError

IGNORE_FILE = ".ragignore"


@dataclass(slots=True)
class Walk:
    """What was found. `files` are absolute and sorted; `roots` are the folders named.

    `named` are files given by name; `unreadable` has folders that could not be listed, with the
    reason, so that nobody takes the files in them for vanished.
    """

    files: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    roots: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)

    def covers(self, source: str) -> bool:
        """Whether this walk would have met `source` if the file were there and not ignored."""
        path = Path(source)
        return any(path.is_relative_to(root) for root in self.roots) and not any(
            path.is_relative_to(folder) for folder in self.unreadable
        )


def walk(paths: Sequence[Path]) -> Walk:
    """Every regular file under `paths`; hidden ones and those that a .ragignore names left out.

    A .ragignore has the syntax of .gitignore and holds for its folder and all below it, where a
    deeper one can overrule it. A link to a file counts as the file; links to folders are not
    followed. Raises InputError for a path that is not there and for folders without any file.
    """
    found = Walk()
    files: set[Path] = set()
    for path in paths:
        absolute = Path(os.path.abspath(path))
        if not _exists(absolute):
            raise InputError(f"there is no file or folder {path}", "check the path")
        if absolute.is_dir():
            found.roots.append(absolute)
            files.update(_below(absolute, found))
        else:
            found.named.add(absolute)
            files.add(absolute)
    if not files and not found.unreadable:
        names = ", ".join(str(path) for path in paths)
        raise InputError(f"{names} holds no files", "name a folder with documents in it")
    found.files = sorted(files)
    return found


def _below(root: Path, found: Walk) -> list[Path]:
    files: list[Path] = []
    rules: dict[Path, GitIgnoreSpec] = {}

    def note(error: OSError) -> None:
        found.unreadable[Path(error.filename)] = error.strerror or str(error)

    for parent, folders, names in os.walk(root, onerror=note):
        folder = Path(parent)
        if IGNORE_FILE in names:
            try:
                rules[folder] = _read_rules(folder / IGNORE_FILE)
            except (OSError, ValueError) as error:  # then nobody knows what must stay out
                found.unreadable[folder] = f"its {IGNORE_FILE}: {error}"
                folders.clear()
                continue
        folders[:] = [name for name in folders if _wanted(folder / name, True, rules)]
        files += [folder / name for name in names if _wanted(folder / name, False, rules)]
    return files


def _read_rules(path: Path) -> GitIgnoreSpec:
    if not is_regular(path):
        raise ValueError("is not a regular file")
    return GitIgnoreSpec.from_lines(path.read_text("utf-8-sig").splitlines())


def _wanted(path: Path, is_folder: bool, rules: dict[Path, GitIgnoreSpec]) -> bool:
    if path.name.startswith("."):
        return False
    for folder in path.parents:  # the deepest that says anything decides
        if folder in rules:
            name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
            ignored = rules[folder].check_file(name).include
            if ignored is not None:
                return not ignored
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be searched
        return False


def is_regular(path: Path) -> bool:
    """Whether reading `path` ends: a pipe or a device might never."""
    return stat.S_ISREG(path.stat().st_mode)
