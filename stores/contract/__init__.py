"""The contract of `rag.protocols.VectorStore`, as tests that a store's own test file inherits.

    class TestMyStore(StoreContract):
        @pytest.fixture(scope="class")
        @classmethod
        def open_backend(cls, tmp_path_factory):
            folder = tmp_path_factory.mktemp("mine")
            return lambda: MyBackend(data_dir=folder)

        @pytest.fixture(scope="class")
        @classmethod
        def program(cls, open_backend):
            return "from mine import MyBackend; backend = MyBackend(data_dir=...)"

`open_backend()` gives a new backend on the same data each time; `program` is Python source that
sets `backend` to one in another process. Each test uses collections of its own, and removes them.
Attributes say what a store cannot do: see `StoreContract`. Put
`pytest.register_assert_rewrite("stores.contract")` into conftest.py, or failures say nothing.
Needs pytest and hypothesis.
"""

from __future__ import annotations

from typing import Any

from stores.contract.congruence import CongruenceTests
from stores.contract.data import (
    DIM,
    FILTERS,
    FINGERPRINT,
    SPEC,
    chunk,
    clustered_vectors,
    library,
    random_vectors,
)
from stores.contract.deleting import DeletingTests
from stores.contract.facets import FacetTests
from stores.contract.filtering import FilteringTests
from stores.contract.generations import GenerationTests
from stores.contract.keywords import KeywordTests
from stores.contract.lasting import LastingTests
from stores.contract.listing import ListingTests
from stores.contract.notes import NotesTests
from stores.contract.refusing import RefusingTests
from stores.contract.searching import SearchingTests
from stores.contract.setting import ContractSetting, OpenBackend
from stores.contract.writing import WritingTests

GROUPS: tuple[type, ...] = (
    WritingTests,
    ListingTests,
    DeletingTests,
    SearchingTests,
    FilteringTests,
    FacetTests,
    KeywordTests,
    RefusingTests,
    LastingTests,
    NotesTests,
    GenerationTests,
    CongruenceTests,
)
"""The parts of the contract, in the order of the README's matrix."""


class StoreContract(
    WritingTests,
    ListingTests,
    DeletingTests,
    SearchingTests,
    FilteringTests,
    FacetTests,
    KeywordTests,
    RefusingTests,
    LastingTests,
    NotesTests,
    GenerationTests,
    CongruenceTests,
):
    """Every promise of the protocol, a test each. The attributes are those of ContractSetting."""

    def test_no_test_of_the_contract_is_missing_or_weakened(self) -> None:
        """A test may be overridden only by one marked `xfail(reason=...)`."""
        for group in (*GROUPS, StoreContract):
            for name, original in vars(group).items():
                if name.startswith("test_"):
                    found = getattr(type(self), name, None)
                    assert found is original or _has_reason(found), (
                        f"{name} is overridden or removed without xfail(reason=...)"
                    )


def _has_reason(test: Any) -> bool:
    return any(
        mark.name == "xfail" and mark.kwargs.get("reason")
        for mark in getattr(test, "pytestmark", ())
    )


__all__ = [
    "DIM",
    "FILTERS",
    "FINGERPRINT",
    "GROUPS",
    "SPEC",
    "ContractSetting",
    "OpenBackend",
    "StoreContract",
    "chunk",
    "clustered_vectors",
    "library",
    "random_vectors",
]
