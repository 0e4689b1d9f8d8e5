"""The page in this process for AppTest, and in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect, sync_playwright
from servers import CACHE
from service import ingest, sample_data
from streamlit.testing.v1 import AppTest
from tabs import CHROMIUM, Tabs

from rag.settings import load
from ui import connection
from ui.client import Service
from ui.connection import Connection
from ui.launch import PAGE
from ui.own_service import OwnService


@contextmanager
def asked(data_dir: Path) -> Iterator[OwnService]:
    """A service of the page's own over a folder of data."""
    service = OwnService(load({"data_dir": data_dir, "models_dir": CACHE / "models"}).settings)
    service.start()
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def tab(asked: OwnService, part: Callable[[], None] | None = None) -> Iterator[AppTest]:
    """A tab that was just opened, at its first part or another; AppTest cannot switch to it."""
    connection.use(Connection(Service("http://localhost", socket=asked.path), own=True))
    try:
        made = (
            AppTest.from_function(part, default_timeout=60)
            if part
            else AppTest.from_file(PAGE, default_timeout=60)
        )
        yield made.run()
    finally:
        connection.use(None)


@pytest.fixture(scope="session")
def _sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnService]:
    """The sample corpus, which the tests leave as it is."""
    with asked(sample_data(tmp_path_factory.mktemp("ui") / "data")) as service:
        yield service


@pytest.fixture
def app(_sample: OwnService) -> Iterator[AppTest]:
    """A tab that asks the sample corpus."""
    with tab(_sample) as opened:
        yield opened


def _documents() -> None:
    from ui import documents, sidebar
    from ui.guard import guarded

    guarded(lambda: documents.show(sidebar.show()))()


def _evaluation() -> None:
    from ui import evaluation, sidebar
    from ui.guard import guarded

    guarded(lambda: evaluation.show(sidebar.show()))()


@pytest.fixture
def evaluation(tmp_path: Path) -> Iterator[AppTest]:
    """The part for evaluations, over the sample corpus."""
    with asked(sample_data(tmp_path / "data")) as service, tab(service, _evaluation) as opened:
        yield opened


@pytest.fixture
def many(tmp_path: Path) -> Iterator[AppTest]:
    """The part for documents, over more of them than a page of the list has."""
    folder = tmp_path / "docs"
    folder.mkdir()
    for n in range(60):
        (folder / f"note-{n:02}.md").write_text(f"The word of note {n} is w{n}.\n", "utf-8")
    ingest(tmp_path / "data", folder)
    with asked(tmp_path / "data") as service, tab(service, _documents) as opened:
        yield opened


@pytest.fixture(scope="module")  # while it is there, no event loop of a test can run
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Tabs]:
    """Tabs. Nothing that they show may be fetched from another machine."""
    opened = Tabs(browser)
    yield opened
    opened.close()
    assert not opened.elsewhere
    assert not opened.errors


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A folder of data with the sample corpus, for this test alone."""
    return sample_data(tmp_path / "data")
