"""Takes the pictures of the page that the README shows: docs/images/*.png.

    python docs/screenshots.py [--into docs/images] [--width 1280]

Starts `rag ui` over the sample corpus, copied to a neutral folder, and does in Debian's Chromium
(apt install chromium fonts-noto-cjk) what a person does. Needs `make install-dev`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from service import SAMPLE, ingest, service
from tabs import CHROMIUM

HANDBOOK = Path(tempfile.gettempdir()) / "handbook"  # what the pictures show as the place of files
ASKED = "My box reports E-22. What do I press to start balancing the cells?"
ASKED_ZH = ("今年没用完的年假最晚可以留到什么时候？", "长城一共有多长？")
HEIGHT, TALL = 860, 1060
LONG_MS = 120_000
COLOURS = 256


class Pictures:
    """Tabs of `rag ui` at `url`, and where pictures of them go."""

    def __init__(self, browser: Browser, url: str, into: Path, width: int) -> None:
        self._browser = browser
        self._url = url
        self._into = into
        self._width = width

    @contextmanager
    def tab(
        self, part: str = "", *, locale: str = "en-GB", dark: bool = False, height: int = HEIGHT
    ) -> Iterator[Page]:
        """A tab that shows this part of the page."""
        context = self._browser.new_context(
            locale=locale,
            timezone_id="UTC",
            color_scheme="dark" if dark else "light",
            viewport={"width": self._width, "height": height},
        )
        page = context.new_page()
        page.set_default_timeout(LONG_MS)
        page.goto(f"{self._url}/{part}")
        yield page
        context.close()

    def take(self, page: Page, name: str) -> None:
        """What the tab shows once it is at rest, in a palette: a fraction of the size."""
        page.mouse.move(0, 0)
        at_rest(page)
        file = self._into / f"{name}.png"
        page.screenshot(path=file, animations="disabled", caret="hide")
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        small.save(file, optimize=True)
        print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


def at_rest(page: Page) -> None:
    """Wait until the script of the page has run, and what it showed has moved into its place."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.get_by_test_id("stSkeleton").first.wait_for(state="hidden")
    page.wait_for_function("document.fonts.status === 'loaded'")
    page.wait_for_function(
        "document.getAnimations().every(one => one.playState !== 'running'"
        " || one.effect.getTiming().iterations === Infinity)"
    )


def ask(page: Page, question: str, n: int = 0) -> Locator:
    """Ask the `n`th question; its answer, once it is whole."""
    box = page.get_by_test_id("stChatInputTextArea")
    box.fill(question)
    box.press("Enter")
    message = page.get_by_test_id("stChatMessage").nth(2 * n + 1)
    message.get_by_test_id("stFeedback").wait_for()
    at_rest(page)
    return message


def chat(pictures: Pictures) -> None:
    """An answer with its sources and how they were found; then the passage behind one of them."""
    with pictures.tab(height=TALL) as page:
        message = ask(page, ASKED)
        message.get_by_text("Why these passages").click()
        message.locator(".rag-bar").wait_for()
        at_rest(page)
        page.get_by_test_id("stChatMessage").first.scroll_into_view_if_needed()
        pictures.take(page, "chat")
        message.get_by_role("button", name="p. 3").first.click()
        page.get_by_role("dialog").get_by_role("img").wait_for()
        pictures.take(page, "passage")


def documents(pictures: Pictures, folder: Path) -> None:
    """The list, below one file that was taken in and one that could not be read."""
    good, bad = folder / "glider handbook.md", folder / "scan of the lease.pdf"
    good.write_text("# Glider handbook\n\nThe Albatross glider needs a tow of 340 metres.\n")
    bad.write_bytes(b"%PDF-1.7\n")
    with pictures.tab("documents") as page:
        page.locator("input[type=file]").set_input_files([good, bad])
        page.get_by_test_id("stBaseButton-primary").click()
        page.get_by_text("glider handbook.md: taken in").wait_for()
        page.get_by_text("scan of the lease.pdf: failed").wait_for()
        page.locator("[class*=st-key-document-]").first.wait_for()
        pictures.take(page, "documents")


def evaluation(pictures: Pictures) -> None:
    """Two runs over the same questions, compared."""
    with pictures.tab("evaluation") as page:
        limit = page.get_by_role("spinbutton")
        limit.fill("50")
        limit.press("Tab")
        for _ in range(2):
            page.get_by_role("button", name="Start").click()
            page.get_by_test_id("stProgress").wait_for()
            page.get_by_test_id("stProgress").wait_for(state="hidden")
            page.get_by_role("combobox", name="Compare with").wait_for()
            at_rest(page)
        page.get_by_role("combobox", name="Compare with").click()
        page.get_by_role("option").nth(1).click()
        page.get_by_text("Both runs found the same").wait_for()
        page.get_by_test_id("stVegaLiteChart").first.scroll_into_view_if_needed()
        pictures.take(page, "evaluation")


def chat_zh(pictures: Pictures) -> None:
    """A question in Chinese, and one that the documents do not answer, in the dark."""
    with pictures.tab(locale="zh-CN", dark=True, height=TALL) as page:
        for n, question in enumerate(ASKED_ZH):
            ask(page, question, n)
        pictures.take(page, "chat-zh-dark")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, default=Path(__file__).with_name("images"))
    parser.add_argument("--width", type=int, default=1280, help="of the window; 390 for a phone")
    given = parser.parse_args()
    given.into.mkdir(parents=True, exist_ok=True)
    try:
        HANDBOOK.mkdir()
    except FileExistsError:
        sys.exit(f"{HANDBOOK} is there already: move it away")
    try:
        shutil.copytree(
            SAMPLE, HANDBOOK, ignore=shutil.ignore_patterns("_*", "eval"), dirs_exist_ok=True
        )
        with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
            data_dir = Path(folder) / "data"
            ingest(data_dir, HANDBOOK)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            shown = service(data_dir, "--no-browser", until="/_stcore/health", command="ui")
            with shown as running:
                pictures = Pictures(browser, running.url, given.into, given.width)
                chat(pictures)
                chat_zh(pictures)
                documents(pictures, Path(folder))
                evaluation(pictures)
            browser.close()
    finally:
        shutil.rmtree(HANDBOOK)


if __name__ == "__main__":
    main()
