"""The layout, the day and the run change nothing of what a cache holds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tests.targets.tiny import DTYPES, FLOATS, LAYOUT_NAMES, Tiny, files_of, made_content

INDEX = ("sample_digest", "view", "label")


def read_by_zarr(cache: Path) -> dict[str, NDArray[Any]]:
    group = zarr.open_group(cache / "targets.zarr", mode="r")
    return {name: np.asarray(group[name]) for name in group.array_keys()}


def read_by_h5py(cache: Path) -> dict[str, NDArray[Any]]:
    with h5py.File(cache / "targets.h5", "r") as file:
        return {name: file[name][...] for name in file}


@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_and_hdf5_hold_equal_arrays(dtype: str, tmp_path: Path) -> None:
    in_zarr = read_by_zarr(Tiny("zarr", dtype).make(tmp_path / "zarr").folder)
    in_hdf5 = read_by_h5py(Tiny("hdf5", dtype).make(tmp_path / "hdf5").folder)
    encoded = ("soft_targets",) if dtype in FLOATS else ("log_codes", "log_step")
    assert set(in_zarr) == set(in_hdf5) == {*INDEX, *encoded}
    for name in in_zarr:
        assert in_zarr[name].dtype == in_hdf5[name].dtype
        np.testing.assert_array_equal(in_zarr[name], in_hdf5[name])


def test_zarr_and_hdf5_chunks_have_equal_checksums(tmp_path: Path) -> None:
    tables = [np.load(Tiny(layout).make(tmp_path / layout).folder / "blocks.npy") for layout in LAYOUT_NAMES]
    np.testing.assert_array_equal(tables[0]["crc32c"][5:], tables[1]["crc32c"][1:])  # after the metadata objects


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_two_runs_give_byte_identical_stores_and_block_tables(layout: str, dtype: str, tmp_path: Path) -> None:
    tiny = Tiny(layout, dtype)
    first = tiny.make(tmp_path / "first").folder
    time.sleep(1.1)  # HDF5 can store the second in which an object was made
    second = tiny.make(tmp_path / "second").folder
    assert made_content(first) == made_content(second)
    assert files_of(first).keys() == files_of(second).keys()


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_making_a_sealed_cache_again_computes_and_changes_nothing(layout: str, tmp_path: Path) -> None:
    tiny = Tiny(layout)
    made = tiny.make(tmp_path)
    before = files_of(made.folder)

    def never(indices: NDArray[np.int64]) -> Any:
        raise AssertionError("the teacher ran")

    again = tiny.make(tmp_path, never)
    assert (again.rows_computed, again.rows_resumed) == (0, tiny.rows)
    assert files_of(made.folder) == before
