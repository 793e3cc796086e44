"""The top-k encoding against a reader that follows its specification in numpy and float64, and against sorting."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.targets import elias_fano
from pipeline.targets.encodings import encoding_of
from pipeline.targets.largest import largest_classes
from pipeline.targets.top_k import TopK

Doubles = NDArray[np.float64]
Stored = tuple[Tensor, ...]
Bits = Literal[4, 8, 16]

BITS: tuple[Bits, ...] = (4, 8, 16)
TEMPERATURES = (0.5, 1.0, 2.0, 3.0)

KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "all different": lambda normal: normal * 3,
    "of bfloat16": lambda normal: (normal * 3 + 10).bfloat16().float(),
    "of few values": lambda normal: (normal * 1.5).round(),
    "zeros of both signs": lambda normal: torch.where(normal > 0, 0.0, -0.0),
    "all equal": lambda normal: torch.full_like(normal, -7.0),
    "mostly impossible": lambda normal: normal.masked_fill(normal.abs() < 1.5, -math.inf).index_fill(
        1, torch.tensor([normal.shape[1] // 2]), 1.0
    ),
    "one certain": lambda normal: normal.index_fill(1, torch.tensor([0]), 500.0),
    "of great range": lambda normal: normal * 1e6,
}


def logits_of(kind: str, positions: int, classes: int, seed: int) -> Tensor:
    return KINDS[kind](torch.randn((positions, classes), generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Case:
    logits: Tensor
    k: int


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS)) -> Case:
    k = draw(st.integers(1, 9))
    classes = draw(st.integers(k + 1, 40) | st.integers(k + 1, 900))
    kind = draw(st.sampled_from(kinds))
    return Case(logits_of(kind, draw(st.integers(1, 4)), classes, draw(st.integers(0, 2**32))), k)


def sorted_out(logits: Tensor, k: int) -> Tensor:
    """The k largest by a stable sort: of equal logits, the lower ids come first."""
    return logits.sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


def exact(logits: Tensor, temperature: float) -> Tensor:
    return (logits.double() / temperature).softmax(dim=1)


def read_by_specification(stored: Stored, encoding: TopK, classes: int, place: int) -> Doubles:
    """Probabilities (N, C) at the listed temperature of that place, from the arrays as any reader finds them."""
    packed, codes, scales = (array.numpy() for array in stored)
    k, temperature = encoding.k, encoding.temperatures[place]
    low_bits = math.floor(math.log2(classes / k))
    probabilities = np.empty((len(packed), classes))
    for row in range(len(packed)):
        code = int.from_bytes(packed[row].tobytes(), "little")
        unary = code >> k * low_bits
        set_bits = [bit for bit in range(unary.bit_length()) if unary >> bit & 1]
        ids = [(bit - i) << low_bits | (code >> i * low_bits) % 2**low_bits for i, bit in enumerate(set_bits)]
        numbers = codes[row].astype(np.int64)
        if encoding.value_bits == 4:
            numbers = np.stack([numbers % 16, numbers // 16], axis=1).ravel()[:k]
        weights = np.exp(-float(scales[row, 0]) * numbers / temperature)
        weights[numbers == 2**encoding.value_bits - 1] = 0
        tail = float(scales[row, 1 + place])
        probabilities[row] = tail / (classes - k)
        probabilities[row, ids] = (1 - tail) * weights / weights.sum()
    return probabilities


@given(cases())
def test_the_kept_classes_are_those_that_a_stable_sort_puts_first(case: Case) -> None:
    assert torch.equal(largest_classes(case.logits, case.k), sorted_out(case.logits, case.k))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 64])
@pytest.mark.parametrize("groups_of_64_per_k", [4, 8, 9])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_kept_classes_are_right_at_the_bounds_of_groups(
    kind: str, k: int, groups_of_64_per_k: int, beyond: int
) -> None:
    logits = logits_of(kind, 3, 64 * groups_of_64_per_k * k + beyond, seed=k)
    assert torch.equal(largest_classes(logits, k), sorted_out(logits, k))


@pytest.mark.parametrize("first", [0, 60, 64, 2990, 2993])
def test_the_kept_classes_are_right_where_all_lie_side_by_side(first: int) -> None:
    logits = logits_of("all different", 2, 3000, seed=1)
    logits[:, first : first + 7] += 100
    assert largest_classes(logits, 7).tolist() == [list(range(first, first + 7))] * 2


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40)
@given(case=cases())
def test_stored_arrays_mean_what_the_specification_says(bits: Bits, case: Case) -> None:
    encoding, classes = TopK(case.k, TEMPERATURES, bits), case.logits.shape[1]
    stored = encoding.encode(case.logits, 1.0)
    for place, temperature in enumerate(TEMPERATURES):
        decoded = encoding.decode(stored, classes, 1.0, temperature)
        expected = torch.from_numpy(read_by_specification(stored, encoding, classes, place))
        torch.testing.assert_close(decoded.double(), expected, rtol=1e-4, atol=1e-30)  # float32 of exponents up to 80
        torch.testing.assert_close(decoded.sum(dim=1), torch.ones(len(decoded)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("bits", BITS)
@given(case=cases())
def test_logits_are_off_by_at_most_half_a_step_and_the_step_fits_their_range(bits: Bits, case: Case) -> None:
    encoding = TopK(case.k, (1.0,), bits)
    _, codes, scales = encoding.encode(case.logits, 1.0)
    numbers = codes.to(torch.int64)
    if bits == 4:
        numbers = torch.stack([numbers & 15, numbers >> 4], dim=2).flatten(1)[:, : case.k]
    kept = case.logits.gather(1, sorted_out(case.logits, case.k)).double()
    below = kept.amax(dim=1, keepdim=True) - kept
    possible = below != math.inf
    step = scales[:, :1].double()
    assert torch.equal(numbers == 2**bits - 1, ~possible)
    assert bool(((numbers * step - below).abs() <= step / 2 * (1 + 1e-6))[possible].all())
    widest = below.masked_fill(~possible, 0.0).amax(dim=1, keepdim=True)
    torch.testing.assert_close(step * (2**bits - 2), widest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=40)
@given(case=cases(("all different", "of bfloat16", "of few values", "all equal")))
def test_decoded_distributions_are_exact_up_to_the_stated_error(bits: Bits, case: Case) -> None:
    encoding, classes = TopK(case.k, TEMPERATURES, bits), case.logits.shape[1]
    stored = encoding.encode(case.logits, 1.0)
    ids = sorted_out(case.logits, case.k)
    for temperature in TEMPERATURES:
        targets = encoding.decode_sparse(stored, classes, temperature)
        listed = exact(case.logits, temperature).gather(1, ids)
        tail = exact(case.logits, temperature).scatter(1, ids, 0.0).sum(dim=1)
        assert torch.equal(targets.class_ids, ids)
        torch.testing.assert_close(targets.tail_mass.double(), tail, rtol=2e-5, atol=0)
        steps = stored[2][:, :1].double() / temperature
        log_errors = (targets.probabilities.double().log() - listed.log()).abs()
        assert bool((log_errors <= steps + 2e-5).all())
        terms = listed * (listed.log() - targets.probabilities.double().log())
        divergence = terms.sum(dim=1) + tail * (tail.log() - targets.tail_mass.double().log())
        assert bool((divergence <= steps.squeeze(1) ** 2 / 8 + 1e-6).all())
        assert bits < 16 or bool((divergence < 1e-6).all())


@given(case=cases(("all different", "of few values")), bits=st.sampled_from(BITS))
def test_other_classes_share_the_tail_equally(case: Case, bits: Bits) -> None:
    encoding, classes = TopK(case.k, (1.0, 2.0), bits), case.logits.shape[1]
    stored = encoding.encode(case.logits, 2.0)
    targets = encoding.decode_sparse(stored, classes, 2.0)
    decoded = encoding.decode(stored, classes, 1.0, 2.0)
    others = torch.ones_like(decoded, dtype=torch.bool).scatter_(1, targets.class_ids, False)
    assert torch.equal(decoded[others].view(len(decoded), -1).amax(dim=1), targets.tail_mass / (classes - case.k))
    assert torch.equal(decoded[others].view(len(decoded), -1).amin(dim=1), targets.tail_mass / (classes - case.k))
    torch.testing.assert_close(
        targets.probabilities.double().sum(dim=1) + targets.tail_mass.double(),
        torch.ones(len(decoded)).double(),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("possible", [1, 2, 3])
def test_impossible_classes_stay_impossible(bits: Bits, possible: int) -> None:
    logits = torch.full((2, 300), -math.inf)
    logits[:, 7 : 7 + possible] = torch.tensor([2.0, 1.0, 0.5])[:possible]
    encoding = TopK(3, (1.0, 2.0), bits)
    stored = encoding.encode(logits, 1.0)
    assert encoding.first_wrong_position(stored, 300) is None
    for temperature in (1.0, 2.0):
        decoded = encoding.decode(stored, 300, 1.0, temperature)
        assert torch.equal(decoded > 0, logits > -math.inf)
        assert torch.equal(encoding.decode_sparse(stored, 300, temperature).tail_mass, torch.zeros(2))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("gap", [20.0, 100.0, 1e4, 1e30])
def test_possible_classes_stay_possible_however_certain_the_teacher_is(bits: Bits, gap: float) -> None:
    logits = torch.zeros((1, 1000))
    logits[0, 3] = gap
    logits[0, :3] = gap / 2
    decoded = TopK(5, (1.0,), bits).decode(TopK(5, (1.0,), bits).encode(logits, 1.0), 1000, 1.0, 1.0)
    assert bool((decoded > 0).all())
    assert decoded[0, 3] > 0.999


def test_many_positions_are_encoded_like_each_by_itself() -> None:
    logits = logits_of("of bfloat16", 70, 70_000, seed=3)
    encoding = TopK(8, (1.0, 3.0), 8)
    ids, codes, scales = encoding.encode(logits, 1.0)
    for place in (0, 6, 7, 59, 60, 69):
        own_ids, own_codes, own_scales = encoding.encode(logits[place : place + 1], 1.0)
        assert torch.equal(own_ids[0], ids[place])
        assert torch.equal(own_codes[0], codes[place])
        torch.testing.assert_close(own_scales[0], scales[place], rtol=1e-6, atol=0)


@given(case=cases(), bits=st.sampled_from(BITS))
def test_stored_arrays_have_the_declared_types_and_shapes_and_are_valid(case: Case, bits: Bits) -> None:
    encoding, classes = TopK(case.k, TEMPERATURES, bits), case.logits.shape[1]
    stored = encoding.encode(case.logits, 1.0)
    for array, column in zip(stored, encoding.columns(classes), strict=True):
        assert array.dtype == getattr(torch, column.dtype)
        assert tuple(array.shape) == (len(case.logits), *column.shape)
        assert len(column.shape) == len(column.dimensions)
    assert encoding.first_wrong_position(stored, classes) is None


@pytest.mark.parametrize(("k", "bits", "expected"), [(64, 16, 240), (64, 8, 176), (50, 4, 116), (63, 4, 143)])
def test_a_position_takes_the_stated_bytes(k: int, bits: Bits, expected: int) -> None:
    assert sum(column.nbytes for column in TopK(k, (1.0,), bits).columns(128_256)) == expected


@pytest.mark.parametrize("bits", BITS)
def test_no_positions_are_encoded_to_no_positions(bits: Bits) -> None:
    encoding = TopK(3, (1.0, 2.0), bits)
    stored = encoding.encode(torch.empty((0, 500)), 1.0)
    assert [tuple(array.shape[1:]) for array in stored] == [column.shape for column in encoding.columns(500)]
    assert encoding.decode(stored, 500, 1.0, 2.0).shape == (0, 500)
    assert encoding.first_wrong_position(stored, 500) is None


def test_a_temperature_that_is_not_listed_is_refused() -> None:
    encoding = TopK(2, (1.0, 2.0))
    logits = logits_of("all different", 1, 9, seed=0)
    stored = encoding.encode(logits, 2.0)
    assert encoding.serves(1) and encoding.serves(2.0 + 1e-12) and not encoding.serves(1.5)  # noqa: PT018
    for refused in (
        lambda: encoding.encode(logits, 1.5),
        lambda: encoding.decode(stored, 9, 1.0, 1.5),
        lambda: encoding.decode_sparse(stored, 9, 4.0),
    ):
        with pytest.raises(ValueError, match=r"temperature \S+ is none of \(1.0, 2.0\)"):
            refused()


@pytest.mark.parametrize("classes", [1, 4, 5])
def test_fewer_classes_than_one_more_than_k_are_refused(classes: int) -> None:
    with pytest.raises(ValueError, match="needs more classes than k"):
        TopK(5, (1.0,)).columns(classes)
    with pytest.raises(ValueError, match="needs more classes than k"):
        TopK(5, (1.0,)).encode(torch.zeros((1, classes)), 1.0)


@pytest.mark.parametrize(
    "encoding", [TopK(64, (1.0,)), TopK(3, (0.5, 1, 4), 8), TopK(k=1, temperatures=(2.0,), value_bits=4)]
)
def test_parameters_come_back_from_json(encoding: TopK) -> None:
    restored = encoding_of(json.loads(json.dumps(encoding.as_parameters())))
    assert restored == encoding
    assert restored.as_parameters() == encoding.as_parameters()


@pytest.mark.parametrize(
    "parameters",
    [
        {"k": 0},
        {"k": -1},
        {"k": 2.0},
        {"k": True},
        {"k": "2"},
        {"k": None},
        {"value_bits": 5},
        {"value_bits": 16.0},
        {"value_bits": "8"},
        {"value_bits": [8]},
        {"temperatures": []},
        {"temperatures": None},
        {"temperatures": 1.0},
        {"temperatures": "14"},
        {"temperatures": ["1"]},
        {"temperatures": [True]},
        {"temperatures": [0.0]},
        {"temperatures": [-1.0]},
        {"temperatures": [math.inf]},
        {"temperatures": [math.nan]},
        {"temperatures": [2.0, 1.0]},
        {"temperatures": [1.0, 1]},
        {"temperatures": {"1": 1}},
        {"surprise": 1},
    ],
)
def test_nonsense_is_refused_as_parameters(parameters: dict[str, Any]) -> None:
    valid = {"name": "top-k", "k": 2, "value_bits": 8, "temperatures": [1.0]}
    with pytest.raises((TypeError, ValueError)):
        encoding_of(valid | parameters)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_position_whose_logits_are_no_distribution_is_found(number: float) -> None:
    logits = logits_of("all different", 4, 3000, seed=0)
    logits[2] = -math.inf
    logits[2, 1234] = number
    encoding = TopK(3, (1.0,))
    assert encoding.first_wrong_position(encoding.encode(logits, 1.0), 3000) == 2


def with_ids(*ids: int) -> Callable[[Stored], None]:
    def damage(stored: Stored) -> None:
        stored[0][2] = elias_fano.pack(torch.tensor([ids]), 1000)[0]

    return damage


def with_scale(place: int, value: float) -> Callable[[Stored], None]:
    def damage(stored: Stored) -> None:
        stored[2][2, place] = value

    return damage


def with_codes(value: int) -> Callable[[Stored], None]:
    def damage(stored: Stored) -> None:
        stored[1][2] = value

    return damage


def with_packed(value: int) -> Callable[[Stored], None]:
    def damage(stored: Stored) -> None:
        stored[0][2] = value

    return damage


DAMAGES = {
    "ids that repeat": with_ids(5, 5, 900),
    "ids that descend": with_ids(5, 4, 900),
    "an id beyond the classes": with_ids(5, 6, 1000),
    "no id": with_packed(0),
    "too many ids": with_packed(255),
    "no largest class": with_codes(0x33),
    "no possible class": with_codes(0xFF),
    "a step of NaN": with_scale(0, math.nan),
    "an infinite step": with_scale(0, math.inf),
    "a negative step": with_scale(0, -0.1),
    "a tail mass of NaN": with_scale(1, math.nan),
    "a negative tail mass": with_scale(2, -1e-3),
    "a tail mass above the share of the other classes": with_scale(2, 0.9975),
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content_is_found(damage: str, bits: Bits) -> None:
    encoding = TopK(3, (1.0, 2.0), bits)
    stored = encoding.encode(logits_of("all different", 5, 1000, seed=0), 1.0)
    DAMAGES[damage](stored)
    assert encoding.first_wrong_position(stored, 1000) == 2


def test_a_tail_beside_an_impossible_class_among_the_largest_is_found() -> None:
    encoding = TopK(3, (1.0,), 8)
    ids, codes, scales = encoding.encode(logits_of("all different", 2, 1000, seed=0), 1.0)
    codes[1] = torch.tensor([0, 3, 255])
    assert encoding.first_wrong_position((ids, codes, scales), 1000) == 1


def test_a_half_byte_that_holds_no_code_and_is_not_zero_is_found() -> None:
    encoding = TopK(3, (1.0,), 4)
    stored = encoding.encode(logits_of("all different", 2, 1000, seed=0), 1.0)
    stored[1][1, 1] |= 0x10
    assert encoding.first_wrong_position(stored, 1000) == 1


@given(st.data())
def test_any_bytes_are_judged_and_what_passes_decodes_to_distributions(data: st.DataObject) -> None:
    classes, k = data.draw(st.sampled_from([(2, 1), (9, 2), (40, 3)]))
    encoding = TopK(k, (1.0, 3.0), data.draw(st.sampled_from(BITS)))
    columns = encoding.columns(classes)
    drawn = [data.draw(st.binary(min_size=2 * column.nbytes, max_size=2 * column.nbytes)) for column in columns]
    stored = tuple(
        torch.frombuffer(bytearray(content), dtype=getattr(torch, column.dtype)).view(2, *column.shape)
        for content, column in zip(drawn, columns, strict=True)
    )
    if encoding.first_wrong_position(stored, classes) is None:
        torch.testing.assert_close(encoding.decode(stored, classes, 1.0, 3.0).sum(dim=1), torch.ones(2))


def test_ids_beyond_the_classes_are_never_decoded() -> None:
    encoding = TopK(3, (1.0,))
    stored = encoding.encode(logits_of("all different", 3, 1000, seed=0), 1.0)
    with_packed(255)(stored)
    with pytest.raises(ValueError, match="of 1000 classes"):
        encoding.decode(stored, 1000, 1.0, 1.0)
