"""Generations: whoever has seen one knows later whether the collection still holds the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from rag.errors import CollectionGone, DimensionMismatch, InputError, StoreUnavailable
from rag.protocols import Generations, StoreBackend, VectorStore
from rag.types import CollectionSpec
from stores.contract.data import chunk, library, random_vectors
from stores.contract.setting import ContractSetting, OpenBackend, not_applicable

WRITES: dict[str, Callable[[VectorStore], object]] = {
    "upsert": lambda store: store.upsert([chunk(99)], random_vectors(1)),
    "replace": lambda store: store.upsert([replace(library()[3], text="new")], random_vectors(1)),
    "delete": lambda store: store.delete(document_ids=["d1"]),
    "annotate": lambda store: store.annotate({"weights": "[1]"}),
}


class GenerationTests(ContractSetting):
    """None, or a text that tells what is held apart from all that was ever held."""

    @pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
    def test_every_write_changes_the_generation_at_once(
        self, backend: StoreBackend, spec: CollectionSpec, write: Callable[[VectorStore], object]
    ) -> None:
        reader = self._written(backend, spec)
        before = told(reader)
        assert isinstance(before, str)
        assert told(reader) == before
        writer = backend.open(spec.name)
        write(writer)
        while_open = told(reader)
        assert while_open != before
        assert told(writer) == while_open
        writer.close()
        writer.close()
        after = told(reader)
        assert isinstance(after, str)
        assert after != before
        assert told(reader) == after
        reader.upsert([chunk(98)], random_vectors(1))  # now by a handle that is older
        assert told(reader) not in {before, after}
        reader.close()
        assert isinstance(told(backend.open(spec.name)), str)

    def test_what_changes_nothing_leaves_the_generation(
        self, backend: StoreBackend, open_backend: OpenBackend, spec: CollectionSpec
    ) -> None:
        reader = self._written(backend, spec)
        before = told(reader)
        with closing(backend.create(spec)) as other:
            other.upsert([], random_vectors(0))
            assert other.delete() == 0
            assert len(list(other.documents())) == 3
            assert len(other.search(random_vectors(1), 5)[0]) == 5
            assert other.describe().notes == {}
        assert told(reader) == before
        reader.close()
        if self.persistent:
            backend.close()
            with closing(open_backend()) as again, closing(again.open(spec.name)) as reopened:
                assert told(reopened) == before

    def test_a_refused_write_does_not_hide_the_generation_for_ever(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        self._written(backend, spec).close()
        with closing(backend.open(spec.name)) as writer:
            writer.delete(ids=[library()[0].id])
            with pytest.raises(DimensionMismatch):
                writer.upsert([chunk(1)], random_vectors(1, dim=3))
            with pytest.raises(InputError):
                writer.annotate({"no name": "text"})
        with closing(backend.open(spec.name)) as reader:
            assert isinstance(told(reader), str)

    @pytest.mark.parametrize("fate", ["dropped", "made again", "replaced"])
    def test_no_generation_comes_back_with_another_collection(
        self, backend: StoreBackend, spec: CollectionSpec, fate: str
    ) -> None:
        old = self._written(backend, spec, seen := set())
        seen.add(told(old))
        shadow = replace(spec, name=f"{spec.name}-next")
        if fate == "replaced":
            self._written(backend, shadow).close()
            backend.replace(spec.name, by=shadow.name)
        else:
            backend.drop(spec.name)
        if fate == "made again":
            backend.create(spec).close()
        with pytest.raises(CollectionGone):
            told(old)
        old.close()
        if fate == "dropped":
            backend.create(spec).close()
        with closing(backend.open(spec.name)) as now:
            assert told(now) is None or told(now) not in seen
            seen.add(told(now))
            now.upsert(library(), random_vectors(30))
        with closing(backend.open(spec.name)) as now:
            assert isinstance(told(now), str)
            assert told(now) not in seen

    def test_what_another_process_wrote_is_read_once_its_generation_is_told(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        reader = self._written(backend, spec)
        if not self.persistent:
            not_applicable("nothing is kept")
        assert len(reader.search(random_vectors(1), 50)[0]) == 30
        before = told(reader)
        if not self.shared:
            reader.close()
            backend.close()
        done = self.in_another_process(
            request,
            spec,
            """
            print(store.generation())
            store.delete(document_ids=["d1"])
            store.upsert([chunk(77, document=7)], random_vectors(1, seed=77))
            store.close()
            print(store.generation())
            backend.close()
            """,
        )
        assert done.returncode == 0, done.stderr
        if not self.shared:
            reader = backend.open(spec.name)
        after = told(reader)
        found = {hit.chunk.document_id for hit in reader.search(random_vectors(1), 50)[0]}
        assert found == {"d0", "d2", "d7"}
        assert reader.count() == 21
        assert done.stdout.split() == [before, after]
        assert before != after
        reader.close()

    def test_a_killed_writer_leaves_no_generation_that_was_told_before(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        reader = self._written(backend, spec)
        if not self.persistent:
            not_applicable("nothing is kept")
        seen = {told(reader)}
        if not self.shared:
            reader.close()
            backend.close()
        for last in ("store.delete(document_ids=['d2'])", "store.annotate({'weights': '[2]'})"):
            done = self.in_another_process(
                request, spec, f"{last}; os.kill(os.getpid(), signal.SIGKILL)"
            )
            assert done.returncode == -9, done.stderr
            with closing(backend.open(spec.name)) as now:
                assert told(now) not in seen
                seen |= {told(now)} - {None}
            if not self.shared:
                backend.close()
        with closing(backend.open(spec.name)) as writer:
            writer.upsert([chunk(50)], random_vectors(1))
        with closing(backend.open(spec.name)) as now:
            assert isinstance(told(now), str)
            assert told(now) not in seen

    def test_a_writer_does_not_speak_for_another_one(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        reader = self._written(backend, spec)
        seen = {told(reader)} - {None}
        first, second = backend.open(spec.name), backend.open(spec.name)
        first.upsert([chunk(40)], random_vectors(1))
        try:
            second.upsert([chunk(41)], random_vectors(1))
        except StoreUnavailable:
            first.close()
            not_applicable("one writer at a time")
        second.close()
        seen |= {told(reader)} - {None}
        first.upsert([chunk(42)], random_vectors(1))
        assert told(reader) not in seen
        seen |= {told(reader)} - {None}
        with closing(backend.open(spec.name)) as third:
            third.upsert([chunk(43)], random_vectors(1))
            first.upsert([chunk(44)], random_vectors(1))
        assert told(reader) not in seen
        first.close()
        assert isinstance(told(reader), str)
        assert told(reader) not in seen
        reader.close()

    def _written(
        self, backend: StoreBackend, spec: CollectionSpec, seen: set[str | None] | None = None
    ) -> VectorStore:
        """A collection with `library()` in it, open, of a store that tells a generation.

        `seen` gets that of the empty one.
        """
        with closing(backend.create(spec)) as store:
            if "generation" not in store.describe().capabilities:
                not_applicable("the store does not claim generation")
            if seen is not None:
                seen.add(told(store))
            store.upsert(library(), random_vectors(30))
        return backend.open(spec.name)


def told(store: VectorStore) -> str | None:
    """Its generation now."""
    telling: Generations = store  # type: ignore[assignment]
    return telling.generation()
