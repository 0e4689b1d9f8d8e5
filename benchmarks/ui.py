"""The page in a browser, beside its bare parts, all measured in the same run.

    python benchmarks/ui.py [--rounds 3] [--questions 10] [--documents 100000] [--quick]

Needs Debian's Chromium (apt install chromium), which shares the machine's cores with the page and
the service. All figures are medians.

- First page: from the line "listening on" of a new `rag ui` until the chat box takes a question.
  Beside it: a page of Streamlit's with a chat box, a button and a text, started the same way.
- Reruns: from a change of mode, language or passages until the page is idle, with answers on it;
  how many questions the service embedded meanwhile, without a cache. Beside it: a button of the
  bare page.
- First token: from Enter until the first word stands on the screen, less what a plain client waits
  for the first `token` of POST /query, with a made-up server as the language model.
- Documents: from a click until all rows are there, in a collection of many made-up documents, less
  the same in one of 100. Beside it: what GET /documents takes.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The script's own folder would make `stores` and `service` the scripts there.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
from chroma_server import free_port
from http_client import client, events
from playwright.sync_api import Browser, Error, Page, sync_playwright
from servers import RawServer, Reply, answer, stream
from service import sample_data, service
from tabs import CHROMIUM

from rag import plugins
from rag.settings import load
from rag.types import Chunk, CollectionSpec

FEW, DIM, BATCH = 100, 8, 5_000
START_S = 60
MODELS = str(load({}).settings.models_dir)
LISTENING = re.compile(r"listening on (http://\S+)")
CHAT_BOX = "[data-testid=stChatInputTextArea]:enabled"
QUESTIONS = (
    "My box reports E-22. What do I press to start balancing the cells?",
    "How many days of annual leave do I get?",
    "How often must a Brinestick probe be recalibrated?",
    "How long will a TK-40 keep cooling on one fully charged battery?",
    "What temperature should I set for a load of abalone?",
    "How often does the lid gasket LS-40-2 need changing?",
    "Which slope values count as a pass after calibrating the salinity probe?",
    "How much extra cover do I get for registering the serial number in time?",
    "In the current firmware, after how long does an open lid trigger E-03?",
    "For how long do I have to cool the empty box down before loading the oysters?",
)
WORDS = [{"choices": [{"delta": {"content": f"word{n} "}}]} for n in range(3)]
END = {"choices": [{"delta": {}, "finish_reason": "stop"}]}

BARE_PAGE = """
import time, streamlit as st
st.chat_input("Ask")
st.button("Again")
st.text(time.perf_counter())
"""
BARE = """
import sys
from streamlit.web import bootstrap
page, port = sys.argv[1:]
flags = {"server.port": int(port), "server.address": "127.0.0.1", "server.headless": True,
         "server.fileWatcherType": "none", "browser.gatherUsageStats": False,
         "global.developmentMode": False, "logger.hideWelcomeMessage": True}
bootstrap.load_config_options(flags)
bootstrap.prepare_streamlit_environment(page)
print(f"listening on http://127.0.0.1:{port}", file=sys.stderr, flush=True)
bootstrap.run(page, False, [], flags)
"""

# Milliseconds from the next key or click until the last change of the page, after which it stays
# as it is for half a second while no script runs. All clocks are the browser's.
UNTIL_IDLE = """() => {
  const app = document.querySelector("[data-testid=stApp]");
  let since, timer;
  const begin = () => { since ??= performance.now(); };
  for (const kind of ["pointerdown", "keydown"]) addEventListener(kind, begin, {capture: true});
  window.measured = new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (since === undefined) return;
      const took = performance.now() - since;
      clearTimeout(timer);
      timer = setTimeout(() => {
        if (app.dataset.testScriptState !== "notRunning") return;  // its end will be a change
        observer.disconnect();
        resolve(took);
      }, 500);
    });
    const all = {attributes: true, childList: true, characterData: true, subtree: true};
    observer.observe(app, all);
  });
}"""
# From the next key until the frame in which an answer has its first word.
UNTIL_ANSWER = """() => {
  let since;
  addEventListener("keydown", () => { since ??= performance.now(); }, {capture: true});
  window.measured = new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      if (!document.querySelector(".rag-answer")?.textContent.trim()) return;
      observer.disconnect();
      requestAnimationFrame(() => resolve(performance.now() - since));
    });
    observer.observe(document.body, {childList: true, subtree: true, characterData: true});
  });
}"""


@dataclass(frozen=True)
class Figure:
    """A line of the table. `target` is the most that `value` may be."""

    name: str
    value: float
    unit: str
    beside: str = ""
    target: float | None = None

    def __str__(self) -> str:
        said = "" if self.target is None else "met" if self.value <= self.target else "missed"
        target = "" if self.target is None else f"<= {self.target:g}"
        return f"| {self.name} | {self.value:.4g} {self.unit} | {self.beside} | {target} | {said} |"


@dataclass(frozen=True)
class Started:
    """A process that said that it listens: at which moment, and how long that took."""

    url: str
    at: float
    seconds: float


@contextmanager
def started(*command: str) -> Iterator[Started]:
    """A process that ends with this."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAG_MODELS_DIR": MODELS},
    )
    assert process.stderr is not None
    try:
        said = next(filter(None, map(LISTENING.search, process.stderr)), None)
        if said is None:
            raise RuntimeError(f"{' '.join(command[:3])} ended before it listened")
        now = time.perf_counter()
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Started(said[1], now, now - begun)
    finally:
        process.terminate()
        process.wait(START_S)
        process.stderr.close()


def page_of(data_dir: Path, *options: str) -> tuple[str, ...]:
    """The command that starts `rag ui` on a free port."""
    page = ("ui", "--port", "0", "--no-browser")
    return ("-m", "rag.cli", "--data-dir", str(data_dir), *page, *options)


def bare_page(folder: Path) -> tuple[str, ...]:
    """The command that starts Streamlit with next to nothing."""
    script = folder / "bare.py"
    script.write_text(BARE_PAGE)
    return ("-c", BARE, str(script), str(free_port()))


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """A tab of a browser that was never there, once a question can be typed."""
    context = browser.new_context(locale="en-US", viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(START_S * 1000)
    end = time.monotonic() + START_S
    while True:
        try:
            page.goto(url, wait_until="commit")
            break
        except Error:  # it said that it listens just before it does
            if time.monotonic() > end:
                raise
            time.sleep(0.01)
    page.wait_for_selector(CHAT_BOX)
    yield page
    context.close()


def measured(page: Page, script: str, act: Callable[[], Any]) -> float:
    """What the script measured of an act, in milliseconds."""
    page.evaluate(script)
    act()
    return outcome(page)


def outcome(page: Page) -> float:
    """What the script in the page measured, once it has. Playwright's own wait has no end."""
    took: float = page.evaluate(
        "seconds => Promise.race([measured, new Promise((_, fail) =>"
        " setTimeout(() => fail(new Error(`nothing within ${seconds} s`)), seconds * 1000))])",
        START_S,
    )
    return took


def settle(page: Page) -> None:
    """Wait until nothing runs any more."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


def first_page(browser: Browser, folder: Path, rounds: int) -> Iterator[Figure]:
    """How long until a question can be typed."""
    took: dict[str, list[float]] = {name: [] for name in ("page", "start", "bare", "bare start")}
    for _ in range(rounds):
        for name, command in (("", page_of(folder / "sample")), ("bare", bare_page(folder))):
            with started(*command) as process, opened(browser, process.url):
                took[name or "page"].append(time.perf_counter() - process.at)
                took[f"{name} start".strip()].append(process.seconds)
    median = {name: statistics.median(values) for name, values in took.items()}
    beside = "bare Streamlit {:.2f} s"
    yield Figure("first page usable", median["page"], "s", beside.format(median["bare"]), 3)
    beside = beside.format(median["bare start"])
    yield Figure("from the start of the process until it listens", median["start"], "s", beside)


def reruns(browser: Browser, folder: Path, rounds: int) -> Iterator[Figure]:
    """What a change of a widget costs, with answers on the page."""
    uncached = {"cache.enabled": False}
    with ExitStack() as stack:
        served = service(folder / "sample", settings=uncached, RAG_MODELS_DIR=MODELS)
        api = stack.enter_context(served).url
        shown = stack.enter_context(started(*page_of(folder / "none", "--api-url", api)))
        page = stack.enter_context(opened(browser, shown.url))
        for n, question in enumerate(QUESTIONS[:2]):
            ask(page, question)
            page.get_by_test_id("stFeedback").nth(n).wait_for()
        settle(page)
        before, took = embedded(api), []
        for _ in range(rounds):
            took += [measured(page, UNTIL_IDLE, act) for act in changes(page)]
        during = embedded(api) - before
        page.get_by_text("Why these passages").last.click()
        page.locator(".rag-bar").wait_for()
        settle(page)
        before = embedded(api)
        for act in changes(page):
            measured(page, UNTIL_IDLE, act)
        explained = embedded(api) - before
        bare = stack.enter_context(started(*bare_page(folder)))
        page = stack.enter_context(opened(browser, bare.url))
        again = page.get_by_role("button", name="Again")
        beside = statistics.median(
            measured(page, UNTIL_IDLE, again.click) for _ in range(rounds * 5)
        )
    yield Figure(f"questions embedded during {len(took)} changes of widgets", during, "", "", 0)
    name = "the same during 5 changes, with 'Why these passages' open"
    yield Figure(name, explained, "", "", 0)
    yield Figure("a rerun", statistics.median(took), "ms", f"bare Streamlit {beside:.0f} ms")


def changes(page: Page) -> Iterator[Callable[[], Any]]:
    """Widgets that are changed, and in the end as they were."""

    def pick(name: str) -> Callable[[], Any]:
        return lambda: page.get_by_role("radio", name=name, exact=True).click()

    slider = page.get_by_role("slider").first
    yield pick("meaning")
    yield pick("简体中文")
    yield pick("English")
    yield pick("both")
    yield lambda: slider.press("ArrowRight")


def embedded(api: str) -> float:
    """How many questions the service has embedded so far."""
    with client(api) as http:
        text = http.get("/metrics").raise_for_status().text
    said = re.search(r'rag_cache_requests_total\{cache="vectors",result="miss"\} (\S+)', text)
    return float(said[1]) if said else 0


def ask(page: Page, question: str) -> None:
    """Send it."""
    page.locator(CHAT_BOX).fill(question)
    page.locator(CHAT_BOX).press("Enter")


def first_token(browser: Browser, folder: Path, count: int) -> Iterator[Figure]:
    """What the page adds to the time until the first word."""
    said = Reply(stream(*WORDS, END, "[DONE]"), then="drip")
    asked = [QUESTIONS[n % len(QUESTIONS)] for n in range(count)]
    with RawServer(Reply(answer(404, {})), paths={"/v1/chat/completions": said}) as model:
        settings = {
            "generator.url": model.url,
            "generator.model": "m",
            "answer.min_evidence": 0,
            "cache.enabled": False,
        }
        with (
            service(folder / "sample", settings=settings, RAG_MODELS_DIR=MODELS) as api,
            started(*page_of(folder / "none", "--api-url", api.url)) as shown,
            opened(browser, shown.url) as page,
        ):
            pairs = []
            for question in (asked[0], *asked):  # the first is not counted
                alone = token_ms(api.url, question)
                box = page.locator(CHAT_BOX)
                box.fill(question)
                page.evaluate(UNTIL_ANSWER)
                box.press("Enter")
                pairs.append((outcome(page), alone))
                page.get_by_test_id("stFeedback").wait_for()
                page.get_by_role("button", name="New conversation").click()
                page.locator(".rag-answer").wait_for(state="detached")
                settle(page)
    differences = [shown - alone for shown, alone in pairs[1:]]
    medians = [statistics.median(column) for column in zip(*pairs[1:], strict=True)]
    beside = "on screen {:.0f} ms, plain client {:.0f} ms".format(*medians)
    name = "first token on screen after the service's"
    yield Figure(name, statistics.median(differences), "ms", beside, 150)


def token_ms(url: str, question: str) -> float:
    """Milliseconds until a plain client has the first piece of an answer."""
    body = {"question": question, "stream": True}
    with client(url) as http:
        http.get("/health/live")  # connected already, as the page's client mostly is
        begun = time.perf_counter()
        with http.stream("POST", "/query", json=body) as reply:
            next(event for event in events(reply) if event.name == "token")
            return (time.perf_counter() - begun) * 1000


def fill(folder: Path, name: str, count: int) -> None:
    """A collection of `count` documents of one chunk, in FAISS."""
    draw = np.random.default_rng(0)
    backend = plugins.load("store", "faiss")(data_dir=folder, index="Flat")
    with closing(backend), closing(backend.create(CollectionSpec(name, DIM))) as store:
        for start in range(0, count, BATCH):
            chunks = [
                Chunk(
                    id=f"{n:016x}:0",
                    document_id=f"{n:016x}",
                    version="1",
                    position=0,
                    text="The pump stops when the float switch rises.",
                    source=f"/srv/documents/report {n:06}.pdf",
                    title=f"Report {n}",
                    ingested_at=1_760_000_000,
                    metadata={"team": f"team {n % 30}", "year": 1990 + n % 40},
                )
                for n in range(start, min(start + BATCH, count))
            ]
            store.upsert(chunks, draw.normal(size=(len(chunks), DIM)).astype(np.float32))


def documents(browser: Browser, folder: Path, count: int, rounds: int) -> Iterator[Figure]:
    """The documents page over few and over many."""
    data_dir = folder / "documents"
    fill(data_dir, "few", FEW)
    fill(data_dir, "many", count)
    # The page begins with the few: a choice of what is chosen already would change nothing.
    took: dict[str, dict[str, list[float]]] = {"many": {}, "few": {}}
    counted: dict[str, float] = {}
    with (
        service(data_dir, "--collection", "few", RAG_MODELS_DIR=MODELS) as api,
        started(*page_of(folder / "none", "--api-url", api.url)) as shown,
        opened(browser, shown.url) as page,
    ):
        for n in range(rounds + 1):
            for name, times in took.items():
                page.get_by_role("combobox").first.click()
                option = page.get_by_role("option", name=name, exact=True)
                chosen = measured(page, UNTIL_IDLE, option.click)
                counted.setdefault(name, chosen)
                seen = look(page)
                for what, value in seen.items() if n else ():  # the first is not counted
                    times.setdefault(what, []).append(value)
        alone = {what: listing_ms(api.url, rounds, search) for what, search in SEARCHES.items()}
    for what, values in took["many"].items():
        many, few = statistics.median(values), statistics.median(took["few"][what])
        beside = f"{many:.0f} ms, of {FEW} documents {few:.0f} ms"
        if what in alone:
            beside += f"; GET /documents {alone[what]:.0f} ms"
        yield Figure(f"documents page, {count:,} documents: {what}", many - few, "ms", beside, 100)
    name = f"{count:,} documents seen for the first time, with their fields"
    yield Figure(name, counted["many"], "ms")


SEARCHES = {"first page": "", "a search": "REPORT 000042"}


def look(page: Page) -> dict[str, float]:
    """The documents page: opened, turned over, searched; then the chat again."""
    rows = page.locator("[class*=st-key-document-]")
    link = page.get_by_role("link", name="Documents")
    took = {"first page": measured(page, UNTIL_IDLE, link.click)}
    assert rows.count() == 25
    following = page.get_by_role("button", name="Next")
    took["next page"] = measured(page, UNTIL_IDLE, following.click)
    box = page.get_by_role("textbox", name="Search")
    box.fill(SEARCHES["a search"])
    took["a search"] = measured(page, UNTIL_IDLE, lambda: box.press("Enter"))
    assert rows.count() == 1
    page.get_by_role("link", name="Ask").click()
    page.wait_for_selector(CHAT_BOX)
    settle(page)
    return took


def listing_ms(url: str, rounds: int, search: str) -> float:
    """Median milliseconds of GET /documents of the many."""
    took = []
    with client(url) as http:
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            asked = {"collection": "many", "search": search, "limit": 25}
            http.get("/documents", params=asked).raise_for_status()
            took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took[1:])


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """Its lines."""
    yield "| | page | beside | target | |"
    yield "|---|---|---|---|---|"
    yield from map(str, figures)


def main() -> None:
    """Measure everything and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of everything but the questions")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument(
        "--quick", action="store_true", help="1 round, 3 questions, 5,000 documents"
    )
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.questions, given.documents = 1, 3, 5_000
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        folder = Path(scratch)
        sample_data(folder / "sample")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        figures = [
            *first_page(browser, folder, given.rounds),
            *reruns(browser, folder, given.rounds),
            *first_token(browser, folder, given.questions),
            *documents(browser, folder, given.documents, given.rounds),
        ]
        browser.close()
    print(f"browser, page and service share {os.cpu_count()} cores\n")
    print("\n".join(table(figures)))


if __name__ == "__main__":
    main()
