"""Encoding at once where the logits are, and later on another thread: the same bytes, the same errors, from the same code."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import TeacherOutputError
from pipeline.lanes import Each, HostLane, Lane, Mark, Sent, T
from pipeline.targets.arrays import Positions
from pipeline.targets.dense import dense_of
from pipeline.targets.encoders import AtOnce, Encoder, Later, encoded_pieces, encoder_for
from pipeline.targets.encodings import Encoding
from pipeline.targets.known_rows import known_rows
from pipeline.targets.largest import first_largest, largest_classes, narrowed
from pipeline.targets.production import TeacherForward, produce, take_known, works_of
from pipeline.targets.shelf import Shelf
from pipeline.targets.tail_mass import _others_by_softmax, _others_in_one_pass, tail_masses
from pipeline.targets.top_k import TopK
from pipeline.targets.writer import CacheWriter
from tests.targets.tiny import DTYPES, Tiny, made_content


def named(tiny: Tiny) -> str:
    kind = tiny.dtype if tiny.k is None else f"top-{tiny.k}-{tiny.value_bits}"
    return f"{tiny.layout}-{kind}-{tiny.classes}{'-maps' if tiny.positions.sizes else ''}"


BACKGROUND = ThreadPoolExecutor(1)
MAPS = Positions(("height", "width"), (2, 3))
CASES = [
    *(Tiny(dtype=dtype) for dtype in DTYPES),
    Tiny(k=2, batch_size=3),
    Tiny(k=3, value_bits=4, classes=700, rows=60, rows_per_block=40, batch_size=16),
    Tiny(layout="hdf5", dtype="log-uint16", positions=MAPS),
    Tiny(k=1, positions=MAPS, compression="zstd"),
    Tiny(classes=1000, rows=300, rows_per_block=290, batch_size=64),  # only some positions are measured
]


@dataclass(frozen=True)
class _Copied:
    """A moment of a LateLane: what was to be copied until then is copied once somebody waits for it."""

    lane: LateLane
    until: int

    def wait(self) -> None:
        while self.lane.done < self.until:
            computed, into = self.lane.copies.popleft()
            with torch.inference_mode():
                into.copy_(computed)
            self.lane.done += 1


@dataclass
class LateLane:
    """A lane that copies nothing before it is waited for, as a GPU may do."""

    batches_ahead = 1
    copies: deque[tuple[Tensor, Tensor]] = field(default_factory=deque)
    begun: int = 0
    done: int = 0

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype)

    def send(self, value: T, each: Each[T]) -> Sent[T]:
        return Sent(value, each)

    def fetch(self, computed: Tensor, into: Tensor) -> None:
        self.copies.append((computed, into))
        self.begun += 1

    def fetched(self) -> Mark:
        return _Copied(self, self.begun)

    def computed(self) -> Mark:
        return HostLane().computed()


def made_by(
    tiny: Tiny, folder: Path, encoder: Encoder, teacher: TeacherForward | None = None, donor: Tiny | None = None
) -> Path:
    """The cache of `tiny`, sealed, by one way to encode; rows that `donor` has are taken from a cache of it."""
    if donor is not None:
        donor.make(folder)
    plan = tiny.plan()
    known = known_rows(Shelf(folder), plan)
    writer = CacheWriter(folder / plan.key, plan, known)
    settings = {"batch_size": tiny.batch_size, "temperatures": list(tiny.certify)}
    try:
        blocks = [block for block in writer.missing_blocks() if not len(known.new_rows(writer.rows_of_block(block)))]
        take_known(writer, known, blocks)
        works = works_of(writer, known)
        produce(writer, works, teacher or tiny.teacher(), known=known, encoder=encoder, **settings)  # type: ignore[arg-type]
        writer.seal({})
    finally:
        writer.close()
    return writer.folder


def at_once(tiny: Tiny, lane: Lane) -> AtOnce:
    plan = tiny.plan()
    return AtOnce(plan, plan.block_arrays()[0].rows_per_chunk, lane)


@pytest.mark.parametrize("lane", [HostLane, LateLane])
@pytest.mark.parametrize("tiny", CASES, ids=named)
def test_encoding_at_once_gives_the_bytes_of_encoding_later(
    tiny: Tiny, lane: Callable[[], Lane], tmp_path: Path
) -> None:
    later = made_content(made_by(tiny, tmp_path / "later", Later(tiny.plan())))
    assert made_content(made_by(tiny, tmp_path / "at once", at_once(tiny, lane()))) == later


def test_a_teacher_that_is_faster_than_its_encoding_waits_rather_than_hold_all_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.targets.encoders.MOST_LOGITS_WAITING_BYTES", 1)
    tiny, alive, most = Tiny(rows=60, rows_per_block=60, batch_size=2), 0, 0

    def given_back() -> None:
        nonlocal alive
        alive -= 1

    def counted(indices: NDArray[np.int64]) -> Tensor:
        nonlocal alive, most
        logits = tiny.teacher()(indices)
        alive += 1
        most = max(most, alive)
        weakref.finalize(logits, given_back)
        return logits

    found = made_content(made_by(tiny, tmp_path / "later", Later(tiny.plan()), teacher=counted))
    assert found == made_content(tiny.make(tmp_path / "whole").folder)
    assert most <= 4  # of 30 batches: one being computed, one waiting, one being encoded, one just let go


@pytest.mark.parametrize("tiny", [Tiny(), Tiny(k=2, positions=MAPS)], ids=named)
def test_rows_of_several_blocks_in_one_work_are_encoded_at_once_too(tiny: Tiny, tmp_path: Path) -> None:
    donor = replace(tiny, of_samples=tuple(sample for sample in range(20) if sample % 4))
    later = made_content(made_by(tiny, tmp_path / "later", Later(tiny.plan()), donor=donor))
    assert made_content(made_by(tiny, tmp_path / "at once", at_once(tiny, LateLane()), donor=donor)) == later


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
@pytest.mark.parametrize(
    "tiny", [*(Tiny(dtype=dtype) for dtype in DTYPES), Tiny(k=2), Tiny(k=1, positions=MAPS)], ids=named
)
@pytest.mark.parametrize("way", ["later", "at once"])
def test_both_ways_name_the_first_sample_that_is_not_finite(way: str, tiny: Tiny, value: float, tmp_path: Path) -> None:
    broken = torch.from_numpy(tiny.logits())
    broken.view(tiny.rows, -1)[[13, 14, 20], 2] = value
    encoder: Encoder = Later(tiny.plan()) if way == "later" else at_once(tiny, LateLane())
    with pytest.raises(
        TeacherOutputError, match="NaN or infinity for sample 13 of the training split; finished blocks"
    ):
        made_by(tiny, tmp_path, encoder, lambda indices: broken[torch.from_numpy(indices)])
    resumed = made_by(tiny, tmp_path, Later(tiny.plan()))
    assert made_content(resumed) == made_content(made_by(tiny, tmp_path / "whole", Later(tiny.plan())))


@pytest.mark.parametrize("tiny", [*(Tiny(dtype=dtype) for dtype in DTYPES), Tiny(k=2)], ids=named)
def test_at_once_a_row_of_minus_infinity_alone_is_refused_and_a_single_one_is_not(tiny: Tiny, tmp_path: Path) -> None:
    forest = torch.from_numpy(tiny.logits())
    forest[4, 1:] = -math.inf
    made_by(tiny, tmp_path / "right", at_once(tiny, LateLane()), lambda indices: forest[torch.from_numpy(indices)])
    forest[13] = -math.inf
    with pytest.raises(TeacherOutputError, match="NaN or infinity for sample 13"):
        made_by(tiny, tmp_path / "wrong", at_once(tiny, LateLane()), lambda indices: forest[torch.from_numpy(indices)])


def test_at_once_logits_of_another_shape_are_refused(tmp_path: Path) -> None:
    tiny = Tiny()
    with pytest.raises(TeacherOutputError, match=r"shape \(2, 3\) for 2 samples of 4 classes, first at sample 0"):
        made_by(tiny, tmp_path, at_once(tiny, LateLane()), lambda indices: tiny.teacher()(indices)[:, :3])


def test_two_works_share_two_sets_of_buffers_in_turn() -> None:
    tiny = Tiny()
    encoder, measured = at_once(tiny, HostLane()), np.arange(2)
    first, second = encoder.begin(measured, BACKGROUND), encoder.begin(measured, BACKGROUND)
    logits = torch.from_numpy(tiny.logits())
    for filling, rows in ((first, slice(0, 2)), (second, slice(2, 4))):
        filling.add(logits[rows], np.arange(tiny.rows)[rows])
    exact = dense_of("float16").encode(logits, tiny.temperature)[0]
    assert torch.equal(first.encoded().stored[0], exact[:2])
    assert torch.equal(second.encoded().stored[0], exact[2:4])
    assert torch.equal(second.encoded().measured_logits, logits[2:4])
    place = first.encoded().stored[0].data_ptr()
    first.close()
    third = encoder.begin(measured, BACKGROUND)
    third.add(logits[4:6], np.arange(4, 6))
    assert third.encoded().stored[0].data_ptr() == place
    assert torch.equal(third.encoded().stored[0], exact[4:6])


def test_no_more_than_two_batches_are_asked_for_ahead() -> None:
    waited: list[int] = []

    @dataclass
    class Moment:
        number: int

        def wait(self) -> None:
            waited.append(self.number)

    class Counting(LateLane):
        asked = 0

        def computed(self) -> Mark:
            self.asked += 1
            return Moment(self.asked)

    tiny = Tiny(rows_per_block=23)
    filling = at_once(tiny, Counting()).begin(np.arange(0), BACKGROUND)
    logits = torch.from_numpy(tiny.logits())
    for number in range(5):
        filling.add(logits[2 * number : 2 * number + 2], np.arange(2 * number, 2 * number + 2))
        assert waited == list(range(1, number))


def test_a_cpu_encodes_later() -> None:
    assert isinstance(encoder_for(torch.device("cpu"), Tiny().plan(), 5), Later)


ENCODINGS: list[tuple[Encoding, float]] = [
    *((dense_of(dtype), temperature) for dtype in DTYPES for temperature in (1.0, 4.0)),
    *((TopK(3, (1.0, 2.0, 4.0)), temperature) for temperature in (1.0, 4.0)),
    (TopK(5, (4.0,), 4), 4.0),
]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("encoding", "temperature"), ENCODINGS, ids=str)
def test_logits_of_half_precision_are_encoded_as_the_same_numbers_in_float32(
    encoding: Encoding, temperature: float, precision: torch.dtype
) -> None:
    logits = (3 * torch.randn(50, 400, generator=torch.Generator().manual_seed(0))).to(precision)
    half, whole = encoding.encode(logits, temperature), encoding.encode(logits.float(), temperature)
    assert all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8)) for one, other in zip(half, whole, strict=True)
    )


# Few distinct values: ties are what the search must get right.
values = st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0])


@given(st.integers(1, 6), st.integers(0, 400), st.data())
def test_the_search_without_waiting_finds_the_classes_that_the_other_finds(
    k: int, more: int, data: st.DataObject
) -> None:
    classes, seed = k + 1 + more, data.draw(st.integers(0, 2**31))
    generator = np.random.default_rng(seed)
    chosen = data.draw(st.lists(values, min_size=1, max_size=6))
    logits = torch.from_numpy(generator.choice(np.array(chosen, np.float32), (5, classes)))
    few, ids = narrowed(logits, k + 1)
    assert torch.equal(few.where(ids < classes, -math.inf), logits.gather(1, ids))
    assert few.shape[1] < max(16 * (k + 1), 2)
    assert torch.equal(ids.gather(1, first_largest(few, k)), largest_classes(logits, k))
    possible = (few > -math.inf).sum(dim=1) > k
    assert torch.equal(possible, (logits > -math.inf).sum(dim=1) > k)


@pytest.mark.parametrize("classes", [128_256, 50_257])
def test_few_of_a_large_vocabulary_are_left(classes: int) -> None:
    logits = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    few, ids = narrowed(logits, 65)
    assert few.shape[1] <= 16 * 65
    assert torch.equal(ids.gather(1, first_largest(few, 64)), largest_classes(logits.float(), 64))


@pytest.mark.parametrize("temperatures", [(1.0,), (1.0, 2.0, 4.0), (0.5, 3.0)])
def test_tail_masses_in_one_pass_are_those_by_softmax(temperatures: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(40, 300, generator=generator)).round()  # many ties
    logits[5, 7:] = -math.inf
    ids = largest_classes(logits, 6)
    one_pass, by_softmax = (sums(logits, ids, temperatures) for sums in (_others_in_one_pass, _others_by_softmax))
    torch.testing.assert_close(one_pass, by_softmax, rtol=1e-5, atol=0.0)
    broken = logits.clone()
    broken[3, 4] = math.nan
    assert torch.isnan(_others_in_one_pass(broken, ids, temperatures)[:, 3]).all()


def test_a_tail_that_is_possible_keeps_some_mass_and_an_impossible_one_none() -> None:
    logits = torch.tensor([[0.0, -1000.0, -2000.0], [0.0, -math.inf, -math.inf], [0.0, -1.0, -math.inf]])
    ids = torch.tensor([[0], [0], [0]])
    possible = torch.tensor([[True], [False], [True]])
    found = tail_masses(logits, ids, (1.0,), possible)
    assert torch.equal(found, tail_masses(logits, ids, (1.0,)))
    assert found[0] == 2.0**-100
    assert found[1] == 0


@pytest.mark.parametrize(
    "encoding", [dense_of("float16"), dense_of("log-uint8"), TopK(4, (1.0, 2.0, 4.0), 16)], ids=str
)
def test_what_torch_compile_traces_encodes_the_same(encoding: Encoding) -> None:
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    traced = torch.compile(encoding.encode, backend="aot_eager", dynamic=False, fullgraph=True)
    with torch.inference_mode():
        for found, wanted in zip(traced(logits, 4.0), encoding.encode(logits, 4.0), strict=True):
            if found.is_floating_point():
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
            else:
                assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("encoding", "temperature"), ENCODINGS, ids=str)
def test_away_from_the_cpu_no_shape_and_no_branch_depends_on_a_value(
    encoding: Encoding, temperature: float, precision: torch.dtype
) -> None:
    logits = torch.empty(3000, 50_257, dtype=precision, device="meta")  # has no values: asking for one raises
    for stored in encoded_pieces(encoding, logits, temperature):
        columns = encoding.columns(50_257)
        assert [tuple(array.shape[1:]) for array in stored] == [column.shape for column in columns]
        assert [array.dtype for array in stored] == [getattr(torch, column.dtype) for column in columns]
        assert encoding.is_finite(stored).shape == (len(stored[0]),)
