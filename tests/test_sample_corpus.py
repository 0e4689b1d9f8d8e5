"""The sample corpus is sound, and its questions find their documents."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from rag.app import App
from rag.settings import load

CORPUS = Path(__file__).parents[1] / "sample_corpus"
QUERIES = [
    json.loads(line) for line in (CORPUS / "eval/queries.jsonl").read_text("utf-8").splitlines()
]
JUDGED: dict[str, set[str]] = defaultdict(set)
for row in csv.DictReader(
    (CORPUS / "eval/qrels/test.tsv").read_text("utf-8").splitlines(), delimiter="\t"
):
    JUDGED[row["query-id"]].add(row["corpus-id"])


def test_documents_and_judgements_agree() -> None:
    done = subprocess.run(
        [sys.executable, CORPUS / "_sources/build.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answerable = [q for q in QUERIES if q["metadata"]["answerable"]]
    assert len(answerable) >= 60
    assert len(QUERIES) - len(answerable) >= 12


@pytest.fixture(scope="module")
def answers(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Each question with the documents found and the answer given, by the defaults."""
    values = {"data_dir": tmp_path_factory.mktemp("data"), "models_dir": models_dir}
    app = App(load(values).settings)
    assert not app.ingest([CORPUS], metadata={}).failed
    found = []
    with app.retriever() as retriever, app.answerer() as answerer:
        for query in QUERIES:
            hits = retriever.search(query["text"], 5).hits
            sources = {Path(hit.chunk.source).relative_to(CORPUS).as_posix() for hit in hits}
            relevant = JUDGED[query["_id"]]
            found.append(
                {
                    **query["metadata"],
                    "recall": len(sources & relevant) / len(relevant) if relevant else None,
                    "answer": answerer.ask(query["text"], 5),
                }
            )
    return found


@pytest.mark.parametrize(("language", "least"), [("en", 0.9), ("zh", 0.75)])
def test_questions_find_their_documents(
    answers: list[dict[str, Any]], language: str, least: float
) -> None:
    """Of those judged, some are in the other language, which the default embedder cannot read."""
    recalls = [a["recall"] for a in answers if a["answerable"] and a["lang"] == language]
    assert mean(recalls) >= least


def test_every_answer_is_cited_with_its_quotation(answers: list[dict[str, Any]]) -> None:
    for found in answers:
        answer = found["answer"]
        if answer.abstained:
            assert answer.citations == ()
            continue
        assert answer.citations
        for citation in answer.citations:
            assert f"[{citation.marker}]" in answer.text
            assert citation.quotes()
            assert all(quote in " ".join(answer.text.split()) for quote in citation.quotes())


def test_refusals_are_rare_for_answerable_and_usual_for_other_questions(
    answers: list[dict[str, Any]],
) -> None:
    english = [a for a in answers if a["lang"] == "en"]
    refused = {
        kind: mean(a["answer"].abstained for a in english if a["answerable"] is kind)
        for kind in (True, False)
    }
    assert refused[True] <= 0.15
    assert refused[False] >= 0.5
