"""Seconds and money of a plan, as pure functions of what was measured."""

from __future__ import annotations

import pytest

from pipeline.planning.price import PassSpeed, StudentSpeed, break_even_epochs, price

SPEED = PassSpeed(startup_seconds=10.0, cache_seconds=2.0, row_seconds=0.5, timed_rows=100)
STUDENT = StudentSpeed(
    samples=1000,
    steps=7.5,
    validate_every=5,
    cached_step_seconds=0.1,
    online_step_seconds=0.4,
    validation_seconds=0.5,
)


def test_rows_are_divided_over_the_devices_and_the_start_up_is_not() -> None:
    assert SPEED.seconds([800]) == 10 + 400
    assert SPEED.seconds([800], 8) == 10 + 50
    assert SPEED.seconds([800, 80, 80], 64) == 10 + 2 * 2 + 7.5


def test_a_cache_without_new_rows_costs_nothing() -> None:
    assert SPEED.seconds([]) == SPEED.seconds([0, 0]) == 0
    assert SPEED.seconds([0, 80, 0]) == SPEED.seconds([80]) == 50


def test_every_device_is_paid_for_as_long_as_the_pass_takes() -> None:
    assert price(SPEED.seconds([7180]), 1, 2.0) == 2.0
    assert price(3600, 8, 2.5) == 20
    assert price(3600, 64, 0) == 0


def test_an_epoch_has_its_share_of_validations() -> None:
    assert STUDENT.cached_epoch_seconds == pytest.approx(7.5 * 0.1 + 1.5 * 0.5)
    assert STUDENT.online_epoch_seconds == pytest.approx(7.5 * 0.4 + 1.5 * 0.5)


def test_a_cache_pays_when_epochs_have_saved_what_it_took() -> None:
    assert break_even_epochs(90, cached_epoch=1, online_epoch=31) == 3
    assert break_even_epochs(0, cached_epoch=1, online_epoch=31) == 0


@pytest.mark.parametrize("online", [None, 1.0, 0.5])
def test_a_cache_that_saves_nothing_never_pays(online: float | None) -> None:
    assert break_even_epochs(90, cached_epoch=1, online_epoch=online) is None
