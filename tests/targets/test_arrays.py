"""How arrays are cut into blocks: at most 16 MB and so many rows, and at least one row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.targets.arrays import ONE_POSITION, block_arrays, index_arrays, rows_per_chunk
from pipeline.targets.dense import Dense


@pytest.mark.parametrize(
    ("rows", "bytes_per_row", "at_most", "expected"),
    [
        (10**6, 2000, 4096, 4096),  # 1000 classes in float16: the number of rows is the limit
        (10**6, 20_000, 4096, 800),  # 10 000 classes: 16 MB are
        (10**6, 16_000_000, 4096, 1),
        (10**6, 16_000_001, 4096, 1),  # one row is more than 16 MB
        (10**6, 10**12, 4096, 1),
        (3, 20, 4096, 3),
        (1, 1, 1, 1),
    ],
)
def test_a_block_has_at_most_16_mb_and_at_least_one_row(
    rows: int, bytes_per_row: int, at_most: int, expected: int
) -> None:
    assert rows_per_chunk(rows, bytes_per_row, at_most) == expected


def test_a_row_of_more_than_16_mb_is_a_block_of_its_own() -> None:
    [array] = block_arrays(Dense("float32").columns(5_000_000), 7, ONE_POSITION, 4096)
    assert (array.chunks, array.chunk_shape, array.chunk_bytes) == (7, (1, 5_000_000), 20_000_000)
    assert array.chunk_name(6) == "soft_targets/c.6.0"
    assert array.rows_of_chunk(6) == range(6, 7)


@given(rows=st.integers(1, 10**9), classes=st.integers(2, 10**7), rows_per_block=st.integers(1, 10**5))
def test_the_chunks_of_an_array_hold_every_row_once(rows: int, classes: int, rows_per_block: int) -> None:
    [array] = block_arrays(Dense("float16").columns(classes), rows, ONE_POSITION, rows_per_block)
    assert array.rows_per_chunk <= rows_per_block
    assert array.chunk_bytes <= 16_000_000 or array.rows_per_chunk == 1
    assert (array.chunks - 1) * array.rows_per_chunk < rows <= array.chunks * array.rows_per_chunk
    assert array.rows_of_chunk(array.chunks - 1).stop == rows
    assert array.rows_of_chunk(0).start == 0


def test_index_arrays_are_cut_at_16_mb_alone() -> None:
    digest, view, label = index_arrays(3_000_000)
    assert (digest.rows_per_chunk, view.rows_per_chunk, label.rows_per_chunk) == (1_000_000, 3_000_000, 2_000_000)
    assert (digest.chunks, view.chunks, label.chunks) == (3, 1, 2)
