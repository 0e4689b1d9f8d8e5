"""Notes: texts that are kept with a collection, for whoever opens it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from rag.errors import InputError
from rag.protocols import StoreBackend, VectorStore
from rag.types import CollectionSpec
from stores.contract.data import chunk, library, random_vectors
from stores.contract.setting import VISIBLE_S, ContractSetting, OpenBackend, not_applicable

_MOST = 16_384


class NotesTests(ContractSetting):
    """What was learnt about a collection stays with it, and is no part of what it holds."""

    def test_notes_are_kept_by_name(self, store: VectorStore) -> None:
        assert store.describe().notes == {}
        store.annotate({})
        store.annotate({"weights": "[1]", "threshold_2": "0.5"})
        store.annotate({"weights": "[2]"})
        assert store.describe().notes == {"weights": "[2]", "threshold_2": "0.5"}
        store.annotate({"weights": "", "never_was": ""})
        assert store.describe().notes == {"threshold_2": "0.5"}
        store.annotate({"threshold_2": ""})
        assert store.describe().notes == {}

    @pytest.mark.parametrize(
        "text", ['{"a": [1, "\\n"]} = \r\n\t', "\x00", "é", "字", "\U0001f600"], ids=ascii
    )
    def test_notes_hold_any_text_up_to_their_size(self, store: VectorStore, text: str) -> None:
        room = _MOST - len("a") - len("one")
        notes = {"a": "x" * (room % len(text.encode())), "one": text * (room // len(text.encode()))}
        store.annotate({"a": text} | dict.fromkeys("bcd", text))
        assert store.describe().notes == dict.fromkeys("abcd", text)
        store.annotate(notes | dict.fromkeys("bcd", ""))
        assert store.describe().notes == {name: text for name, text in notes.items() if text}

    def test_notes_disturb_nothing_and_are_not_disturbed(self, filled: VectorStore) -> None:
        queries = random_vectors(3, seed=5)
        before = filled.search(queries, 30), list(filled.documents())
        filled.annotate({"weights": "[1]"})
        assert filled.describe().count == filled.count() == 30
        assert (filled.search(queries, 30), list(filled.documents())) == before
        assert sum(len(chunks) for chunks, _ in filled.scan()) == 30
        filled.upsert([chunk(99)], random_vectors(1))
        filled.delete(document_ids=["d1"])
        assert filled.describe().notes == {"weights": "[1]"}

    @pytest.mark.parametrize(
        "notes",
        [
            {"a": "x" * (_MOST + 1)},
            {"a": "字" * (_MOST // 3)},
            {"a": "x" * (_MOST // 2), "b": "x" * (_MOST // 2)},
            {"a": "\ud800"},
            *({name: "text"} for name in ("", "A", "a-b", "a b", "字", "x" * 33, "a\n")),
        ],
        ids=lambda notes: ascii(str(notes)[:20]),
    )
    def test_notes_that_no_store_holds_are_refused(
        self, store: VectorStore, notes: dict[str, str]
    ) -> None:
        store.annotate({"kept": "text"})
        with pytest.raises(InputError) as refused:
            store.annotate({"new": "text", **notes})
        assert "\n" not in str(refused.value)
        assert store.describe().notes == {"kept": "text"}

    def test_notes_are_there_after_reopening(
        self, open_backend: OpenBackend, spec: CollectionSpec
    ) -> None:
        if not self.persistent:
            not_applicable("nothing is kept")
        backend = open_backend()
        store = backend.create(spec)
        store.annotate({"weights": "[1]", "other": "字"})
        store.close()
        backend.close()
        again = backend.open(spec.name)
        assert again.describe().notes == {"weights": "[1]", "other": "字"}
        again.annotate({"other": ""})
        again.close()
        backend.close()
        assert backend.open(spec.name).describe().notes == {"weights": "[1]"}
        backend.close()

    def test_another_process_sees_and_changes_notes(
        self, backend: StoreBackend, spec: CollectionSpec, request: pytest.FixtureRequest
    ) -> None:
        if not self.persistent:
            not_applicable("nothing is kept")
        store = backend.create(spec)
        store.annotate({"ours": "1", "gone": "1"})
        if not self.shared:
            store.close()
            backend.close()
        done = self.in_another_process(
            request,
            spec,
            """
            print(dict(store.describe().notes), flush=True)
            store.annotate({"theirs": "2", "gone": ""})
            os.kill(os.getpid(), signal.SIGKILL)
            """,
        )
        assert done.returncode == -9, done.stderr
        assert done.stdout.strip() == str({"ours": "1", "gone": "1"})
        if not self.shared:
            store = backend.open(spec.name)
        deadline = time.monotonic() + VISIBLE_S
        while len(store.describe().notes) != 2 or "gone" in store.describe().notes:
            assert time.monotonic() < deadline
        assert store.describe().notes == {"ours": "1", "theirs": "2"}
        store.annotate({"ours": "3"})  # the dead writer's lock is gone
        assert store.describe().notes == {"ours": "3", "theirs": "2"}
        store.close()

    def test_a_collection_made_anew_has_no_notes(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        store = backend.create(spec)
        store.annotate({"weights": "[1]"})
        store.close()
        assert backend.create(spec).describe().notes == {"weights": "[1]"}
        backend.drop(spec.name)
        again = backend.create(spec)
        assert again.describe().notes == {}
        again.close()

    def test_notes_go_with_a_collection_that_takes_the_name_of_another(
        self, backend: StoreBackend, spec: CollectionSpec
    ) -> None:
        shadow = replace(spec, name=f"{spec.name}-next")
        for each, notes in ((spec, {"old": "1"}), (shadow, {"new": "1"})):
            store = backend.create(each)
            store.upsert(library()[:3], random_vectors(3))
            store.annotate(notes)
            store.close()
        backend.replace(spec.name, by=shadow.name)
        store = backend.open(spec.name)
        assert store.describe().notes == {"new": "1"}
        store.annotate({"newer": "1"})
        assert store.describe().notes == {"new": "1", "newer": "1"}
        store.close()
