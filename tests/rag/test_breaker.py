"""The circuit breaker: closed, open, half-open."""

from __future__ import annotations

import pytest
from servers import wait_until

from rag.breaker import Breaker
from rag.errors import ContextTooLong, ModelUnavailable


def fail(breaker: Breaker, error: Exception | None = None) -> None:
    with pytest.raises(Exception) as raised, breaker.calling():
        raise error or ModelUnavailable("down")
    assert raised.value.__class__ in (ModelUnavailable, type(error))


def works(breaker: Breaker) -> bool:
    try:
        with breaker.calling():
            return True
    except ModelUnavailable:
        return False


def test_failures_in_a_row_open_it_and_a_success_between_them_does_not() -> None:
    breaker = Breaker(3, 60)
    for _ in range(2):
        fail(breaker)
    assert works(breaker)
    for _ in range(2):
        fail(breaker)
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"
    with pytest.raises(ModelUnavailable, match=r"3 times in a row .* 60 s"), breaker.calling():
        raise AssertionError("it let a call pass")


@pytest.mark.parametrize("error", [ContextTooLong("long"), GeneratorExit(), KeyboardInterrupt()])
def test_what_is_not_the_models_fault_does_not_count(error: BaseException) -> None:
    breaker = Breaker(1, 60)
    with pytest.raises(type(error)), breaker.calling():
        raise error
    assert breaker.state == "closed"


def test_after_a_while_one_call_tries_and_closes_it() -> None:
    breaker = Breaker(1, 0.05)
    fail(breaker)
    wait_until(lambda: works(breaker), 5)
    assert breaker.state == "closed"


def test_a_trial_that_fails_opens_it_again_and_no_other_call_passes_meanwhile() -> None:
    breaker = Breaker(1, 0.05)
    fail(breaker)
    tried = False

    def trial() -> bool:
        nonlocal tried
        try:
            with breaker.calling():
                tried = True
                assert breaker.state == "half-open"
                assert not works(breaker), "a second call passed while the first one tried"
                raise ModelUnavailable("still down")
        except ModelUnavailable:
            return tried

    wait_until(trial, 5)
    assert breaker.state == "open"
