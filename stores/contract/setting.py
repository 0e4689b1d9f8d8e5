"""What the tests of the contract stand on: fixtures, and what a store says that it cannot do."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias
from uuid import uuid4

import pytest

from rag.errors import UnknownCollection
from rag.protocols import StoreBackend, VectorStore
from rag.types import CollectionSpec
from stores.contract.data import SPEC, library, random_vectors

OpenBackend: TypeAlias = Callable[[], StoreBackend]

VISIBLE_S = 30
"""How long what another process wrote may take to be seen."""


class ContractSetting:
    """Fixtures, and attributes that a test class sets to False for what its store cannot do."""

    persistent = True
    """What was written is there for another process."""
    exact = True
    """Search finds the true nearest; otherwise recall@10 is at least 0.95."""
    shared = True
    """Several processes may have the data open at the same time."""
    text_ranges = True
    """`$gt` and the like work on text; otherwise they raise UnsupportedFilter."""
    examples = 15
    """How many sequences of operations are tried against the reference."""

    @pytest.fixture(scope="class")
    @classmethod
    def open_backend(cls) -> OpenBackend:
        """Override: a function that opens the backend, each time on the same data."""
        raise NotImplementedError("the store's test class gives this fixture")

    @pytest.fixture(scope="class")
    @classmethod
    def program(cls) -> str:
        """Override: Python source that sets `backend`, run in another process."""
        raise NotImplementedError("the test class of a store that persists gives this fixture")

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, open_backend: OpenBackend) -> Iterator[StoreBackend]:
        """One backend for all tests of the class."""
        backend = open_backend()
        yield backend
        backend.close()

    @pytest.fixture
    def spec(self, backend: StoreBackend) -> Iterator[CollectionSpec]:
        """What a collection of this test alone is made with; dropped after it."""
        name = f"contract-{uuid4().hex[:12]}"
        yield replace(SPEC, name=name)
        with suppress(UnknownCollection):
            backend.drop(name)

    @pytest.fixture
    def store(self, backend: StoreBackend, spec: CollectionSpec) -> Iterator[VectorStore]:
        """An empty collection with metric cosine."""
        store = backend.create(spec)
        yield store
        store.close()

    @pytest.fixture
    def filled(self, store: VectorStore) -> VectorStore:
        """The collection with `library()` in it."""
        store.upsert(library(), random_vectors(30))
        return store

    @pytest.fixture(scope="class")
    @classmethod
    def shelf(cls, backend: StoreBackend) -> Iterator[VectorStore]:
        """A collection with `library()` in it, for tests that only read."""
        name = f"shelf-{uuid4().hex[:12]}"
        store = backend.create(replace(SPEC, name=name))
        store.upsert(library(), random_vectors(30))
        yield store
        store.close()
        backend.drop(name)

    def in_another_process(
        self, request: pytest.FixtureRequest, spec: CollectionSpec, code: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `code` in a process of its own, with `store` open on the collection."""
        begin = [
            "import os, signal",
            "from stores.contract import chunk, library, random_vectors",
            request.getfixturevalue("program"),
            f"store = backend.open({spec.name!r})",
        ]
        return subprocess.run(
            [sys.executable, "-c", "\n".join([*begin, textwrap.dedent(code)])],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def not_applicable(reason: str) -> None:
    """End a test of what the store does not claim to do; README's matrix says so."""
    pytest.xfail(f"not applicable: {reason}")
