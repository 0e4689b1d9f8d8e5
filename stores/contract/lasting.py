"""Collections last: reopened, in another process, after a crash, beside a writer."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from rag.errors import StoreError
from rag.filters import parse
from rag.protocols import StoreBackend, VectorStore
from rag.types import CollectionSpec
from stores.contract.data import FINGERPRINT, chunk, library, random_vectors
from stores.contract.setting import VISIBLE_S, ContractSetting, OpenBackend, not_applicable


class LastingTests(ContractSetting):
    """What was acknowledged is there."""

    def test_check_tells_what_it_is_connected_to(self, backend: StoreBackend) -> None:
        info = backend.check()
        assert info.location
        assert any(character.isdigit() for character in info.version)

    def test_collections_come_and_go(self, backend: StoreBackend, spec: CollectionSpec) -> None:
        one, two = f"{spec.name}-1", f"{spec.name}-2"
        for name in (two, one):
            store = backend.create(replace(spec, name=name))
            store.upsert([chunk(0)], random_vectors(1))
            store.close()
        found = backend.collections()
        assert {one, two} <= set(found)
        assert found == sorted(found)
        backend.drop(one)
        assert {one, two} & set(backend.collections()) == {two}
        again = backend.create(replace(spec, name=one))
        assert again.count() == 0
        again.close()
        for name in (one, two):
            backend.drop(name)

    def test_a_collection_takes_the_name_of_another(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        other = replace(FINGERPRINT, model="other", dim=5)
        shadow = replace(spec, name=f"{spec.name}-next", dim=5, embedder=other)
        old = backend.create(spec)
        old.upsert(library(), random_vectors(30))
        old.close()
        new = backend.create(shadow)
        new.upsert(library()[:3], random_vectors(3, dim=5))
        new.close()
        backend.replace(spec.name, by=shadow.name)
        assert shadow.name not in backend.collections()
        swapped = backend.open(spec.name)
        info = swapped.describe()
        assert (info.collection, info.dim, info.embedder) == (spec.name, 5, other)
        assert swapped.get([library()[2].id]) == [library()[2]]
        assert len(swapped.search(random_vectors(1, dim=5), 9)[0]) == 3
        swapped.upsert([chunk(99)], random_vectors(1, dim=5))
        assert swapped.count() == 4
        swapped.close()
        again = backend.create(shadow)
        assert again.count() == 0
        again.close()
        backend.replace("a-new-name", by=shadow.name)
        assert "a-new-name" in backend.collections()
        backend.drop("a-new-name")

    @pytest.mark.parametrize("fate", ["dropped", "made again", "replaced"])
    def test_who_has_it_open_writes_nothing_once_it_is_gone(
        self, backend: StoreBackend, spec: CollectionSpec, fate: str
    ) -> None:
        backend.create(spec).close()
        old = backend.open(spec.name)
        assert old.count() == 0
        by = replace(spec, name=f"{spec.name}-next", embedder=replace(FINGERPRINT, model="other"))
        if fate == "replaced":
            new = backend.create(by)
            new.upsert(library(), random_vectors(30))
            new.close()
            backend.replace(spec.name, by=by.name)
        else:
            backend.drop(spec.name)
        if fate == "made again":
            new = backend.create(spec)
            new.upsert(library(), random_vectors(30))
            new.close()
        for write in (
            lambda: old.upsert([chunk(99)], random_vectors(1)),
            lambda: old.delete(ids=[library()[0].id]),
            lambda: old.annotate({"by": "the one before"}),
        ):
            with pytest.raises(StoreError):
                write()
        old.close()
        if fate == "dropped":
            assert spec.name not in backend.collections()
            backend.create(spec).close()
            return
        now = backend.open(spec.name)
        found = {each.id: each for chunks, _ in now.scan() for each in chunks}
        assert found == {each.id: each for each in library()}
        assert now.describe().notes == {}
        now.upsert([chunk(50, document=50)], random_vectors(1))
        assert now.count() == 31
        now.close()

    def test_reopened_it_is_the_same(self, open_backend: OpenBackend, spec: CollectionSpec) -> None:
        if not self.persistent:
            not_applicable("nothing is kept")
        backend = open_backend()
        store = backend.create(spec)
        store.upsert(library(), random_vectors(30))
        store.delete(document_ids=["d1"])
        query = random_vectors(1, seed=8)
        before = store.search(query, 20)
        store.close()
        store.close()
        backend.close()
        backend.close()
        backend = open_backend()
        again = backend.open(spec.name)
        assert again.describe().embedder == FINGERPRINT
        assert again.count() == 20
        after = again.search(query, 20)
        assert [hit.chunk for hit in after[0]] == [hit.chunk for hit in before[0]]
        assert [h.score for h in after[0]] == pytest.approx([h.score for h in before[0]], abs=1e-5)
        again.upsert([chunk(99)], random_vectors(1))
        assert again.count() == 21
        again.close()
        backend.close()

    def test_a_closed_backend_connects_again(
        self, open_backend: OpenBackend, spec: CollectionSpec
    ) -> None:
        backend = open_backend()
        backend.create(spec).close()
        backend.close()
        assert spec.name in backend.collections()
        backend.open(spec.name).close()
        backend.drop(spec.name)
        backend.close()

    def test_another_process_finds_what_was_written(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        store = self._filled(backend, spec)
        store.close()
        if not self.shared:
            backend.close()
        done = self.in_another_process(
            request,
            spec,
            """
            print(store.count(), store.search(random_vectors(30)[4:5], 1)[0][0].chunk.id)
            store.upsert([chunk(77, document=7)], random_vectors(1, seed=77))
            store.delete(document_ids=["d0"])
            store.close()
            backend.close()
            """,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["30", library()[4].id]
        store = backend.open(spec.name)
        deadline = time.monotonic() + VISIBLE_S
        while store.count() != 21 and time.monotonic() < deadline:
            pass
        assert store.count() == 21
        assert store.search(random_vectors(1, seed=77), 1)[0][0].chunk == chunk(77, document=7)
        store.close()

    def test_an_open_collection_sees_what_another_process_writes(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        if not self.persistent or not self.shared:
            not_applicable("one process at a time")
        store = backend.create(spec)
        assert store.search(random_vectors(1), 3) == [[]]
        done = self.in_another_process(
            request, spec, "store.upsert(library(), random_vectors(30)); store.close()"
        )
        assert done.returncode == 0, done.stderr
        deadline = time.monotonic() + VISIBLE_S
        found = store.search(random_vectors(30)[4:5], 30)[0]
        while len(found) < 30 and time.monotonic() < deadline:
            found = store.search(random_vectors(30)[4:5], 30)[0]
        assert len(found) == 30
        assert found[0].chunk == library()[4]
        store.close()

    def test_what_was_acknowledged_survives_kill_9(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        if not self.persistent:
            not_applicable("nothing is kept")
        backend.create(spec).close()
        if not self.shared:
            backend.close()
        done = self.in_another_process(
            request,
            spec,
            """
            store.upsert(library()[:20], random_vectors(30)[:20])
            store.search(random_vectors(1), 1)
            store.upsert(library()[20:], random_vectors(30)[20:])
            store.delete(document_ids=["d1"])
            os.kill(os.getpid(), signal.SIGKILL)
            """,
        )
        assert done.returncode == -9, done.stderr
        store = backend.open(spec.name)
        assert store.count() == 20
        found = store.search(random_vectors(30)[:1], 30)[0]
        assert {hit.chunk.id for hit in found} == {c.id for c in library() if c.document_id != "d1"}
        assert found[0].chunk == library()[0]
        store.upsert([chunk(50)], random_vectors(1))  # the dead writer's lock is gone
        assert store.count() == 21
        store.close()

    def test_readers_are_not_disturbed_by_a_writer(self, filled: VectorStore) -> None:
        failures: list[BaseException] = []
        done = threading.Event()
        queries = random_vectors(3, seed=2)

        def read() -> None:
            try:
                while not done.is_set():
                    # d0 is never touched, so its ten chunks are always all there.
                    found = filled.search(queries, 10, parse({"document_id": "d0"}))
                    assert [len(hits) for hits in found] == [10, 10, 10]
            except BaseException as error:
                failures.append(error)

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for turn in range(15):
                extra = [chunk(n, document=7) for n in range(20)]
                filled.upsert(extra, random_vectors(20, seed=turn))
                filled.delete(document_ids=["d7"])
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert failures == []
        assert filled.count() == 30

    def _filled(self, backend: StoreBackend, spec: CollectionSpec) -> VectorStore:
        if not self.persistent:
            not_applicable("nothing is kept")
        store = backend.create(spec)
        store.upsert(library(), random_vectors(30))
        return store
