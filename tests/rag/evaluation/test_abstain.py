"""When to abstain is learnt from questions with and without an answer, if it helps on others."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import WordEmbedder

from rag.evaluation.abstain import Calibrated, calibrate, fitted
from rag.evaluation.dataset import Dataset, read
from rag.evidence import DEFAULT, NAMES, Calibration
from rag.retrieve import Retriever, SearchOptions
from rag.types import Chunk, CollectionSpec
from stores.memory import MemoryStore

WORDS = [a + b + c for a in "kmpt" for b in "aeiou" for c in "lnrs"]
REFUSES_ALL, REFUSES_NONE = replace(DEFAULT, constant=-40.0), replace(DEFAULT, constant=40.0)


def collection(documents: int = 60) -> tuple[Retriever, Dataset]:
    """Documents of a sentence each; questions of words of one sentence, and of words of many."""
    chance = random.Random(7)
    embedder = WordEmbedder()
    store = MemoryStore(CollectionSpec("docs", 32, "cosine", embedder.fingerprint))
    texts = [" ".join(chance.sample(WORDS, 9)).capitalize() + "." for _ in range(documents)]
    chunks = [Chunk(f"d{n}:v:0", f"d{n}", "v", 0, text, f"/d{n}") for n, text in enumerate(texts)]
    store.upsert(chunks, embedder.embed_documents(texts))
    queries, qrels, unanswerable = {}, {}, {}
    for n, text in enumerate(texts):
        queries[f"q{n}"] = " ".join(chance.sample(text.rstrip(".").split(), 5))
        qrels[f"q{n}"] = {f"d{n}": 1}
        unanswerable[f"u{n}"] = " ".join(chance.sample(WORDS, 5))
    dataset = Dataset("made", queries, qrels, unanswerable=unanswerable)
    return Retriever(store, embedder), dataset


def learnt(present: Calibration, dataset: Dataset | None = None, least: float = 0.5) -> Calibrated:
    retriever, made = collection()
    return calibrate(
        retriever,
        dataset or made,
        present,
        k=5,
        options=SearchOptions(),
        min_evidence=least,
    )


@pytest.mark.parametrize("present", [REFUSES_ALL, REFUSES_NONE])
def test_what_errs_on_one_side_is_mended_on_questions_not_learnt_from(present: Calibration) -> None:
    done = learnt(present)
    before = (done.before.false_answers, done.before.false_refusals)
    assert before == ((0, 1) if present is REFUSES_ALL else (1, 0))
    assert done.changed
    assert done.after.false_answers < 0.2
    assert done.after.false_refusals < 0.2
    assert (done.answerable, done.unanswerable) == (60, 60)
    again = learnt(done.calibration)
    assert again.before.false_answers + again.before.false_refusals < 0.3
    assert json.dumps(asdict(done))


def test_questions_that_nothing_tells_apart_change_nothing() -> None:
    _, made = collection()
    asked = list(made.queries.items())
    same = replace(made, queries=dict(asked[::2]), unanswerable=dict(asked[1::2]))
    done = learnt(DEFAULT, same)
    assert (done.calibration, done.changed) == (DEFAULT, False)
    assert done.after == done.before


def test_no_question_is_judged_by_what_was_learnt_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt_from: list[set[bytes]] = []

    def watched(rows: Any, answerable: Any) -> Calibration:
        learnt_from.append({row.tobytes() for row in rows})
        return fitted(rows, answerable)

    monkeypatch.setattr("rag.evaluation.abstain.fitted", watched)
    assert learnt(REFUSES_ALL).changed
    *folds, every = learnt_from
    assert [len(every - fold) for fold in folds] == [len(every) // 5] * 5
    assert not set.intersection(*folds)


def test_the_least_evidence_that_is_set_is_what_errors_are_counted_with() -> None:
    assert learnt(DEFAULT, least=1.0).before.false_refusals == 1
    assert learnt(DEFAULT, least=0.0).before.false_answers == 1


def test_both_kinds_weigh_the_same_however_many_there_are_of_each() -> None:
    chance = np.random.default_rng(1)
    rows = np.zeros((220, len(NAMES)))
    answerable = np.arange(220) < 200
    rows[:, NAMES.index("constant")] = 1
    rows[:, NAMES.index("similarity")] = np.where(answerable, 0.6, 0.4)
    rows[:, NAMES.index("similarity")] += chance.normal(0, 0.1, 220)
    likely = fitted(rows, answerable).evidence(rows)
    refused, answered = (likely[answerable] < 0.5).mean(), (likely[~answerable] >= 0.5).mean()
    assert abs(refused - answered) < 0.1
    assert max(refused, answered) < 0.3


def test_what_the_questions_do_not_tell_of_stays() -> None:
    """A collection that is asked in a language that is read learns nothing about others."""
    rows = np.zeros((80, len(NAMES)))
    rows[:, : NAMES.index("words_rest")] = np.random.default_rng(2).random((80, 6))
    calibration = fitted(rows, np.arange(80) < 40)
    for name in NAMES[NAMES.index("words_rest") :]:
        assert getattr(calibration, name) == getattr(DEFAULT, name)
    assert calibration.similarity != DEFAULT.similarity


def test_few_questions_move_the_weights_less_than_many() -> None:
    chance = np.random.default_rng(3)
    rows = chance.random((400, len(NAMES)))
    answerable = rows[:, NAMES.index("lead")] > 0.5
    few, many = (fitted(rows[:n], answerable[:n]) for n in (40, 400))
    assert DEFAULT.lead < few.lead < many.lead / 2


def test_questions_without_an_answer_are_read_apart_and_are_no_oddity(tmp_path: Path) -> None:
    lines = [
        {"_id": "1", "text": "What is judged?"},
        {"_id": "2", "text": "What has none?", "answerable": False},
        {"_id": "3", "text": "And this?", "metadata": {"answerable": False}},
        {"_id": "4", "text": "Nobody says.", "metadata": {"answerable": True}},
        {"_id": "5", "text": "Nor here."},
        {"_id": "6", "text": "Judged as well as denied?", "answerable": False},
        {"_id": "7", "text": " ", "answerable": False},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    (tmp_path / "r.tsv").write_text("1\td\t1\n6\td\t1\n3\td\t0\n", "utf-8")
    done = read("made", tmp_path / "q.jsonl", tmp_path / "r.tsv")
    assert done.unanswerable == {"2": "What has none?", "3": "And this?"}
    assert list(done.queries) == ["1", "6"]
    assert done.remarks == ("queries without judgements (left out): 3",)
