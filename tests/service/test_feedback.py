"""Answers are remembered, rated, and become judgements."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from rag.errors import InputError, NotFound, StoreUnavailable
from rag.evaluation.dataset import read
from rag.service import feedback as module
from rag.service.feedback import Answers, Feedback, Given
from rag.service.judgements import export

SOURCES = {"d1": "/docs/报告.txt", "d2": "upload/tenant=acme/b.pdf", "d3": "/docs/tab\there.txt"}


def given(request_id: str = "r1", question: str = "Why?", *cited: str, **changes: Any) -> Given:
    values: dict[str, Any] = {
        "request_id": request_id,
        "tenant_key": "acme",
        "collection": "docs",
        "question": question,
        "model": "m",
        "cited": tuple((document, f"{document}:v:0") for document in cited),
        "found": (("d1", "d1:v:0"), ("d2", "d2:v:3")),
        "at": time.time(),
    }
    return Given(**{**values, **changes})


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    made = Answers(tmp_path)
    yield made
    made.close()


@pytest.fixture
def feedback(tmp_path: Path) -> Iterator[Feedback]:
    made = Feedback(tmp_path)
    yield made
    made.close()


def test_an_answer_can_be_rated_at_once(answers: Answers) -> None:
    answer = given("r1", "为什么?", "d1", "d1", "d2")
    answers.remember(answer)
    assert answers.get("r1", "acme") == answer


def test_an_answer_of_another_process_can_be_rated(tmp_path: Path, answers: Answers) -> None:
    other = Answers(tmp_path)
    other.remember(given())

    def known() -> bool:
        with suppress(NotFound):
            return answers.get("r1", "acme").question == "Why?"
        return False

    until(known)
    other.close()


def test_another_tenants_answer_is_not_there(answers: Answers) -> None:
    answers.remember(given())
    answers.remember(given(tenant_key="", question="Who?"))
    for request_id, tenant in (("r1", "globex"), ("r2", "acme")):
        with pytest.raises(NotFound, match="there is no such answer"):
            answers.get(request_id, tenant)
    assert answers.get("r1", "").question == "Who?", "ids may be chosen by clients"


def test_answers_are_written_without_being_asked_for(tmp_path: Path) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from rag.service.feedback import Answers, Given\n"
        "answers = Answers(Path(sys.argv[1]))\n"
        "answers.remember(Given('r1', 'acme', 'docs', 'Why?', 'm', (), (), time.time()))\n"
        "deadline = time.monotonic() + 20\n"
        "while not answers._db.rows('SELECT 1 FROM answers'):\n"
        "    assert time.monotonic() < deadline\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    answers = Answers(tmp_path)
    assert answers.get("r1", "acme").question == "Why?"
    answers.close()


def test_remembering_takes_microseconds_and_bounded_memory(
    answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WAITING", 100)
    some = [given(f"r{n}") for n in range(1_000)]
    with answers._flushing:  # a disk that takes its time
        started = time.perf_counter()
        for answer in some:
            answers.remember(answer)
        took = time.perf_counter() - started
        assert len(answers._waiting) <= 100
    assert took / len(some) < 200e-6, "a thousand took long"
    assert 800 <= answers.dropped <= 900, "the oldest went"
    assert answers.get("r999", "acme")
    with pytest.raises(NotFound):
        answers.get("r500", "acme")


def test_a_disk_that_fails_costs_the_answers_and_nothing_else(answers: Answers) -> None:
    answers._db.close()
    answers.remember(given())
    until(lambda: answers.dropped == 1)
    with pytest.raises(StoreUnavailable):
        answers.get("r1", "acme")
    answers.remember(given())


def test_answers_are_forgotten_by_age_and_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FORGET_S", 0.0)
    monkeypatch.setattr(module, "_ANSWERS", 10)
    answers = Answers(tmp_path)
    answers.remember(given("old", at=time.time() - 8 * 86_400))
    for number in range(20):
        answers.remember(given(f"r{number}"))
    answers.flush()
    for request_id in ("old", "r0", "r9"):
        with pytest.raises(NotFound):
            answers.get(request_id, "acme")
    assert answers.get("r10", "acme")
    assert answers.get("r19", "acme")
    answers.close()


def test_a_rating_is_on_the_disk_and_replaced_by_the_same_caller(
    tmp_path: Path, feedback: Feedback
) -> None:
    answer = given("r1", "Why?", "d1")
    first = feedback.add(answer, "k1", "up")
    assert feedback.add(answer, "k1", "down", "不对") == first
    second = feedback.add(answer, "k2", "up", "fine")
    other = Feedback(tmp_path)
    assert [(r.id, r.caller, r.rating, r.comment) for r in other.ratings()] == [
        (first, "k1", "down", "不对"),
        (second, "k2", "up", "fine"),
    ]
    assert other.ratings()[0].answer == answer
    assert other.ratings("other") == []
    other.close()


@pytest.mark.parametrize(
    ("rating", "comment"), [("sideways", ""), ("up", "x" * 4_001), ("up", "half \ud800")]
)
def test_what_is_no_rating_is_refused(feedback: Feedback, rating: Any, comment: str) -> None:
    with pytest.raises(InputError):
        feedback.add(given(), "k1", rating, comment)
    assert feedback.ratings() == []


def test_ratings_are_bounded(feedback: Feedback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RATINGS", 5)
    for number in range(9):
        feedback.add(given(f"r{number}"), "k1", "up")
    assert [r.answer.request_id for r in feedback.ratings()] == ["r4", "r5", "r6", "r7", "r8"]


def test_many_rate_at_once(tmp_path: Path) -> None:
    def rate(caller: int) -> None:
        opened = Feedback(tmp_path)
        for number in range(10):
            opened.add(given(f"r{number}"), f"k{caller}", "up")
        opened.close()

    threads = [threading.Thread(target=rate, args=[n]) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    opened = Feedback(tmp_path)
    assert len(opened.ratings()) == 80
    opened.close()


def test_ratings_become_judgements(tmp_path: Path, feedback: Feedback) -> None:
    feedback.add(given("r1", "Why is  it\nso?", "d1"), "k1", "up", "good\nanswer")
    feedback.add(given("r2", "why is it so?", "d2", "d1"), "k2", "up")
    feedback.add(given("r3", "Who?", "d1"), "k1", "down", "wrong")
    feedback.add(given("r4", "Where?", "gone"), "k1", "up")
    feedback.add(given("r5", "When?", "d3"), "k1", "up")
    feedback.add(given("r6", "Nothing cited?"), "k1", "up")
    feedback.add(given("r7", "Why is it so?", "d2"), "k1", "down")
    folder = tmp_path / "judged"
    done = export(feedback.ratings("docs"), SOURCES, folder)
    assert (done.questions, done.judgements, done.commented, done.left_out) == (1, 2, 3, 3)
    dataset = read("docs", done.queries, done.qrels)
    (query,) = dataset.queries
    assert dataset.queries[query] == "Why is  it\nso?", "as it was first asked"
    assert dataset.qrels == {query: {SOURCES["d1"]: 1, SOURCES["d2"]: 1}}
    assert dataset.remarks == ()
    comments = [json.loads(line) for line in done.comments.read_text("utf-8").splitlines()]
    assert [(c["rating"], c["question"], c["comment"]) for c in comments] == [
        ("down", "Who?", "wrong"),
        ("down", "Why is it so?", ""),
        ("up", "Why is  it\nso?", "good\nanswer"),
    ]
    assert comments[0]["cited"] == [SOURCES["d1"]]
    assert comments[0]["found"] == [SOURCES["d1"], SOURCES["d2"]]
    assert comments[1]["query"] == query
    again = export(feedback.ratings("docs"), SOURCES, folder)
    assert again == done
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [
        "comments.jsonl",
        "queries.jsonl",
        "test.tsv",
    ]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        export([], {}, tmp_path / "file")
