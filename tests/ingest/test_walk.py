from __future__ import annotations

import os
from pathlib import Path

import pytest

from ingest.walk import walk
from rag.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def put(root: Path, *names: str, text: str = "x") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def found(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in walk([root]).files]


def test_files_of_all_levels_are_absolute_and_sorted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "b.txt", "a/z.txt", "a/deep/er/c.md")
    monkeypatch.chdir(root)
    assert walk([Path()]).files == [root / "a/deep/er/c.md", root / "a/z.txt", root / "b.txt"]


def test_a_path_named_twice_is_found_once(root: Path) -> None:
    put(root, "a.txt")
    assert walk([root, root / "a.txt", root / "." / "a.txt"]).files == [root / "a.txt"]


def test_hidden_files_and_folders_are_left_out_unless_named(root: Path) -> None:
    put(root, "a.txt", ".secret.txt", ".git/config.txt")
    assert found(root) == ["a.txt"]
    assert walk([root / ".secret.txt"]).files == [root / ".secret.txt"]
    assert walk([root / ".git"]).files == [root / ".git/config.txt"]


def test_ragignore_has_the_patterns_of_gitignore(root: Path) -> None:
    put(root, ".ragignore", text="\ufeffdrafts/\n*.log.txt\n/top.txt\n# a comment\n!kept.log.txt\n")
    put(root, "top.txt", "sub/top.txt", "drafts/a.txt", "sub/drafts/b.txt", "x.log.txt")
    put(root, "kept.log.txt", "drafts.txt")
    assert found(root) == ["drafts.txt", "kept.log.txt", "sub/top.txt"]


def test_a_deeper_ragignore_overrules_a_higher_one(root: Path) -> None:
    put(root, ".ragignore", text="*.txt\n")
    put(root, "sub/.ragignore", text="!b.txt\nc.md\n")
    put(root, "a.txt", "sub/b.txt", "sub/c.md", "sub/d.txt", "sub/more/b.txt", "c.md")
    assert found(root) == ["c.md", "sub/b.txt", "sub/more/b.txt"]


def test_a_file_that_is_named_is_read_though_ignored(root: Path) -> None:
    put(root, ".ragignore", text="*\n")
    put(root, "a.txt")
    assert walk([root / "a.txt"]).files == [root / "a.txt"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "binary", "pattern"])
def test_behind_a_ragignore_that_cannot_be_read_nothing_is_taken(root: Path, kind: str) -> None:
    """What it was to keep out would be ingested otherwise; a pipe would never end."""
    put(root, "open/a.txt", "closed/b.txt", "closed/deeper/c.txt")
    ignore = root / "closed" / ".ragignore"
    if kind == "pipe":
        os.mkfifo(ignore)
    elif kind == "folder":
        ignore.mkdir()
    else:
        ignore.write_bytes(b"\xff\xfe\x00" if kind == "binary" else b"!\n")
    result = walk([root])
    if kind == "folder":  # then it is no such file
        assert root / "closed/b.txt" in result.files
        return
    assert result.files == [root / "open/a.txt"]
    assert list(result.unreadable) == [root / "closed"]
    assert not result.covers(str(root / "closed/b.txt")), "it would be pruned"


def test_a_loop_of_links_ends_and_linked_files_are_found(root: Path) -> None:
    put(root, "sub/a.txt")
    (root / "sub" / "loop").symlink_to(root)
    (root / "link.txt").symlink_to(root / "sub" / "a.txt")
    (root / "self.txt").symlink_to(root / "self.txt")
    assert found(root) == ["link.txt", "self.txt", "sub/a.txt"]  # `check` refuses self.txt


def test_a_folder_that_cannot_be_listed_is_told_and_covers_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, "a.txt", "locked/b.txt")
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may list all folders, so permissions prove nothing
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    result = walk([root])
    assert result.files == [root / "a.txt"]
    assert result.unreadable == {root / "locked": "Permission denied"}
    assert result.covers(str(root / "gone.txt"))
    assert not result.covers(str(root / "locked" / "b.txt"))


def test_only_folders_that_were_named_are_covered(root: Path) -> None:
    put(root, "docs/a.txt", "docs-old/b.txt", "c.txt")
    result = walk([root / "docs", root / "c.txt"])
    assert result.covers(str(root / "docs/gone/d.txt"))
    assert not result.covers(str(root / "docs-old/b.txt"))
    assert not result.covers(str(root / "c.txt"))
    assert result.named == {root / "c.txt"}


@pytest.mark.parametrize("name", ["missing", "missing/deeper.txt", "n" * 300])
def test_a_missing_path_is_an_error_that_names_it(root: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"there is no file or folder .*{name}"):
        walk([root / name])


def test_folders_without_files_are_an_error(root: Path) -> None:
    put(root, "sub/.hidden")
    with pytest.raises(InputError, match="holds no files"):
        walk([root])


def test_names_that_are_not_utf8_are_found(root: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    put(root, name, "b.txt")
    put(root, ".ragignore", text="b.txt\n")
    assert found(root) == [name]
