"""The circuit breaker: closed, open, half-open."""

from __future__ import annotations

import asyncio

import pytest

from rag.breaker import Breaker, worst
from rag.errors import CollectionGone, ContextTooLong, ModelUnavailable, StoreUnavailable


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def end(breaker: Breaker, error: BaseException) -> None:
    """A call that ends so."""
    with pytest.raises(type(error)), breaker.calling():
        raise error


def passes(breaker: Breaker) -> bool:
    """Whether a call passes; if so, it succeeds."""
    try:
        with breaker.calling():
            return True
    except ModelUnavailable:
        return False


DOWN = ModelUnavailable("down")


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(3, 60, Clock())
    for _ in range(2):
        end(breaker, DOWN)
    assert passes(breaker)
    for _ in range(2):
        end(breaker, DOWN)
    assert breaker.state == "closed"
    end(breaker, DOWN)
    assert breaker.state == "open"
    with pytest.raises(ModelUnavailable, match=r"3 times in a row .* 60 s"), breaker.calling():
        raise AssertionError("it let a call pass")
    with pytest.raises(ModelUnavailable, match="left alone"):
        breaker.check()


OTHERS = [ContextTooLong("long"), GeneratorExit(), asyncio.CancelledError(), KeyboardInterrupt()]


@pytest.mark.parametrize("other", OTHERS)
def test_what_is_neither_failure_nor_success_changes_nothing(other: BaseException) -> None:
    """Readers who leave a server that hangs must not keep it from being left alone."""
    clock = Clock()
    breaker = Breaker(2, 60, clock)
    end(breaker, DOWN)
    end(breaker, other)
    end(breaker, DOWN)
    assert breaker.state == "open"
    clock.now = 60
    end(breaker, other)
    assert breaker.state == "half-open"


def test_an_error_that_says_nothing_of_the_part_is_no_failure() -> None:
    breaker = Breaker(1, 30, Clock(), error=StoreUnavailable, unless=(CollectionGone,))
    end(breaker, CollectionGone("dropped"))
    assert breaker.state == "closed"
    end(breaker, StoreUnavailable("down"))
    assert breaker.state == "open"


def test_the_worst_state_of_several() -> None:
    assert worst([]) == "closed"
    assert worst(["closed", "half-open", "closed"]) == "half-open"
    assert worst(["open", "half-open"]) == "open"


def test_after_a_while_one_call_tries_and_closes_it() -> None:
    clock = Clock()
    breaker = Breaker(1, 30, clock)
    end(breaker, DOWN)
    clock.now = 29
    assert not passes(breaker)
    clock.now = 30
    assert breaker.state == "half-open"
    with breaker.calling():
        assert not passes(breaker), "a second call passed while the first one tried"
    assert breaker.state == "closed"
    assert passes(breaker)


def test_a_trial_that_fails_opens_it_for_as_long_again() -> None:
    clock = Clock()
    breaker = Breaker(3, 30, clock)
    for _ in range(3):
        end(breaker, DOWN)
    clock.now = 30
    end(breaker, DOWN)
    assert breaker.state == "open"
    clock.now = 59
    assert not passes(breaker)
    clock.now = 60
    assert passes(breaker)


def test_failures_outside_of_calls_count_too() -> None:
    breaker = Breaker(2, 30, Clock())
    breaker.failed()
    end(breaker, DOWN)
    assert breaker.state == "open"


def test_a_trial_that_goes_well_lets_others_pass_before_it_is_over() -> None:
    clock = [0.0]
    breaker = Breaker(failures=1, reset_s=1, clock=lambda: clock[0])
    breaker.failed()
    clock[0] = 2.0
    with breaker.calling():
        with pytest.raises(ModelUnavailable):
            breaker.check()
        breaker.worked()
        breaker.check()
    assert breaker.state == "closed"
