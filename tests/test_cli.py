"""The commands end to end: real files, the real embedder, the real store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import rag
from servers import llama_server

from stores.faiss import FaissBackend

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "sample_corpus"
pytestmark = pytest.mark.usefixtures("models_dir")


@pytest.fixture(scope="session")
def corpus_data(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Path:
    """A data folder with sample_corpus ingested, to copy from."""
    data = tmp_path_factory.mktemp("corpus")
    done = rag("ingest", CORPUS, RAG_DATA_DIR=str(data), RAG_MODELS_DIR=str(models_dir))
    assert done.status == 0, done.err
    return data


@pytest.fixture
def ingested(corpus_data: Path, tmp_path: Path) -> Path:
    """sample_corpus in the data folder of this test."""
    shutil.copytree(corpus_data, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "one.txt").write_text("The warehouse opens at seven. It closes at nine.", "utf-8")
    (folder / "two.md").write_text("# Parking\n\nVisitors park behind the mill.", "utf-8")
    return folder


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = "import sys; from rag.cli import main; main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "numpy", "faiss", "pydantic", "rich", "openvino", "httpx"}
    took = []
    for _ in range(5):
        started = time.perf_counter()
        assert rag("--help").status == 0
        took.append(time.perf_counter() - started)
    assert min(took) < 0.2


def test_ingest_says_what_it_did_and_twice_does_nothing(docs: Path) -> None:
    first = rag("ingest", docs, "--json")
    assert first.status == 0, first.err
    assert first.json["files"] == {
        "new": 2,
        "changed": 0,
        "unchanged": 0,
        "removed": 0,
        "skipped": [],
    }
    assert first.json["chunks"] == {"embedded": 2, "stored": 2, "deleted": 0}
    assert set(first.json["seconds"]) == {"read", "embed", "write", "total"}
    second = rag("ingest", docs)
    assert second.status == 0
    assert "0 chunks embedded" in second.out
    assert "2 unchanged" in second.out


def test_the_second_ingest_does_not_load_the_model(docs: Path, models_dir: Path) -> None:
    assert rag("ingest", docs).status == 0
    code = (
        "import sys; from rag.cli import main; status = main(sys.argv[1:]);"
        "print(*sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "ingest", str(docs)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"torch", "openvino", "langchain_text_splitters"} & set(done.stdout.split())


def test_a_bad_file_sets_the_exit_status(docs: Path) -> None:
    (docs / "bad.txt").write_bytes(b"caf\xe9")
    done = rag("ingest", docs, "--json")
    assert done.status == 1
    (skipped,) = done.json["files"]["skipped"]
    assert skipped["source"] == str(docs / "bad.txt")
    assert "UTF-8" in skipped["reason"]
    assert done.json["files"]["new"] == 2
    assert "Traceback" not in done.err


def test_ask_answers_with_sources(ingested: Path) -> None:
    question = "My box reports E-22. What do I press to start balancing the cells?"
    done = rag("ask", question, "--json")
    assert done.status == 0, done.err
    answer = done.json
    assert "Hold both arrow keys for 6 seconds" in answer["answer"]
    assert not answer["abstained"]
    assert answer["degraded"] == []
    assert answer["model"] == "extractive"
    assert {"search", "total"} <= set(answer["timings_ms"])
    citation = answer["citations"][0]
    assert f"[{citation['marker']}]" in answer["answer"]
    assert citation["source"] == str(CORPUS / "manuals/tk-40-operator-manual.pdf")
    assert citation["page"] == 3
    assert {"chunk_id", "document_id", "title", "score", "text"} <= set(citation)
    ((start, end),) = citation["spans"]
    assert "Hold both arrow keys" in citation["text"][start:end]
    people = rag("ask", question)
    assert "no language model is configured" in people.out
    assert "tk-40-operator-manual.pdf, page 3" in people.out


def test_streamed_json_ends_with_the_same_answer(ingested: Path) -> None:
    question = "How many days of notice does the supplier need for a price change?"
    whole = rag("ask", question, "--json").json
    lines = [
        json.loads(line) for line in rag("ask", question, "--json", "--stream").out.splitlines()
    ]
    assert lines[0]["event"] == "sources"
    assert lines[-1]["event"] == "done"
    text = "".join(line["text"] for line in lines if line["event"] == "token")
    assert text == lines[-1]["answer"] == whole["answer"]
    assert lines[-1]["citations"] == whole["citations"]


@pytest.mark.parametrize(
    "question", ["Who won the football World Cup in 1998?", "How do I make a sourdough starter?"]
)
def test_what_the_documents_do_not_hold_is_abstained_from(ingested: Path, question: str) -> None:
    answer = rag("ask", question, "--json").json
    assert answer["abstained"]
    assert answer["citations"] == []
    assert "do not hold" in answer["answer"]


def test_an_abstention_is_in_the_language_of_the_question(ingested: Path) -> None:
    answer = rag("ask", "长城一共有多长？", "--json").json
    assert answer["abstained"]
    assert "找不到" in answer["answer"]


def test_search_lists_hits_and_filters_them(ingested: Path) -> None:
    everything = rag("search", "warranty period", "--json", "--top-k", "3").json
    assert len(everything) == 3
    scores = [hit["score"] for hit in everything]
    assert scores == sorted(scores, reverse=True)
    where = json.dumps({"source": {"$eq": str(CORPUS / "support/faq.html")}})
    filtered = rag("search", "warranty period", "--json", "--where", where).json
    assert {Path(hit["source"]).name for hit in filtered} == {"faq.html"}


def test_documents_and_collections(ingested: Path) -> None:
    (info,) = rag("collections", "list", "--json").json
    assert (info["collection"], info["dim"], info["embedder"]["model"]) == (
        "default",
        384,
        "all-MiniLM-L6-v2",
    )
    records = rag("documents", "list", "--json").json
    assert len(records) == 20
    manuals = rag("documents", "list", "--search", "MANUAL", "--json").json
    assert manuals == [r for r in records if "manual" in (r["source"] + r["title"]).lower()]
    assert (
        rag("documents", "list", "--search", "MANUAL", "--limit", "2", "--json").json == manuals[:2]
    )
    shown = rag("documents", "show", "tk-40-operator-manual.pdf", "--json").json
    assert [chunk["position"] for chunk in shown["texts"]] == list(range(shown["chunks"]))
    done = rag("documents", "delete", "support/faq.html", shown["id"])
    assert "deleted 2 documents" in done.out
    assert len(rag("documents", "list", "--json").json) == 18
    assert (
        rag("search", "faq", "--where", f'{{"document_id": "{shown["id"]}"}}', "--json").json == []
    )
    assert "--yes" in rag("collections", "delete", "default").error
    assert rag("collections", "delete", "default", "--yes").status == 0
    assert rag("collections", "list", "--json").json == []


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["ingest", "nowhere"], 2, "nowhere"),
        (["ingest", "."], 2, "no files"),
        (["ingest", "{docs}", "--metadata", "x"], 2, "NAME=VALUE"),
        (["ingest", "{docs}", "--metadata", "page=3"], 2, "page"),
        (["ingest", "{docs}", "--collection", "../x"], 2, "../x"),
        (["ingest", "{docs}", "--store", "faisss"], 2, "did you mean 'faiss'?"),
        (["ask", "why?", "--where", "year=2"], 2, "not JSON"),
        (["ask", "why?", "--where", '{"a": {"$like": 1}}'], 2, "$like"),
        (["ask", "why?"], 4, "rag ingest PATH --collection default"),
        (["search", "why?", "--collection", "none"], 4, "none"),
        (["ask", "why?", "--top-k", "0"], 2, "--top-k"),
        (["documents", "list"], 4, "default"),
        (["documents", "list", "--limit", "0"], 2, "--limit"),
        (["documents", "list", "--search", "\udcff"], 2, "Unicode"),
        (["collections", "show", "none"], 4, "none"),
        (["collections", "delete", "none", "--yes"], 4, "none"),
        (["--set", "answer.top_k=x", "ask", "why?"], 2, "answer.top_k"),
        (["--set", "nothing=1", "config", "show"], 2, "nothing"),
        (["--config", "nowhere.toml", "config", "show"], 2, "nowhere.toml"),
        (["--set", "embedder.kind=x", "ingest", "{docs}"], 2, "embedder"),
        (["--set", "embedder.model=nope", "ingest", "{docs}"], 5, "nope"),
        (["--set", "ingest.overlap_tokens=200", "ingest", "{docs}"], 2, "overlap"),
        (["frobnicate"], 2, "frobnicate"),
        (["ask"], 2, "QUESTION"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_a_status(
    arguments: list[str], status: int, says: str, docs: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    done = rag(*(a.replace("{docs}", str(docs)) for a in arguments), cwd=empty)
    assert says in done.error
    assert done.status == status
    assert done.out == ""


def test_an_empty_question_is_refused(ingested: Path) -> None:
    done = rag("ask", "  ")
    assert "empty" in done.error
    assert done.status == 2


def test_another_embedder_is_refused_with_the_way_out(ingested: Path) -> None:
    changed = rag("--set", "embedder.query_prefix=q: ", "ask", "why?")
    assert changed.status == 3
    assert "query_prefix" in changed.error
    assert "rag collections reembed default" in changed.error


def test_another_precision_is_only_refused_when_asked_for(ingested: Path) -> None:
    """A collection moves between machines whose CPUs prefer different precisions."""
    stamped = rag("collections", "show", "default", "--json").json["embedder"]["precision"]
    other = "float32" if stamped == "bfloat16" else "bfloat16"
    assert rag("search", "warranty").status == 0
    assert "precision" in rag("--set", f"embedder.precision={other}", "search", "x").error


def test_a_store_open_for_writing_elsewhere_is_refused(docs: Path, tmp_path: Path) -> None:
    assert rag("ingest", docs).status == 0
    store = FaissBackend(data_dir=tmp_path / "data").open("default")
    (chunk,) = store.get([f"{next(store.documents()).id}:{next(store.documents()).version}:0"])
    (_, vectors) = next(store.scan())
    store.upsert([chunk], vectors[:1])  # this process is the writer now
    (docs / "three.txt").write_text("Something new.", "utf-8")
    done = rag("ingest", docs, "--json")
    assert done.status == 3
    assert "being written by another process" in done.error
    store.close()
    assert rag("ingest", docs, "--json").json["files"]["new"] == 1


def test_settings_come_in_layers_and_secrets_are_masked(tmp_path: Path) -> None:
    (tmp_path / "rag.toml").write_text(
        'collection = "file"\nstore = "memory"\n'
        '[generator]\nmodel = "m"\napi_key = "hush"\n[stores.milvus]\ntoken = "hush"\n'
    )
    done = rag(
        "--set",
        "answer.top_k=7",
        "config",
        "show",
        "--json",
        cwd=tmp_path,
        RAG_STORE="faiss",
        RAG_GENERATOR_MAX_TOKENS="99",
        RAG_TYPO="1",
    )
    rows = {name: (row["value"], row["from"]) for name, row in done.json.items()}
    assert rows["collection"] == ("file", "rag.toml")
    assert rows["store"] == ("faiss", "RAG_STORE")
    assert rows["generator.max_tokens"] == (99, "RAG_GENERATOR_MAX_TOKENS")
    assert rows["answer.top_k"] == (7, "command line")
    assert rows["embedder.device"] == ("auto", "default")
    assert rows["generator.api_key"] == rows["stores.milvus.token"] == ("********", "rag.toml")
    assert "hush" not in done.out + done.err
    assert "RAG_TYPO" in done.err


def test_lists_and_objects_can_be_set_in_json() -> None:
    done = rag(
        *("--set", 'service.trusted_proxies=["10.0.0.1"]'),
        *("--set", 'generator.options={"seed": 7}'),
        *("--set", "embedder.query_prefix=[q] "),
        *("config", "show", "--json"),
    )
    assert done.json["service.trusted_proxies"]["value"] == ["10.0.0.1"]
    assert done.json["generator.options.seed"] == {"value": 7, "from": "command line"}
    assert done.json["embedder.query_prefix"]["value"] == "[q] "


def test_a_config_that_is_not_toml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rag.toml").write_text("collection = ")
    done = rag("config", "show", cwd=tmp_path)
    assert done.status == 2
    assert "rag.toml" in done.error


def test_the_generator_being_down_degrades_to_quotations(ingested: Path) -> None:
    done = rag(
        "--set",
        "generator.url=http://127.0.0.1:9/v1",
        "--set",
        "generator.model=m",
        "ask",
        "My box reports E-22. What do I press to start balancing the cells?",
        "--json",
    )
    assert done.status == 0
    assert done.json["degraded"] == ["generator"]
    assert "Hold both arrow keys" in done.json["answer"]
    assert done.json["model"] == "extractive"
    assert "127.0.0.1:9" in done.json["notice"]


def test_a_model_server_writes_the_answer(ingested: Path) -> None:
    """llama.cpp's own server with SmolLM2: small, but real from the prompt to the citation."""
    with llama_server("chat") as url:
        done = rag(
            *("--set", f"generator.url={url}", "--set", "generator.max_tokens=60"),
            *("--set", "generator.context_tokens=2048"),
            *("ask", "What do I press when the box reports E-22?", "--json"),
        )
    assert done.status == 0, done.err
    answer = done.json
    assert answer["degraded"] == []
    assert answer["model"] not in ("", "extractive")
    assert answer["abstained"] or answer["usage"]["completion_tokens"] > 0
    for citation in answer["citations"]:
        assert f"[{citation['marker']}]" in answer["answer"]


def test_a_bug_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rag import cli

    def explode(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr("rag.cli.settings.load_settings", explode)
    assert cli.main(["config", "show"]) == 1
    shown = capsys.readouterr().err
    assert "oops" in shown
    assert "--debug" in shown
    assert len(shown.splitlines()) == 1


@pytest.mark.parametrize(
    "front",
    [
        'k: "\\ud800"',
        "note: " + "x" * 5000,
        "a0: &a0 {x: 1}\n"
        + "\n".join(
            f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 10)
        ),
    ],
    ids=["surrogate", "long", "bomb"],
)
def test_hostile_front_matter_costs_only_itself(docs: Path, front: str) -> None:
    (docs / "bad.md").write_text(f"---\n{front}\n---\nText.", "utf-8")
    done = rag("--set", "ingest.parse_seconds=3", "ingest", docs, "--json")
    assert done.json["files"]["new"] + len(done.json["files"]["skipped"]) == 3
    assert done.json["files"]["new"] >= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ingest", ""], "a path is empty"),
        (["ask", "why?", "--where", ""], "not JSON"),
        (["--set", "generator.url=http://127.0.0.1:99999/v1", "config", "show"], ""),
        (["ingest", "{docs}", "--metadata", "a=" + "[" * 50_000], "metadata 'a'"),
        (["--data-dir", "~nobody-here/x", "config", "show"], "folder of the settings"),
        (["ingest", "{docs}\x1b[31m"], "\ufffd"),
    ],
)
def test_what_scripts_and_slips_give_is_told(
    arguments: list[str], says: str, docs: Path, tmp_path: Path
) -> None:
    done = rag(*(a.replace("{docs}", str(docs)) for a in arguments), cwd=tmp_path)
    assert "\x1b" not in done.out + done.err
    if says:
        assert says in done.error
        assert done.status == 2


def test_a_damaged_collection_is_told_and_can_be_deleted(docs: Path, tmp_path: Path) -> None:
    assert rag("ingest", docs).status == 0
    assert rag("ingest", docs, "--collection", "other").status == 0
    (tmp_path / "data/faiss/other/chunks.sqlite3").write_bytes(b"damage" * 1000)
    listed = rag("collections", "list", "--json")
    assert [info["collection"] for info in listed.json] == ["default"]
    assert "'other'" in listed.err
    assert rag("collections", "delete", "other", "--yes").status == 0
    assert not (tmp_path / "data/faiss/other").exists()
