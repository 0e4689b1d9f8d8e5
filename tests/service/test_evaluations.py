"""Evaluations that a service runs: what they measure, how they end, and who may see them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from http_client import client, problem
from servers import wait_until
from service import SAMPLE, sample_data, service
from word_app import WordApp

from ingest import pipeline
from rag.errors import NotFound, Overloaded
from rag.evaluation.corpus import Corpus
from rag.evaluation.dataset import beir
from rag.evaluation.measure import measure
from rag.retrieve import SearchOptions
from rag.service import background
from rag.service import evaluations as evaluations_module
from rag.service import evaluator as evaluator_module
from rag.service.datasets import Datasets
from rag.service.evaluations import Evaluation, Evaluations, Stage, Wanted
from rag.service.evaluator import Evaluator
from rag.service.keys import Keys
from rag.settings import load

DOCUMENTS = {
    "tides": "The tide rises twice a day because the moon pulls the sea.",
    "oysters": "Oysters are shipped cold, below eight degrees, in insulated boxes.",
    "bees": "A colony of bees makes honey from the nectar of flowers.",
    "trains": "The night train to Vienna leaves at ten and arrives at eight.",
}
QUERIES = {
    "q1": ("the moon pulls the sea", "tides"),
    "q2": ("oysters in insulated boxes", "oysters"),
    "q3": ("honey from the nectar", "bees"),
    "q4": ("xylophone", "trains"),
}
EVERY = ("dense", "keyword", "hybrid")
ASKED = Wanted(None, "small", EVERY, (1, 3))


def write(folder: Path, *, corpus: bool = True, suffix: str = "", copies: int = 1) -> Path:
    """A dataset whose documents are called like those of `DOCUMENTS` and `suffix`."""
    (folder / "qrels").mkdir(parents=True)
    lines = {
        "queries": [{"_id": q, "text": text} for q, (text, _) in QUERIES.items()],
        "corpus": [
            {"_id": f"{name}{suffix}{n or ''}", "title": name.title(), "text": text}
            for n in range(copies)
            for name, text in DOCUMENTS.items()
        ],
    }
    for name in ("queries", "corpus") if corpus else ("queries",):
        rows = "".join(json.dumps(row) + "\n" for row in lines[name])
        (folder / f"{name}.jsonl").write_text(rows, "utf-8")
    judged = "".join(f"{q}\t{name}{suffix}\t1\n" for q, (_, name) in QUERIES.items())
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", "utf-8")
    return folder


class Service:
    """A folder with evaluations, and threads that run them, which end with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = WordApp(folder)
        self.evaluations = Evaluations(folder / "service")
        self.said: list[str] = []
        self.evaluators: list[Evaluator] = []

    def start(self, app: Any = None) -> Evaluator:
        made = Evaluator(
            self.folder / "service",
            self.evaluations,
            Datasets(self.folder / "datasets"),
            app or self.app,
            self.said.append,
        )
        made.start()
        self.evaluators.append(made)
        return made

    def ended(self, evaluation: Evaluation) -> Evaluation:
        wait_until(lambda: self.get(evaluation).state in ("done", "failed"), 30)
        return self.get(evaluation)

    def done(self, wanted: Wanted) -> Evaluation:
        found = self.ended(self.evaluations.add(wanted))
        assert (found.state, found.stage, found.error) == ("done", "ended", "")
        return found

    def get(self, evaluation: Evaluation) -> Evaluation:
        return self.evaluations.get(evaluation.id)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(background, "_POLL_S", 0.02)
    monkeypatch.setattr(evaluator_module, "_NOTE_S", 0.0)
    monkeypatch.setattr(pipeline, "_WINDOW", 4)
    write(tmp_path / "datasets/small")
    made = Service(tmp_path)
    yield made
    made.app.gate.set()
    assert all(evaluator.stop(30) for evaluator in made.evaluators)
    made.evaluations.close()


def test_a_dataset_is_measured_in_a_collection_of_its_own_as_rag_eval_does(here: Service) -> None:
    here.start()
    found = here.done(ASKED)
    corpus = Corpus.open(here.folder / "datasets/small")
    with here.app.of_corpus(corpus).retriever() as retriever:
        assert (
            found.collection
            == found.settings["collection"]
            == retriever.store.describe().collection
        )
        for result, mode in zip(found.results, EVERY, strict=True):
            expected = measure(retriever, beir(corpus), [1, 3], options=SearchOptions(mode))
            told = expected.to_json()
            assert result["mode"] == mode
            assert result["metrics"] == told["metrics"]
            assert (result["queries"], result["remarks"]) == (4, told["remarks"])
            assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p95"]
    assert (found.settings["store"], found.settings["chunks"]) == ("faiss", 4)
    assert (found.done, found.total) == (12, 12)
    assert here.app.settings.collection == "docs", (
        "the service would answer from another collection"
    )


def test_the_worst_questions_come_with_what_was_found(here: Service) -> None:
    here.start()
    found = here.done(ASKED)
    worst = [one for one in found.worst if one["mode"] == "keyword"]
    assert [(one["question"], one["figure"], one["value"]) for one in worst] == [
        ("xylophone", "ndcg@10", 0.0)
    ], "the others are found first, and are not bad at all"
    assert worst[0]["expected"] == ["Trains"], "the title, not the id"
    [dense] = [one for one in found.worst if one["mode"] == "dense" and not one["value"] > 0.99]
    passages = {p["document_id"]: p for p in dense["found"]}
    assert passages["trains"]["relevant"] and not passages["bees"]["relevant"]
    assert passages["trains"]["source"] == "beir/small/trains"
    assert passages["trains"]["text"].endswith(DOCUMENTS["trains"])


def test_questions_are_the_same_only_if_they_say_the_same(here: Service) -> None:
    other = write(here.folder / "datasets/other") / "queries.jsonl"
    other.write_text(other.read_text().replace("the moon pulls", "the moon drags"))
    here.start()
    one, two = here.done(ASKED), here.done(replace(ASKED, dataset="other"))
    figures = [here.evaluations.figures(found.id)["keyword"] for found in (one, two)]
    assert [len(found) for found in figures] == [4, 4]
    assert len(figures[0].keys() & figures[1].keys()) == 3


def test_documents_of_a_collection_are_judged_by_the_ends_of_their_sources(here: Service) -> None:
    write(here.folder / "datasets/about", corpus=False, suffix=".txt")
    for name, text in DOCUMENTS.items():
        (here.folder / f"{name}.txt").write_text(text)
    here.app.ingest([here.folder / f"{name}.txt" for name in DOCUMENTS], metadata={})
    here.start()
    found = here.done(Wanted("docs", "about", ("keyword",), (1,)))
    assert found.collection == "docs"
    assert found.results[0]["metrics"]["recall@1"] == 0.75
    assert found.worst[0]["expected"] == ["trains.txt"]
    some = here.done(Wanted("docs", "about", ("keyword",), (1,), limit=2))
    assert (some.results[0]["queries"], some.settings["limit"]) == (2, 2)


def test_without_a_dataset_the_documents_are_asked_for_their_own_sentences(here: Service) -> None:
    # Chunks with a sentence to spare.
    longer = here.app.settings.ingest.model_copy(update={"chunk_tokens": 60})
    here.app.settings = here.app.settings.model_copy(update={"ingest": longer})
    text = "{0} swims in bay {0}. Lights of house {0} burn all night. Nobody at {0} sleeps a wink."
    for n in range(30):
        words = text.format(f"number{n}")
        (here.folder / f"{n}.txt").write_text(f"{words} {words.upper()}")
    here.app.ingest([here.folder / f"{n}.txt" for n in range(30)], metadata={})
    here.start()
    found = here.done(Wanted("docs", None, ("keyword",), (1, 10)))
    [result] = found.results
    assert result["queries"] > 10
    assert result["metrics"]["recall@10"] > 0.8
    assert (
        "ann_recall@10"
        not in here.done(Wanted("docs", None, ("dense",), (1,))).results[0]["metrics"]
    )
    assert "in memory" in result["remarks"][0]
    assert (found.settings["collection"], found.settings["store"]) == ("docs", "faiss")
    again = here.done(Wanted("docs", None, ("keyword",), (1, 10)))
    assert again.results[0]["metrics"] == result["metrics"], "the same questions each time"


def test_one_runs_at_a_time(here: Service) -> None:
    here.app.gate.clear()
    first, second = here.start(), here.start()
    one = here.evaluations.add(ASKED)
    two = here.evaluations.add(replace(ASKED, modes=("keyword",)))
    assert (two.state, two.stage, two.done) == ("queued", "waiting", 0)
    assert here.app.reached.wait(30)
    assert here.get(one).state == "running"
    assert here.get(two).state == "queued"
    here.app.gate.set()
    assert here.ended(two).state == here.get(one).state == "done"
    assert (here.get(one).ended_at or 0) <= (here.get(two).started_at or 0)
    assert first.stop(30) and second.stop(30)


def test_it_is_told_how_far_an_evaluation_is(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here.folder / "datasets/long", copies=10)
    told: list[tuple[str, int, int]] = []
    note = here.evaluations.note

    def noted(evaluation_id: str, stage: Stage, done: int, total: int) -> bool:
        told.append((stage, done, total))
        assert note(evaluation_id, stage, done, total)
        now = here.evaluations.get(evaluation_id)
        assert (now.stage, now.done, now.total) == told[-1]
        return True

    monkeypatch.setattr(here.evaluations, "note", noted)
    here.start()
    here.done(replace(ASKED, dataset="long", modes=("keyword", "dense")))
    documents = [done for stage, done, of in told if (stage, of) == ("indexing", 40)]
    questions = [done for stage, done, of in told if (stage, of) == ("asking", 8)]
    assert len(documents) + len(questions) == len(told)
    assert documents == sorted(documents) and len(set(documents)) > 5 and documents[-1] == 40
    assert questions == sorted(questions) and set(questions) == {4, 8}


def test_a_deleted_one_is_stopped(here: Service) -> None:
    write(here.folder / "datasets/long", copies=40)
    here.app.gate.clear()
    here.start()
    running = here.evaluations.add(replace(ASKED, dataset="long"))
    assert here.app.reached.wait(30)
    here.evaluations.delete(running.id)
    here.app.gate.set()
    here.done(replace(ASKED, modes=("keyword",)))
    with pytest.raises(NotFound):
        here.get(running)
    [made] = [name for name in here.app.backend.collections() if "long" in name]
    with here.app.of_collection(made).store() as store:
        assert store.count() < 160, "it went on to the end"
    assert here.said == []


def test_a_service_that_stops_ends_what_runs_and_leaves_what_waits(here: Service) -> None:
    here.app.gate.clear()
    evaluator = here.start()
    running, waiting = here.evaluations.add(ASKED), here.evaluations.add(ASKED)
    assert here.app.reached.wait(30)
    assert not evaluator.stop(0.05), "it embeds"
    here.app.gate.set()
    assert evaluator.stop(30)
    stopped = here.get(running)
    assert (stopped.state, stopped.error) == ("failed", "the service was stopped; run it again")
    assert here.get(waiting).state == "queued"
    here.start()
    assert here.ended(waiting).state == "done"


DIES = """
import os, signal, sys
from pathlib import Path
from word_app import WordApp
from rag.service.datasets import Datasets
from rag.service.evaluations import Evaluations
from rag.service.evaluator import Evaluator
folder = Path(sys.argv[1])
app = WordApp(folder)
app.gate.clear()
evaluations = Evaluations(folder / "service")
Evaluator(folder / "service", evaluations, Datasets(folder / "datasets"), app).start()
assert app.reached.wait(60)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_one_whose_process_died_has_failed(here: Service) -> None:
    left, waiting = here.evaluations.add(ASKED), here.evaluations.add(ASKED)
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    died = subprocess.run(
        [sys.executable, "-c", DIES, str(here.folder)],
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert here.get(left).state == "running"
    here.start()
    assert here.ended(left).error == "its process ended; run it again"
    assert here.ended(waiting).state == "done"


def test_what_cannot_be_measured_fails_in_one_line(here: Service) -> None:
    here.start()
    for wanted, said in [
        (Wanted("nowhere", None, EVERY, (1,)), "there is no collection"),
        (replace(ASKED, dataset="gone"), "there is no dataset 'gone'"),
        (replace(ASKED, dataset="torn"), "line 2"),
    ]:
        torn = here.folder / "datasets/torn"
        if not torn.exists():
            write(torn)
            (torn / "corpus.jsonl").write_text('{"_id": "tides", "text": "x"}\n{"_id": ')
        failed = here.ended(here.evaluations.add(wanted))
        assert (failed.state, failed.stage) == ("failed", "ended")
        assert said in failed.error and "\n" not in failed.error
    (here.folder / "short.txt").write_text("Short.")
    here.app.ingest([here.folder / "short.txt"], metadata={})
    failed = here.ended(here.evaluations.add(Wanted("docs", None, EVERY, (1,))))
    assert failed.error.startswith("no questions can be made out of the documents")


def test_a_bug_fails_its_evaluation_and_no_other(here: Service) -> None:
    class Broken(WordApp):
        def of_corpus(self, *_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("by\nzero")

    broken = here.start(Broken(here.folder))
    failed = here.ended(here.evaluations.add(ASKED))
    assert failed.error == "unexpected ZeroDivisionError; see the service's log"
    assert failed.id in here.said[0]
    assert broken.stop(30)
    here.start()
    here.done(ASKED)


def test_the_newest_are_kept_and_only_so_many_wait(
    here: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluations_module, "_KEPT", 2)
    monkeypatch.setattr(evaluations_module, "_MOST_QUEUED", 3)
    quick = replace(ASKED, modes=("keyword",))
    for _ in range(3):
        here.evaluations.add(quick)
    with pytest.raises(Overloaded):
        here.evaluations.add(quick)
    assert len(here.evaluations.newest(100)) == 3, "what waits is kept"
    here.start()
    ended = [here.ended(one).id for one in reversed(here.evaluations.newest(100))]
    last = here.done(quick)
    assert [one.id for one in here.evaluations.newest(100)] == [last.id, ended[-1]]


def test_datasets_lie_beside_the_data_or_where_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for setting, folder in [({}, "data/datasets"), ({"service.datasets": "judged"}, "judged")]:
        settings = load({"data_dir": "data", **setting}).settings
        assert settings.service.datasets == tmp_path / folder


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, httpx2.Client]]:
    """Clients of a service over the sample corpus, with a key each."""
    data_dir = sample_data(tmp_path_factory.mktemp("evaluations") / "data")
    shutil.copytree(SAMPLE / "eval", data_dir / "datasets/sample")
    write(data_dir / "datasets/no-corpus", corpus=False)
    write(data_dir / "datasets/.hidden")
    (write(data_dir / "datasets/torn") / "qrels/test.tsv").write_text("q1\ttides\n")
    (data_dir / "datasets/empty").mkdir()
    with closing(Keys(data_dir / "service")) as keys:
        presented = {
            "admin": keys.create("admin", ["admin"]),
            "reader": keys.create("reader", ["read"]),
            "tenant": keys.create("tenant", ["read"], tenant={"tenant": "acme"}),
            "other": keys.create("other", ["read"], ["other"]),
            "owner": keys.create("owner", ["admin"], ["other"]),
        }
    unlimited = {"service.rate_limit": "", "service.address_limit": ""}
    with service(data_dir, settings=unlimited) as running:
        clients = {}
        try:
            for name, (_, key) in presented.items():
                clients[name] = httpx2.Client(
                    base_url=running.url, headers={"X-API-Key": key}, timeout=60
                )
            yield clients
        finally:
            for opened in clients.values():
                opened.close()
        assert "unexpected" not in running.stderr, running.stderr[-5000:]


def run(api: httpx2.Client, **asked: Any) -> Any:
    """An evaluation that was asked for, once it is done."""
    reply = api.post("/evaluations", json=asked)
    assert reply.status_code == 202, reply.text
    last = reply.json()
    assert last["state"] in ("queued", "running")

    def over() -> bool:
        nonlocal last
        last = api.get(f"/evaluations/{last['id']}").json()
        return last["state"] in ("done", "failed")

    wait_until(over, 90)
    assert last["state"] == "done", last
    return last


@pytest.fixture(scope="module")
def first(served: dict[str, httpx2.Client]) -> Any:
    return run(
        served["admin"],
        dataset="sample",
        collection="default",
        modes=["keyword", "dense", "keyword"],
        ks=[5, 1, 5],
        limit=20,
    )


def test_datasets_are_listed_by_name(served: dict[str, httpx2.Client]) -> None:
    listed = served["reader"].get("/datasets").json()["datasets"]
    judged = {
        line.split("\t")[0]
        for line in (SAMPLE / "eval/qrels/test.tsv").read_text().splitlines()[1:]
    }
    assert listed == [
        {"name": "no-corpus", "queries": 4, "corpus": False},
        {"name": "sample", "queries": len(judged), "corpus": True},
        {"name": "torn", "queries": None, "corpus": True},
    ]


def test_an_evaluation_over_http(served: dict[str, httpx2.Client], first: Any) -> None:
    assert (first["collection"], first["dataset"], first["limit"]) == ("default", "sample", 20)
    assert (first["modes"], first["ks"]) == (["keyword", "dense"], [1, 5])
    assert (first["done"], first["total"], first["stage"]) == (40, 40, "ended")
    assert first["added_at"] <= first["started_at"] <= first["ended_at"]
    assert [result["mode"] for result in first["results"]] == ["keyword", "dense"]
    for result in first["results"]:
        assert 0.3 < result["metrics"]["recall@1"] <= result["metrics"]["recall@5"] <= 1
        assert set(result["latency_ms"]) == {"p50", "p95"}
    assert first["settings"]["embedder"] == "all-MiniLM-L6-v2"
    assert first["comparison"] is None
    assert first["worst"]
    for one in first["worst"]:
        assert one["value"] < 1
        assert all((SAMPLE / name).is_file() for name in one["expected"])
        for passage in one["found"]:
            known = any(passage["source"].endswith(f"/{name}") for name in one["expected"])
            assert passage["relevant"] == known
            document = served["reader"].get(f"/documents/{passage['document_id']}").json()
            assert document["source"] == passage["source"]


def test_two_evaluations_are_compared_where_both_measured(
    served: dict[str, httpx2.Client], first: Any
) -> None:
    api = served["admin"]
    asked = {"dataset": "sample", "collection": "default", "limit": 20}
    now = run(api, **asked, modes=["dense", "hybrid"], ks=[1, 10])
    found = api.get(f"/evaluations/{now['id']}", params={"baseline": first["id"]}).json()
    assert found["results"] == now["results"]
    assert set(found["comparison"]) == {"dense"}
    same = found["comparison"]["dense"]["ndcg@10"]
    assert (same["wins"], same["losses"], same["ties"], same["p"]) == (0, 0, 20, 1.0)
    assert same["value"] == pytest.approx(now["results"][0]["metrics"]["ndcg@10"], abs=1e-5)
    assert {"recall@1", "mrr@10"} <= set(found["comparison"]["dense"])
    assert not {"recall@5", "recall@10"} & set(found["comparison"]["dense"])
    better = run(api, **asked, modes=["keyword"], ks=[1])
    params = {"baseline": first["id"]}
    assert set(api.get(f"/evaluations/{better['id']}", params=params).json()["comparison"]) == {
        "keyword"
    }
    others = run(api, modes=["keyword"], limit=5)
    assert api.get(f"/evaluations/{others['id']}", params=params).json()["comparison"] == {}
    reply = api.get(f"/evaluations/{now['id']}", params={"baseline": "0" * 32})
    problem(reply, 404, "not_found")


def test_evaluations_are_listed_newest_first_and_deleted(
    served: dict[str, httpx2.Client], first: Any
) -> None:
    api = served["admin"]
    made = run(api, collection="default", modes=["keyword"], limit=5)
    assert made["dataset"] is None
    listed = api.get("/evaluations", params={"limit": 1}).json()["evaluations"]
    assert [one["id"] for one in listed] == [made["id"]]
    assert not {"results", "worst", "comparison"} & set(listed[0])
    assert api.get("/evaluations", params={"collection": "other"}).json() == {"evaluations": []}
    problem(served["reader"].delete(f"/evaluations/{made['id']}"), 403, "forbidden")
    assert api.delete(f"/evaluations/{made['id']}").status_code == 204
    problem(api.get(f"/evaluations/{made['id']}"), 404, "not_found")
    problem(api.delete(f"/evaluations/{made['id']}"), 404, "not_found")
    listed = api.get("/evaluations", params={"collection": "default"}).json()["evaluations"]
    assert first["id"] in [one["id"] for one in listed]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"dataset": "gone"}, 404, "not_found"),
        ({"dataset": "../datasets/sample"}, 422, "invalid_request"),
        ({"dataset": "/etc"}, 422, "invalid_request"),
        ({"dataset": ".hidden"}, 422, "invalid_request"),
        ({"dataset": "empty"}, 404, "not_found"),
        ({"dataset": "no-corpus"}, 422, "input_error"),
        ({"collection": "nowhere"}, 404, "unknown_collection"),
        ({"modes": []}, 422, "invalid_request"),
        ({"modes": ["magic"]}, 422, "invalid_request"),
        ({"ks": [0]}, 422, "invalid_request"),
        ({"limit": 0}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(
    served: dict[str, httpx2.Client], asked: Any, status: int, code: str
) -> None:
    problem(served["admin"].post("/evaluations", json=asked), status, code)


def test_who_may_see_and_run_them(served: dict[str, httpx2.Client], first: Any) -> None:
    paths = ("/datasets", "/evaluations", f"/evaluations/{first['id']}")
    for path in paths:
        assert served["reader"].get(path).status_code == 200
        problem(served["tenant"].get(path), 403, "forbidden")
    for name in ("other", "owner"):
        assert served[name].get("/evaluations").json() == {"evaluations": []}
        problem(served[name].get(paths[2]), 404, "not_found")
        reply = served[name].get("/evaluations", params={"collection": "default"})
        problem(reply, 403, "forbidden")
    problem(served["owner"].delete(paths[2]), 404, "not_found")
    for name, asked in [
        ("reader", {}),
        ("tenant", {}),
        ("other", {"collection": "other"}),
        ("owner", {"collection": "default"}),
        ("owner", {"dataset": "sample"}),
    ]:
        problem(served[name].post("/evaluations", json=asked), 403, "forbidden")
    with client(str(served["admin"].base_url)) as stranger:
        problem(stranger.get("/evaluations"), 401, "unauthenticated")
