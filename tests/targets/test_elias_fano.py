"""The Elias-Fano code against its specification in Python's whole numbers, and any bytes at all."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.elias_fano import pack, packed_bytes, unpack

UNIVERSES = st.integers(1, 300) | st.sampled_from([1000, 50_257, 128_256, 2**20, 2**31])


def specified(ids: list[int], universe: int) -> bytes:
    """The code of ascending ids, as the module's docstring specifies it."""
    k = len(ids)
    low_bits = math.floor(math.log2(universe / k))
    code = 0
    for place, one in enumerate(ids):
        code |= one % 2**low_bits << place * low_bits
        code |= 1 << k * low_bits + (one >> low_bits) + place
    bits = k * low_bits + k + (universe - 1 >> low_bits)
    return code.to_bytes(math.ceil(bits / 8), "little")


@st.composite
def rows_of_ids(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """A few rows of as many ids, and the universe that they are from; some rows reach its ends."""
    universe = draw(UNIVERSES)
    k = draw(st.integers(1, min(universe, 70)))
    chosen = random.Random(draw(st.integers(0, 2**32)))
    rows = [sorted(chosen.sample(range(universe), k)) for _ in range(draw(st.integers(1, 4)))]
    return [*rows, list(range(k)), list(range(universe - k, universe))], universe


@given(rows_of_ids())
def test_every_row_is_packed_as_specified_and_comes_back(case: tuple[list[list[int]], int]) -> None:
    rows, universe = case
    ids = torch.tensor(rows)
    packed = pack(ids, universe)
    assert packed.dtype == torch.uint8
    assert [bytes(row.tolist()) for row in packed] == [specified(row, universe) for row in rows]
    assert torch.equal(unpack(packed, len(rows[0]), universe), ids)


@pytest.mark.parametrize("k", [1, 2, 3, 7, 8, 9, 64])
def test_all_but_one_of_the_universe_come_back_whichever_is_missing(k: int) -> None:
    ids = torch.tensor([[one for one in range(k + 1) if one != missing] for missing in range(k + 1)])
    assert torch.equal(unpack(pack(ids, k + 1), k, k + 1), ids)


@pytest.mark.parametrize("universe", [1, 2, 3, 255, 256, 257, 2**31 - 1, 2**31])
def test_a_single_id_comes_back_from_both_ends(universe: int) -> None:
    ids = torch.tensor([[0], [universe // 2], [universe - 1]])
    assert torch.equal(unpack(pack(ids, universe), 1, universe), ids)


def test_64_of_128256_classes_take_104_bytes() -> None:
    assert packed_bytes(64, 128_256) == 104
    assert pack(torch.arange(64).unsqueeze(0), 128_256).shape == (1, 104)


@given(UNIVERSES, st.integers(1, 400))
def test_an_id_takes_at_most_two_bits_more_than_its_share_of_the_universe(universe: int, k: int) -> None:
    k = min(k, universe)
    assert 8 * packed_bytes(k, universe) <= k * (2 + math.ceil(math.log2(universe / k))) + 7


@given(st.data())
def test_any_bytes_are_unpacked_and_only_the_one_code_of_some_ids_to_valid_ids(data: st.DataObject) -> None:
    universe = data.draw(UNIVERSES)
    k = data.draw(st.integers(1, min(universe, 9)))
    width = packed_bytes(k, universe)
    packed = torch.tensor([list(data.draw(st.binary(min_size=width, max_size=width))) for _ in range(4)]).to(
        torch.uint8
    )
    ids = unpack(packed, k, universe)
    assert int(ids.amin()) >= 0
    valid = (ids.diff(dim=1) > 0).all(dim=1) & (ids[:, -1] < universe)
    assert torch.equal(pack(ids[valid], universe), packed[valid])


@given(rows_of_ids(), st.data())
def test_a_flipped_bit_never_gives_the_same_ids(case: tuple[list[list[int]], int], data: st.DataObject) -> None:
    rows, universe = case
    packed = pack(torch.tensor(rows), universe)
    byte, bit = data.draw(st.integers(0, packed.shape[1] - 1)), data.draw(st.integers(0, 7))
    flipped = packed.clone()
    flipped[:, byte] ^= 1 << bit
    before, after = (unpack(code, len(rows[0]), universe) for code in (packed, flipped))
    assert bool((before != after).any(dim=1).all())


def test_a_code_with_too_few_or_too_many_set_bits_gives_ids_outside_the_universe_and_spares_its_neighbours() -> None:
    ids = torch.tensor([[3, 500, 999]] * 4)
    packed = pack(ids, 1000)
    packed[1], packed[2] = 0, 255
    unpacked = unpack(packed, 3, 1000)
    assert bool((unpacked[1:3] >= 1000).all())
    assert torch.equal(unpacked[[0, 3]], ids[[0, 3]])


def test_no_rows_are_packed_to_no_rows() -> None:
    packed = pack(torch.empty((0, 5), dtype=torch.int64), 100)
    assert packed.shape == (0, packed_bytes(5, 100))
    assert unpack(packed, 5, 100).shape == (0, 5)


@pytest.mark.parametrize(("k", "universe"), [(0, 5), (6, 5), (1, 0), (-1, 5)])
def test_more_ids_than_the_universe_has_and_none_at_all_are_refused(k: int, universe: int) -> None:
    with pytest.raises(ValueError, match="distinct ids cannot be below"):
        packed_bytes(k, universe)
