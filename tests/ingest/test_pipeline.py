from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from embedders import WordEmbedder

from ingest.pipeline import Options, Progress, Report, ingest
from ingest.read import Limits
from rag.errors import InputError, StoreError, StoreUnavailable
from rag.protocols import VectorStore
from rag.types import CollectionSpec
from stores.faiss import FaissBackend
from stores.memory import MemoryBackend, MemoryStore

OPTIONS = Options(tokens=12, overlap=0)
SPEC = CollectionSpec("pipeline", 32, embedder=WordEmbedder().fingerprint)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryBackend().create(SPEC)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    write(folder / "a.txt", "alpha", 40)
    write(folder / "b.md", "beta", 5)
    write(folder / "sub" / "c.txt", "gamma", 25)
    return folder


def write(path: Path, word: str, count: int) -> None:
    path.write_text(" ".join(f"{word}{n}." for n in range(count)), "utf-8")


def run(store: VectorStore | None, *paths: Path, **changes: Any) -> tuple[Report, WordEmbedder]:
    embedder = WordEmbedder()
    options = replace(OPTIONS, **changes)
    return ingest(paths, store=store, embedder=embedder, options=options), embedder


def ids(store: VectorStore) -> set[str]:
    return {chunk.id for chunks, _ in store.scan() for chunk in chunks}


def texts(store: VectorStore, name: str) -> list[str]:
    found = [c for chunks, _ in store.scan() for c in chunks if c.source.endswith(name)]
    return [c.text for c in sorted(found, key=lambda c: c.position)]


def test_everything_is_stored_and_counted(store: MemoryStore, docs: Path) -> None:
    report, embedder = run(store, docs)
    assert (report.new, report.changed, report.unchanged, report.removed) == (3, 0, 0, 0)
    assert report.embedded == report.stored == embedder.embedded == store.count() > 5
    assert not report.failed
    assert " ".join(texts(store, "a.txt")) == (docs / "a.txt").read_text("utf-8")
    records = {r.source: r for r in store.documents()}
    assert set(records) == {str(docs / name) for name in ("a.txt", "b.md", "sub/c.txt")}
    assert all(record.complete for record in records.values())
    assert set(report.to_json()) == {"files", "chunks", "seconds"}


def test_a_second_run_embeds_and_writes_nothing(store: MemoryStore, docs: Path) -> None:
    run(store, docs)
    before = ids(store)
    report, embedder = run(store, docs, metadata={})
    assert embedder.embedded == 0
    assert (report.unchanged, report.new, report.changed, report.stored) == (3, 0, 0, 0)
    assert ids(store) == before


def test_a_changed_file_replaces_its_chunks_and_no_others(store: MemoryStore, docs: Path) -> None:
    run(store, docs)
    others = {i for i in ids(store) if i not in ids_of(store, docs / "a.txt")}
    old = ids_of(store, docs / "a.txt")
    write(docs / "a.txt", "delta", 30)
    report, embedder = run(store, docs)
    assert (report.changed, report.unchanged, report.deleted) == (1, 2, len(old))
    assert embedder.embedded == report.stored == len(ids_of(store, docs / "a.txt"))
    assert not ids(store) & old
    assert others <= ids(store)
    assert " ".join(texts(store, "a.txt")).startswith("delta0.")


def ids_of(store: VectorStore, path: Path) -> set[str]:
    return {c.id for chunks, _ in store.scan() for c in chunks if c.source == str(path)}


@pytest.mark.parametrize("change", [{"tokens": 8}, {"overlap": 2}, {"metadata": {"lang": "en"}}])
def test_settings_that_shape_chunks_make_a_new_version(
    store: MemoryStore, docs: Path, change: dict[str, Any]
) -> None:
    run(store, docs)
    before = ids(store)
    report, _ = run(store, docs, **change)
    assert report.changed == 3
    assert not ids(store) & before
    again, embedder = run(store, docs, **change)
    assert (again.unchanged, embedder.embedded) == (3, 0)


def test_a_bad_file_is_reported_and_costs_only_itself(store: MemoryStore, docs: Path) -> None:
    (docs / "bad.txt").write_bytes(b"caf\xe9 au lait")
    (docs / "empty.md").write_text(" \n\t\n")
    (docs / "broken.pdf").write_bytes(b"%PDF-1.4 nonsense")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    report, _ = run(store, docs)
    assert report.new == 3
    assert report.failed
    reasons = {Path(s.source).name: (s.reason, s.failed) for s in report.skipped}
    assert set(reasons) == {"bad.txt", "empty.md", "broken.pdf", "picture.png"}
    assert "iconv" in reasons["bad.txt"][0]
    assert "no text" in reasons["empty.md"][0]
    assert not reasons["picture.png"][1]
    assert all("\n" not in reason for reason, _ in reasons.values())


def test_an_unknown_format_fails_only_when_it_was_named(store: MemoryStore, docs: Path) -> None:
    picture = docs / "picture.png"
    picture.write_bytes(b"\x89PNG")
    assert not run(store, docs)[0].failed
    assert run(store, picture, docs)[0].failed


def test_a_file_that_breaks_keeps_its_old_version(store: MemoryStore, docs: Path) -> None:
    run(store, docs)
    before = ids(store)
    (docs / "a.txt").write_bytes(b"\xff\xfe\xff")
    report, _ = run(store, docs, prune=True)
    assert [Path(s.source).name for s in report.skipped] == ["a.txt"]
    assert ids(store) == before


def test_prune_deletes_what_vanished_and_only_below_the_paths(
    store: MemoryStore, docs: Path
) -> None:
    run(store, docs)
    (docs / "b.md").unlink()
    (docs / "sub" / "c.txt").unlink()
    kept = run(store, docs)[0]
    assert (kept.removed, len(list(store.documents()))) == (0, 3)
    write(docs / "sub" / "d.txt", "delta", 3)
    report, _ = run(store, docs / "sub", prune=True)
    assert (report.removed, report.new) == (1, 1)
    report, _ = run(store, docs, prune=True)
    assert report.removed == 1
    assert {Path(r.source).name for r in store.documents()} == {"a.txt", "d.txt"}
    assert report.deleted > 0


def test_an_emptied_folder_is_an_error_not_a_prune(store: MemoryStore, docs: Path) -> None:
    run(store, docs)
    for path in [docs / "a.txt", docs / "b.md", docs / "sub" / "c.txt"]:
        path.unlink()
    with pytest.raises(InputError, match="no files"):
        run(store, docs, prune=True)
    assert len(list(store.documents())) == 3


def test_a_missing_path_is_an_error(store: MemoryStore, docs: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        run(store, docs, docs / "nowhere")
    assert store.count() == 0


def test_a_dry_run_says_what_would_be_done_and_does_nothing(docs: Path) -> None:
    report, embedder = run(None, docs, dry_run=True)
    assert (report.new, report.stored, embedder.embedded) == (3, 0, 0)
    store = MemoryBackend().create(SPEC)
    run(store, docs)
    before = ids(store)
    write(docs / "a.txt", "new", 3)
    (docs / "b.md").unlink()
    report, embedder = run(store, docs, dry_run=True, prune=True)
    assert (report.changed, report.unchanged, report.removed) == (1, 1, 1)
    assert (report.deleted, embedder.embedded) == (0, 0)
    assert ids(store) == before


def test_metadata_and_pages_reach_the_chunks(store: MemoryStore, docs: Path) -> None:
    (docs / "b.md").write_text("---\ntitle: Beta\nyear: 2024\nlang: de\n---\nText here.", "utf-8")
    run(store, docs, metadata={"lang": "en"})
    (beta,) = (c for chunks, _ in store.scan() for c in chunks if c.source.endswith("b.md"))
    assert beta.title == "Beta"
    assert dict(beta.metadata) == {"year": 2024, "lang": "en"}
    assert beta.page is None


def test_metadata_that_no_store_takes_is_refused_before_anything(
    store: MemoryStore, docs: Path
) -> None:
    with pytest.raises(InputError, match="source"):
        run(store, docs, metadata={"source": "x"})
    assert store.count() == 0


def test_a_file_too_large_is_reported(store: MemoryStore, docs: Path) -> None:
    (docs / "large.txt").write_text("word " * 300_000)
    report, _ = run(store, docs, limits=Limits(file_mb=1))
    assert [Path(s.source).name for s in report.skipped] == ["large.txt"]


def test_progress_ends_with_everything(store: MemoryStore, docs: Path) -> None:
    seen: list[Progress] = []
    ingest([docs], store=store, embedder=WordEmbedder(), options=OPTIONS, progress=seen.append)
    assert seen[-1] == Progress(3, 3, store.count())


def test_a_store_that_loses_chunks_is_found_out(docs: Path) -> None:
    class Lossy(MemoryStore):
        def upsert(self, chunks: Any, vectors: Any) -> None:
            super().upsert(chunks[-1:], vectors[-1:])

    with pytest.raises(StoreError, match="chunks of document"):
        run(Lossy(SPEC), docs)


class Disconnecting(MemoryStore):
    """Fails for good at the n-th write, like a server that goes away."""

    def __init__(self, spec: CollectionSpec, after: int) -> None:
        super().__init__(spec)
        self.left = after

    def _spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("gone", "come back")

    def upsert(self, chunks: Any, vectors: Any) -> None:
        self._spend()
        super().upsert(chunks, vectors)

    def delete(self, **arguments: Any) -> int:
        self._spend()
        return super().delete(**arguments)


@pytest.mark.parametrize("after", range(3))
def test_an_update_that_fails_never_loses_the_old_version(
    docs: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.pipeline._WINDOW", 3)
    store = Disconnecting(SPEC, 1000)
    run(store, docs)
    old = ids_of(store, docs / "a.txt")
    write(docs / "a.txt", "new", 40)
    store.left = after
    with pytest.raises(StoreUnavailable):
        run(store, docs)
    now = ids_of(store, docs / "a.txt")
    whole = [r for r in store.documents() if r.source.endswith("a.txt") and r.complete]
    assert old <= now or len(whole) == 1
    store.left = 1000
    run(store, docs)
    fresh = MemoryBackend().create(SPEC)
    run(fresh, docs)
    assert ids(store) == ids(fresh)


@pytest.fixture
def killed(tmp_path: Path, docs: Path) -> Iterator[Any]:
    data = tmp_path / "data"

    def kill(at: int, when: str) -> int:
        tests = str(Path(__file__).parents[1] / "support")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, str(Path.cwd())])}
        command = [sys.executable, str(Path(__file__).with_name("killed.py"))]
        command += [str(docs), str(data), str(at), when]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, -9), done.stderr
        return done.returncode

    yield kill


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("at", [1, 2, 3, 5])
def test_kill_9_and_a_rerun_give_the_ids_of_an_undisturbed_run(
    tmp_path: Path, docs: Path, killed: Any, at: int, when: str
) -> None:
    assert killed(at, when) == -9
    write(docs / "a.txt", "changed", 33)  # the half-written version must go
    assert killed(1000, "after") == 0
    survived = FaissBackend(data_dir=tmp_path / "data").open("killed")
    fresh = MemoryBackend().create(SPEC)
    run(fresh, docs)
    assert ids(survived) == ids(fresh)
    # And killed in an update: while the new version is written and the old one deleted.
    before = texts(survived, "b.md")
    survived.close()
    write(docs / "a.txt", "again", 37)
    killed(at, when)
    assert killed(1000, "after") == 0
    survived = FaissBackend(data_dir=tmp_path / "data").open("killed")
    fresh = MemoryBackend().create(SPEC)
    run(fresh, docs)
    assert ids(survived) == ids(fresh)
    assert texts(survived, "b.md") == before
    survived.close()
