"""Buckets and counts: how much there is, when there is more, and that the table of them has an end."""

from __future__ import annotations

import pytest

from providers.limits import AtOnce, Rates

pytestmark = pytest.mark.core


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_twice_the_rate_may_come_at_once_and_then_as_much_as_the_rate(clock: Clock) -> None:
    rates = Rates(8, clock=clock)
    assert [rates.take("ada") for _ in range(16)] == [0.0] * 16
    assert rates.take("ada") == 0.125
    clock.now += 0.125
    assert rates.take("ada") == 0
    assert rates.take("ada") > 0
    clock.now += 1000
    assert sum(not rates.take("ada") for _ in range(100)) == 16


def test_nobody_takes_from_another(clock: Clock) -> None:
    rates = Rates(1, clock=clock)
    for _ in range(10):
        rates.take("ada")
    assert rates.take("bob") == 0


def test_a_rate_below_one_a_second_lets_one_through(clock: Clock) -> None:
    rates = Rates(0.1, clock=clock)
    assert rates.take("ada") == 0
    assert rates.take("ada") == pytest.approx(10)


def test_what_is_refused_costs_nothing_more(clock: Clock) -> None:
    rates = Rates(1, clock=clock)
    for _ in range(1000):
        rates.take("ada")
    clock.now += 1
    assert rates.take("ada") == 0


def test_what_is_given_back_can_be_taken_again(clock: Clock) -> None:
    rates = Rates(1, 1, clock=clock)
    rates.give_back("ada")
    assert rates.take("ada") == 0 and rates.take("ada") > 0
    rates.give_back("ada")
    assert rates.take("ada") == 0 and rates.take("ada") > 0


def test_the_table_has_an_end_and_the_longest_unused_goes_first(clock: Clock) -> None:
    rates = Rates(1, 1, size=3, clock=clock)
    for key in ("a", "b", "c"):
        rates.take(key)
    assert rates.take("a") > 0
    rates.take("d")
    assert len(rates) == 3
    assert rates.take("a") > 0 and rates.take("b") == 0


def test_the_headers_say_what_there_is(clock: Clock) -> None:
    rates = Rates(10, clock=clock)
    for _ in range(5):
        rates.take("ada")
    assert dict(rates.headers("ada", "requests")) == {
        b"ratelimit-policy": b'"requests";q=20;w=2',
        b"ratelimit": b'"requests";r=15;t=1',
    }


def test_so_many_at_once_and_no_trace_of_them_afterwards() -> None:
    calls = AtOnce(2)
    with calls.entered("ada"), calls.entered("bob"):
        assert not calls.is_full("ada")
        with calls.entered("ada"):
            assert calls.is_full("ada") and not calls.is_full("bob")
    assert "0 under way" in repr(calls) and not calls.is_full("ada")
