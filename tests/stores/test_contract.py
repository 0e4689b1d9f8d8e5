"""The contract itself: it cannot be weakened unseen, and its examples are not vacuous."""

from __future__ import annotations

from typing import Any

import pytest

from rag import plugins
from rag.filters import And, Compare, Not, Or, matches, normal, parse
from stores.contract import FILTERS, GROUPS, StoreContract, library

GUARD = "test_no_test_of_the_contract_is_missing_or_weakened"


def test_an_overridden_test_is_found() -> None:
    class Weakened(StoreContract):
        def test_ties_are_ordered_by_id(self) -> None:  # type: ignore[override]
            """Nothing."""

    with pytest.raises(AssertionError, match="test_ties_are_ordered_by_id is overridden"):
        getattr(Weakened(), GUARD)()


def test_a_removed_test_is_found() -> None:
    class Removed(StoreContract):
        test_empty_collection: Any = None

    with pytest.raises(AssertionError, match="test_empty_collection"):
        getattr(Removed(), GUARD)()


def test_the_guard_guards_itself() -> None:
    class Unguarded(StoreContract):
        def test_no_test_of_the_contract_is_missing_or_weakened(self) -> None:
            """Nothing."""

    with pytest.raises(AssertionError):
        getattr(StoreContract, GUARD)(Unguarded())


@pytest.mark.parametrize("reason", ["", "the engine rounds scores"])
def test_xfail_needs_a_reason(reason: str) -> None:
    class Known(StoreContract):
        @pytest.mark.xfail(reason=reason)
        def test_ties_are_ordered_by_id(self) -> None:  # type: ignore[override]
            """Known to fail."""

    if reason:
        getattr(Known(), GUARD)()
    else:
        with pytest.raises(AssertionError):
            getattr(Known(), GUARD)()


def test_every_group_has_tests_and_no_name_is_used_twice() -> None:
    names = [name for group in GROUPS for name in vars(group) if name.startswith("test_")]
    assert len(names) == len(set(names)) > 40
    assert set(names) <= set(dir(StoreContract))


def test_every_built_in_store_has_a_contract_test(request: pytest.FixtureRequest) -> None:
    folder = request.path.parent
    for name in plugins.BUILT_IN["store"]:
        assert "(StoreContract)" in (folder / f"test_{name}.py").read_text("utf-8"), name


def test_the_filter_examples_are_not_vacuous() -> None:
    """Some filters match all, some nothing, most a part: otherwise they would prove little."""
    shares = []
    for where in FILTERS:
        condition = parse(where)
        if condition is not None:
            shares.append(sum(matches(condition, c.fields()) for c in library()) / 30)
    assert sum(0 < share < 1 for share in shares) >= 20


def negations(condition: Any) -> list[Any]:
    match condition:
        case And(parts) | Or(parts):
            return [found for part in parts for found in negations(part)]
        case Not(part):
            return [part, *negations(part)]
        case _:
            return []


@pytest.mark.parametrize("where", FILTERS, ids=str)
def test_the_normal_form_means_the_same(where: dict[str, Any]) -> None:
    for condition in (parse(where), parse({"$not": where})):
        if condition is None:
            continue
        form = normal(condition)
        assert all(isinstance(part, Compare) for part in negations(form))
        for each in library():
            assert matches(form, each.fields()) == matches(condition, each.fields())
