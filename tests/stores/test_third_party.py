"""A package of a third party: installed, found by its entry point, held to the contract."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import rag

from rag import plugins
from stores.contract import ContractSetting, OpenBackend, StoreContract
from stores.contract.deleting import DeletingTests
from stores.contract.generations import GenerationTests
from stores.contract.notes import NotesTests
from stores.contract.writing import WritingTests
from stores.sidecar import KeywordBackend

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder where pip has put the package, on the path of this process."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in (ROOT / "tests" / "example_store").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            copy = source / path.relative_to(ROOT / "tests" / "example_store")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True, capture_output=True, timeout=120)
    sys.path.insert(0, str(target))
    yield target
    sys.path.remove(str(target))


class OfJournals(ContractSetting):
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("journals")

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        return lambda: plugins.load("store", "journal")(data_dir=folder)

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, installed: Path, folder: Path) -> str:
        return f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(installed)!r})
from rag import plugins
backend = plugins.load("store", "journal")(data_dir=Path({str(folder)!r}))
"""


class TestJournal(OfJournals, StoreContract):
    """As the package gives it."""


class TestJournalInTheApplication(
    OfJournals, GenerationTests, NotesTests, WritingTests, DeletingTests
):
    """With what the application adds: the store has no generation of its own."""

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls, folder: Path) -> OpenBackend:
        def opened() -> KeywordBackend:
            journals = plugins.load("store", "journal")(data_dir=folder)
            return KeywordBackend(journals, folder / "keywords")

        return opened

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls, installed: Path, folder: Path) -> str:
        return f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(installed)!r})
from rag import plugins
from stores.sidecar import KeywordBackend
folder = Path({str(folder)!r})
backend = KeywordBackend(plugins.load("store", "journal")(data_dir=folder), folder / "keywords")
"""


@pytest.mark.usefixtures("models_dir")
def test_the_command_line_knows_it(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The warehouse opens at seven.", "utf-8")
    path = {"PYTHONPATH": str(installed)}
    assert "journal" in rag("stores", "list", **path).out
    assert rag("ingest", tmp_path / "a.txt", "--store", "journal", **path).status == 0
    asked = rag("ask", "When does the warehouse open?", "--store", "journal", **path)
    assert "seven" in asked.out
    wrong = rag("--set", "stores.journal.foldr=x", "stores", "check", "--store", "journal", **path)
    assert "stores.journal.foldr is no setting" in wrong.error
    assert "did you mean" in rag("stores", "check", "--store", "jurnal", **path).error
