"""The page in a browser, with `rag ui` as a process: what a person sees and does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chroma_server import free_port
from http_client import OFF_TOPIC, QUESTION, client
from pdfs import page as pdf_page
from playwright.sync_api import Locator, Page, expect
from servers import MODEL, RawServer, Reply, answer, llama_server, stream, wait_until
from service import Service, ingest, new_key, service
from tabs import Tabs

CHAT = "/v1/chat/completions"
LONG_S = 60_000


@contextmanager
def shown(data_dir: Path, *arguments: str, **settings: object) -> Iterator[Service]:
    """`rag ui` over a folder of data. It shows nobody a trace."""
    with service(
        data_dir,
        "--no-browser",
        *arguments,
        settings={name.replace("__", "."): value for name, value in settings.items()},
        until="/_stcore/health",
        command="ui",
    ) as running:
        yield running
        assert "Traceback" not in running.stderr, running.stderr[-3000:]


def ask(page: Page, question: str = QUESTION) -> None:
    box = page.get_by_role("textbox", name="Ask something")
    box.fill(question)
    box.press("Enter")


def answered(page: Page, n: int = 0) -> Locator:
    """The `n`th answer, once it is whole."""
    message = page.get_by_test_id("stChatMessage").nth(2 * n + 1)
    message.get_by_role("button", name="Copy").wait_for(timeout=LONG_S)
    return message


def test_it_is_asked_and_shows_where_the_answer_comes_from(data_dir: Path, tabs: Tabs) -> None:
    with shown(data_dir) as running:
        page = tabs.open(running.url, permissions=["clipboard-read", "clipboard-write"])
        ask(page)
        message = answered(page)
        expect(message.locator(".rag-answer")).to_contain_text("Hold both arrow keys")
        chip = message.get_by_role("button", name=re.compile("tk-40-operator-manual"))
        chip.focus()
        page.keyboard.press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.locator("mark")).to_contain_text("Hold both arrow keys")
        picture = dialog.get_by_role("img", name=re.compile("Page 3 of tk-40-operator-manual"))
        expect(picture).to_be_visible(timeout=LONG_S)
        page.keyboard.press("Escape")
        expect(dialog).to_have_count(0)
        message.get_by_role("button", name="Copy").click()
        expect(message.get_by_role("button", name="Copied")).to_be_visible()
        assert "tk-40-operator-manual.pdf, p. 3" in page.evaluate("navigator.clipboard.readText()")
        message.get_by_text("Why these passages").click()
        expect(message.get_by_role("columnheader", name="By meaning")).to_be_visible()
        expect(message.locator(".rag-bar span").first).to_be_visible()
        for button in page.get_by_role("button").all():
            assert button.get_attribute("aria-label") or button.inner_text().strip()


def test_an_answer_is_seen_as_it_is_written_and_can_be_stopped(data_dir: Path, tabs: Tabs) -> None:
    words = [{"choices": [{"delta": {"content": f"word{n} "}}]} for n in range(3)]
    endless = RawServer(Reply(answer(404, {})), paths={CHAT: Reply(stream(*words), then="ping")})
    with (
        endless as model,
        shown(
            data_dir, generator__url=model.url, generator__model="m", answer__min_evidence=0
        ) as running,
    ):
        page = tabs.open(running.url)
        ask(page)
        expect(page.locator(".rag-answer")).to_contain_text("word2", timeout=LONG_S)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_text("This is what was written until then")).to_be_visible()
        expect(page.locator(".rag-answer")).to_contain_text("word2")
        expect(page.get_by_role("button", name="Answer anew")).to_be_visible()


def test_a_language_model_answers_and_is_missed_in_words(data_dir: Path, tabs: Tabs) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    with shown(data_dir, generator__url=url, generator__model=MODEL) as running:
        page = tabs.open(running.url)
        with llama_server("chat", port):
            ask(page)
            expect(answered(page).locator(".rag-answer")).to_be_visible()
        page.get_by_role("button", name="Answer anew").click()
        warning = page.get_by_text("the language model did not answer")
        expect(warning).to_be_visible(timeout=LONG_S)
        expect(page.locator(".rag-answer")).to_contain_text("Hold both arrow keys")


def test_a_document_is_added_asked_about_and_deleted(tmp_path: Path, tabs: Tabs) -> None:
    file = tmp_path / "glider handbook.pdf"
    file.write_bytes(pdf_page((50, 100, "The Albatross glider needs a tow of 340 metres.")))
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7\nnothing")
    with shown(tmp_path / "data") as running:
        page = tabs.open(running.url)
        expect(page.get_by_text("There are no documents in default yet")).to_be_visible()
        page.get_by_role("link", name="Documents").click()
        page.locator("input[type=file]").set_input_files([file, broken])
        page.get_by_role("button", name="Add 2 files to default").click()
        expect(page.get_by_text("glider handbook.pdf: taken in")).to_be_visible(timeout=LONG_S)
        expect(page.get_by_text("broken.pdf: failed")).to_be_visible()
        row = page.locator("[class*=st-key-document-]").filter(has_text="glider handbook.pdf")
        expect(row.get_by_role("button", name="Actions")).to_be_visible()
        expect(page.get_by_text("broken.pdf")).to_have_count(1)  # it is not among the documents

        page.get_by_role("link", name="Ask").click()
        ask(page, "What tow does the Albatross glider need?")
        expect(answered(page).locator(".rag-answer")).to_contain_text("340 metres")

        page.get_by_role("link", name="Documents").click()
        page.get_by_role("textbox", name="Search").fill("GLIDER")
        page.get_by_role("textbox", name="Search").press("Enter")
        row.get_by_role("button", name="Actions").click()
        page.get_by_text("Take in again").click()
        expect(page.get_by_text("glider handbook.pdf: nothing to do")).to_be_visible(timeout=LONG_S)
        row.get_by_role("button", name="Actions").click()
        page.get_by_text("Delete", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.get_by_text("glider handbook.pdf: deleted")).to_be_visible(timeout=LONG_S)
        expect(page.get_by_text("No document has")).to_be_visible()

        page.get_by_role("link", name="Ask").click()
        ask(page, "What tow does the Albatross glider need, in metres?")
        expect(page.get_by_text("do not hold an answer")).to_be_visible(timeout=LONG_S)


def test_the_language_is_the_browsers_and_can_be_switched(data_dir: Path, tabs: Tabs) -> None:
    with shown(data_dir) as running:
        page = tabs.open(running.url, locale="zh-CN")
        expect(page.get_by_role("heading", name="向您的文档提问")).to_be_visible()
        page.get_by_role("link", name="文档").click()
        expect(page.get_by_role("heading", name="文档", exact=True)).to_be_visible()
        page.get_by_text("English", exact=True).click()
        expect(page.get_by_role("heading", name="Documents", exact=True)).to_be_visible()
        again = tabs.open(page.url, locale="zh-CN")  # the address says it
        expect(again.get_by_role("heading", name="Documents", exact=True)).to_be_visible()


def test_the_service_goes_down_and_comes_back(data_dir: Path, tabs: Tabs) -> None:
    port = str(free_port())
    with service(data_dir, "--port", port) as first:
        url = first.url
        with shown(data_dir, "--api-url", url) as running:
            page = tabs.open(running.url)
            ask(page)
            answered(page)
            first.kill()
            ask(page, "How many days of annual leave do I get?")
            expect(page.get_by_text("The service does not answer").first).to_be_visible(
                timeout=LONG_S
            )
            with service(data_dir, "--port", port):
                expect(answered(page, 1).locator(".rag-answer")).to_contain_text("27 days")
                expect(page.locator(".rag-answer").first).to_contain_text("Hold both arrow keys")


def test_a_service_with_keys_asks_each_for_one(data_dir: Path, tabs: Tabs) -> None:
    key = new_key(data_dir, "--scope", "read")
    with service(data_dir) as api, shown(data_dir, "--api-url", api.url) as running:
        page = tabs.open(running.url)
        box = page.get_by_label("Key", exact=True)
        box.fill("rag_wrong")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_text("wrong, revoked or expired")).to_be_visible()
        box.fill(key)
        page.get_by_role("button", name="Go on").click()
        ask(page)
        expect(answered(page).locator(".rag-answer")).to_contain_text("Hold both arrow keys")
        page.get_by_role("link", name="Evaluation").click()
        expect(page.get_by_text("may not begin evaluations")).to_be_visible()
        page.get_by_role("link", name="Documents").click()
        expect(page.get_by_text("may read, and not change documents")).to_be_visible()
        assert page.get_by_role("button", name="Actions").count() == 0
        other = tabs.open(running.url)  # a key is that of a tab
        expect(other.get_by_label("Key", exact=True)).to_be_visible()


def test_no_document_becomes_a_part_of_the_page(tmp_path: Path, tabs: Tabs) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    name = (
        "![x](https:§§evil.example§x.png) [a](javascript:alert(1)) :red[x] $y$ www.evil.example.md"
    )
    (docs / name.replace("/", "§")).write_text(
        "---\ntitle: '<img src=x onerror=alert(1)> [t](https://evil.example)'\n"
        "'<b>': '![m](https://evil.example/m.png)'\n---\n"
        "The password of the vault is ![p](https://evil.example/p.png) "
        "&lt;img src=x onerror=alert(2)&gt; [here](https://evil.example) https://evil.example/q.\n",
        "utf-8",
    )
    ingest(tmp_path / "data", docs)
    with shown(tmp_path / "data") as running:
        page = tabs.open(running.url)
        page.on("dialog", lambda dialog: tabs.errors.append(dialog.message))
        ask(page, "What is the password of the vault?")
        message = answered(page)
        message.get_by_role("button", name=re.compile("evil")).first.click()
        expect(page.get_by_role("dialog").locator("mark").first).to_be_visible()
        nothing_of_it(page)
        page.keyboard.press("Escape")
        page.get_by_text("Filters").click()
        page.get_by_role("link", name="Documents").click()
        expect(page.get_by_role("button", name="Actions")).to_be_visible()
        nothing_of_it(page)


def nothing_of_it(page: Page) -> None:
    assert (
        page.locator("a[href*='evil'], img[src*='evil'], img[onerror], [href^=javascript]").count()
        == 0
    )
    assert page.locator(".katex").count() == 0


def test_an_abstention_and_a_wrong_collection_are_said(data_dir: Path, tabs: Tabs) -> None:
    with shown(data_dir, "--collection", "empty") as running:
        page = tabs.open(running.url)
        expect(page.get_by_text("There are no documents in empty yet")).to_be_visible()
        ask(page)
        problem = page.get_by_role("alert").filter(has_text="There are no documents in empty yet")
        expect(problem).to_be_visible(timeout=LONG_S)
        page.get_by_role("combobox").first.click()
        page.get_by_role("option", name="default").click()
        ask(page, OFF_TOPIC)
        expect(page.get_by_text("do not hold an answer")).to_be_visible(timeout=LONG_S)


def test_two_evaluations_are_compared(data_dir: Path, tabs: Tabs) -> None:
    with (
        service(data_dir) as api,
        client(api.url) as http,
        shown(data_dir, "--api-url", api.url) as running,
    ):
        asked = {"collection": "default", "modes": ["keyword"], "limit": 10}
        for _ in range(2):
            assert http.post("/evaluations", json=asked).status_code == 202

        def over() -> bool:
            runs = http.get("/evaluations").json()["evaluations"]
            return {run["state"] for run in runs} == {"done"}

        wait_until(over, 120)
        page = tabs.open(f"{running.url}/evaluation")
        expect(page.get_by_role("heading", name="Recall at k")).to_be_visible()
        expect(page.locator("canvas, svg.marks").first).to_be_visible()
        page.get_by_role("combobox", name="Compare with").click()
        page.get_by_role("option").nth(1).click()
        expect(page.get_by_text("Both runs found the same")).to_be_visible()


def test_it_ends_when_it_is_told_to(data_dir: Path) -> None:
    with shown(data_dir) as running:
        wait_until(lambda: "listening" in running.stderr, 30)
        assert running.stop() == 0
