"""The order of rows is a pure function of (seed, epoch) that may never change silently."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.order import ORDERS, BatchOrder, WindowOrder, Windows, epoch_order

SEEDS = st.integers(0, 2**63 - 1)
EPOCHS = st.integers(0, 10**6)


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (0, 0, [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]),
        (0, 1, [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]),
        (1, 0, [3, 5, 2, 9, 7, 0, 8, 6, 1, 4]),
        (12345, 678, [5, 0, 2, 6, 8, 3, 1, 4, 9, 7]),
    ],
)
def test_the_order_of_a_seed_and_epoch_is_fixed_for_ever(seed: int, epoch: int, expected: list[int]) -> None:
    assert epoch_order(10, seed, epoch).tolist() == expected


@given(rows=st.integers(1, 500), seed=SEEDS, epoch=EPOCHS)
def test_every_epoch_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, seed, epoch)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(rows))


@given(rows=st.integers(1, 200), seed=SEEDS, epoch=EPOCHS)
def test_the_order_is_pure_and_leaves_numpys_global_state_alone(rows: int, seed: int, epoch: int) -> None:
    state = np.random.get_state(legacy=False)
    assert np.array_equal(epoch_order(rows, seed, epoch), epoch_order(rows, seed, epoch))
    assert str(np.random.get_state(legacy=False)) == str(state)


def test_another_seed_or_epoch_gives_another_order() -> None:
    orders = {tuple(epoch_order(100, seed, epoch).tolist()) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 2**31 - 1), epochs=st.integers(1, 5))
def test_every_row_is_served_exactly_once_per_epoch(rows: int, batch_size: int, seed: int, epochs: int) -> None:
    order = BatchOrder(rows, batch_size, seed)
    steps = order.steps_for(epochs)
    batches = [order.rows_of_step(step) for step in range(steps)]
    assert all(len(batch) == min(batch_size, rows) for batch in batches)
    served = np.concatenate(batches)
    assert len(served) - epochs * rows < order.batch_size
    for epoch in range(epochs):
        assert np.array_equal(served[epoch * rows : (epoch + 1) * rows], epoch_order(rows, seed, epoch))


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 100))
def test_any_step_may_be_asked_for_at_any_time(rows: int, batch_size: int, seed: int) -> None:
    in_order = BatchOrder(rows, batch_size, seed)
    expected = [in_order.rows_of_step(step).tolist() for step in range(30)]
    steps = [*range(30), *range(30)]
    random.Random(seed).shuffle(steps)
    shuffled = BatchOrder(rows, batch_size, seed)
    assert [shuffled.rows_of_step(step).tolist() for step in steps] == [expected[step] for step in steps]


WINDOWS = st.builds(Windows, st.integers(1, 20), st.integers(1, 8))


@given(rows=st.integers(1, 300), seed=SEEDS, epoch=EPOCHS, cut=WINDOWS)
def test_a_window_holds_whole_blocks_and_the_order_each_row_once(
    rows: int, seed: int, epoch: int, cut: Windows
) -> None:
    order = WindowOrder(rows, seed, epoch, cut).between(0, rows)
    assert sorted(order.tolist()) == list(range(rows))
    blocks = order // cut.rows_per_block
    seen: set[int] = set()
    while len(blocks):
        window = list(dict.fromkeys(blocks[: cut.rows_per_block * cut.blocks].tolist()))[: cut.blocks]
        held = sum(min(cut.rows_per_block, rows - block * cut.rows_per_block) for block in window)
        assert seen.isdisjoint(blocks[:held].tolist())
        seen |= set(blocks[:held].tolist())
        assert len(set(blocks[:held].tolist())) <= cut.blocks
        blocks = blocks[held:]


@given(rows=st.integers(1, 300), seed=SEEDS, cut=WINDOWS, name=st.sampled_from(sorted(ORDERS)), data=st.data())
def test_any_part_of_an_order_may_be_asked_for(
    rows: int, seed: int, cut: Windows, name: str, data: st.DataObject
) -> None:
    order = ORDERS[name](rows, seed, 2, cut)
    whole = ORDERS[name](rows, seed, 2, cut).between(0, rows).tolist()
    for _ in range(5):
        start = data.draw(st.integers(0, rows))
        stop = data.draw(st.integers(start, rows + 5))
        assert order.between(start, stop).tolist() == whole[start:stop]


def test_the_window_order_of_a_seed_and_epoch_is_fixed_for_ever() -> None:
    assert WindowOrder(10, 0, 0, Windows(2, 2)).between(0, 10).tolist() == [5, 4, 3, 2, 6, 0, 7, 1, 8, 9]
    assert WindowOrder(10, 7, 3, Windows(3, 2)).between(0, 10).tolist() == [6, 9, 7, 8, 5, 2, 4, 1, 3, 0]


def test_sequential_is_as_rows_are_stored() -> None:
    assert ORDERS["sequential"](7, 1, 1, Windows()).between(2, 9).tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_batches_of_any_order_are_full_and_serve_each_epoch_whole(name: str) -> None:
    order = BatchOrder(50, 8, 3, name)
    served = np.concatenate([order.rows_of_step(step) for step in range(order.steps_for(4))])
    for epoch in range(4):
        expected = ORDERS[name](50, 3, epoch, Windows()).between(0, 50)
        assert np.array_equal(served[epoch * 50 : (epoch + 1) * 50], expected)
