"""The size of a store that is told beforehand is that of the store on disk, to the byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from pipeline.cache_contents import bytes_on_disk
from pipeline.planning.store_size import arrays_of, choosable_encodings, store_bytes
from pipeline.recipe import Targets
from pipeline.recipe_reader import read_recipe
from pipeline.targets.encodings import encoding_name
from pipeline.targets.layouts import LAYOUTS
from tests.stages.toy import RECIPE
from tests.targets.tiny import DTYPES, LAYOUT_NAMES, Tiny

SHAPES = [
    Tiny(rows=1, rows_per_block=4),
    Tiny(rows=20, rows_per_block=5),
    Tiny(rows=23, rows_per_block=5),
    Tiny(rows=1203, rows_per_block=100, classes=7),
    Tiny(rows=40, rows_per_block=4096, classes=300),
    Tiny(rows=9, rows_per_block=9, classes=40, k=8),
    Tiny(rows=70, rows_per_block=16, classes=40, k=7, value_bits=4),
]


def stored(cache: Path, layout: str) -> int:
    """Bytes of a store on disk."""
    return bytes_on_disk(cache / LAYOUTS[layout].store)


def told(tiny: Tiny, share: float | None = None) -> int:
    plan = tiny.plan()
    attributes = {"temperature": plan.temperature, "class_names": list(plan.class_names)}
    return store_bytes(LAYOUTS[tiny.layout], plan.arrays(), attributes, share)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize(
    "shape", SHAPES, ids=lambda tiny: f"{tiny.rows} rows of {tiny.classes}, {tiny.rows_per_block} a block"
)
def test_the_bytes_are_those_of_the_store(layout: str, shape: Tiny, tmp_path: Path) -> None:
    tiny = replace(shape, layout=layout)
    assert told(tiny) == stored(tiny.make(tmp_path).folder, layout)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bytes_are_those_of_every_number_format(layout: str, dtype: str, tmp_path: Path) -> None:
    tiny = Tiny(layout=layout, dtype=dtype, rows=57, classes=11)
    assert told(tiny) == stored(tiny.make(tmp_path).folder, layout)


@pytest.mark.parametrize("compression", ["zstd", "blosc-lz4"])
@pytest.mark.parametrize("spread", [0.001, 3.0], ids=["alike", "noise"])
def test_compressed_blocks_never_take_more_than_is_said(compression: str, spread: float, tmp_path: Path) -> None:
    tiny = Tiny(compression=compression, rows=600, rows_per_block=64, classes=13, spread=spread)
    assert stored(tiny.make(tmp_path).folder, "zarr") <= told(tiny)
    assert told(tiny, share=0.5) < told(tiny)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_the_size_of_terabytes_is_told_without_their_space(layout: Literal["zarr", "hdf5"]) -> None:
    rows, row_bytes = 10**9, 16 + 4 + 8 + 2 * 1000
    arrays = arrays_of({"name": "dense", "dtype": "float16"}, Targets(layout=layout), rows, 1000)
    found = store_bytes(LAYOUTS[layout], arrays, {})
    assert rows * row_bytes < found < (rows + 4096) * row_bytes + 10**8


def test_the_encodings_that_can_be_chosen_are_the_recipes_own_then_the_others_once(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(RECIPE)
    recipe = read_recipe(tmp_path / "toy.toml")
    names = [encoding_name(parameters) for parameters in choosable_encodings(recipe, 65)]
    dense = ["dense float16", "dense float32", "dense log-uint8", "dense log-uint16"]
    assert names == [*dense, "top-k k=64 temperatures=4 value_bits=16"]
    assert [encoding_name(parameters) for parameters in choosable_encodings(recipe, 64)] == dense
    sparse = Targets(encoding="top-k", k=8, value_bits=4, temperatures=(1.0, 2.0))
    own = recipe.model_copy(update={"targets": sparse})
    names = [encoding_name(parameters) for parameters in choosable_encodings(own, 65)]
    assert names == ["top-k k=8 temperatures=1,2,4 value_bits=4", *dense]
