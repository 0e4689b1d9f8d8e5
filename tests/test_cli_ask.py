"""`rag ask` in conversations, with a model in the process, and with prompts of one's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import rag
from servers import MODEL, RawServer, Reply, answer, llama_server, smollm2, stream

PAGES = {
    "depot.md": "# Depot\n\nThe depot opens at seven in the morning. It closes at nine at night.\n",
    "parking.md": "# Parking\n\nParking at the depot costs four pounds a day, six on Sundays.\n",
}


def model(text: str) -> RawServer:
    """A server whose model says this, and that offers nothing but chats."""
    events = [
        {"choices": [{"delta": {"content": text}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
    ]
    nothing = Reply(answer(404, {"error": {"message": "not found"}}))
    chat = {"/v1/chat/completions": Reply(stream(*events, "[DONE]"))}
    return RawServer(nothing, paths=chat)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in PAGES.items():
        (folder / name).write_text(text)
    assert rag("ingest", folder).status == 0
    return folder


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    with llama_server("chat") as url:
        yield url


def test_a_conversation_is_kept_in_a_file(docs: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    first = rag("ask", "What does parking cost?", "--history", talk)
    assert "four pounds" in first.out
    second = rag("ask", "And on Sundays?", "--history", talk, "--json").json
    assert second["question"] == "And on Sundays?"
    assert second["search"] == "And on Sundays?\nWhat does parking cost?"
    assert second["citations"][0]["source"].endswith("parking.md")
    turns = [json.loads(line) for line in talk.read_text().splitlines()]
    assert [turn["question"] for turn in turns] == ["What does parking cost?", "And on Sundays?"]
    assert turns[1] == second, "citations are kept with each turn"


def test_a_stream_adds_its_turn_too(docs: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.jsonl"
    done = rag("ask", "What does parking cost?", "--history", talk, "--stream", "--json")
    last = json.loads(done.out.splitlines()[-1])
    assert last.pop("event") == "done"
    assert json.loads(talk.read_text()) == last


@pytest.mark.parametrize(
    "line", ["not json", "[]", '{"question": "x"}', '{"question": 1, "answer": ""}']
)
def test_a_file_that_is_no_conversation_is_told_of(docs: Path, tmp_path: Path, line: str) -> None:
    talk = tmp_path / "talk.jsonl"
    talk.write_text(f"{line}\n")
    done = rag("ask", "And on Sundays?", "--history", talk)
    assert done.status == 2
    assert "line 1" in done.error
    assert talk.read_text() == f"{line}\n"


def test_a_model_in_the_process_answers(docs: Path) -> None:
    found = rag(
        "--set",
        "generator.kind=llamacpp",
        "--set",
        f"generator.model={smollm2()}",
        "--set",
        "generator.max_tokens=32",
        "ask",
        "When does the depot open?",
        "--json",
        RAG_GENERATOR_ENGINE='{"n_threads": 1, "warmup": false}',
    ).json
    assert found["model"] == "SmolLM2-135M-Instruct.Q4_1"
    assert found["degraded"] == []
    assert found["usage"]["prompt_tokens"] > 100


def test_a_server_gets_the_prompt_of_the_template(docs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    assert rag("config", "templates", folder).status == 0
    assert {path.name for path in folder.iterdir()} >= {"system.j2", "question.j2"}
    (folder / "system.j2").write_text("Speak like a pirate. {{ no_answer }}")
    assert rag("config", "templates", folder).status == 0, "what is there is kept"
    assert "pirate" in (folder / "system.j2").read_text()
    with model("At seven [1].") as server:
        found = rag(
            "ask",
            "When does the depot open?",
            "--json",
            RAG_GENERATOR_URL=server.url,
            RAG_GENERATOR_MODEL="m",
            RAG_ANSWER_TEMPLATES=str(folder),
        ).json
        assert found["answer"] == "At seven [1]."
        (asked,) = [body for path, body in server.requests if path == "/v1/chat/completions"]
        assert asked["messages"][0]["content"] == "Speak like a pirate. NO_ANSWER"


def test_a_window_that_is_small_drops_the_last_passages_and_says_so(docs: Path, llama: str) -> None:
    for n in range(12):
        (docs / f"more-{n}.md").write_text(
            f"# More {n}\n\n" + f"The depot of line {n} opens at seven. " * 20
        )
    assert rag("ingest", docs).status == 0
    found = rag(
        "ask",
        "When does the depot open?",
        "--top-k",
        "12",
        "--json",
        RAG_GENERATOR_URL=f"{llama}/v1",
        RAG_GENERATOR_MAX_TOKENS="64",
    ).json
    assert found["model"] == MODEL
    assert found["dropped"] > 0
    assert found["degraded"] == []
    assert found["usage"]["prompt_tokens"] + 64 <= 2048


def test_what_the_sources_do_not_say_is_marked(docs: Path) -> None:
    with model("The depot opens at seven [1]. It was built by Vikings [1].") as server:
        done = rag(
            "ask",
            "When does the depot open?",
            RAG_GENERATOR_URL=server.url,
            RAG_GENERATOR_MODEL="m",
        )
    assert "Not found in the sources\n    > It was built by Vikings [1]." in done.out
