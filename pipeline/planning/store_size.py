"""The size of a store before it is made: all its files, to the byte where its blocks are not compressed."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.recipe import Recipe, Targets
from pipeline.targets.arrays import ONE_POSITION, ArraySpec, block_arrays, index_arrays
from pipeline.targets.dense import DTYPES
from pipeline.targets.encodings import encoding_name, encoding_of
from pipeline.targets.layouts import LAYOUTS, Layout

# What a codec may add to a chunk that it cannot make smaller: zstd a 256th and 64 bytes (ZSTD_compressBound) and a checksum of
# 4, blosc a header of 16.
EXPANSION_SHIFT, EXPANSION_BYTES = 8, 128


def choosable_encodings(recipe: Recipe, classes: int) -> list[dict[str, Any]]:
    """The parameters of the encodings that [targets] can name for so many classes, the recipe's own first.

    Every dense number format, and top-k as the recipe has it, or by default, where k is below the classes.
    """
    targets, own = recipe.targets, recipe.targets.encoding_parameters()
    temperatures = sorted(
        {*targets.temperatures, targets.temperature, recipe.student_temperature or targets.temperature}
    )
    found = [own, *({"name": "dense", "dtype": dtype} for dtype in DTYPES)]
    if targets.encoding == "dense" and targets.k < classes:
        top_k = {"name": "top-k", "k": targets.k, "value_bits": targets.value_bits}
        found.append({**top_k, "temperatures": temperatures})
    return [parameters for place, parameters in enumerate(found) if parameters not in found[:place]]


def arrays_of(parameters: dict[str, Any], targets: Targets, rows: int, classes: int) -> tuple[ArraySpec, ...]:
    """All arrays of the store that a recipe's [targets] would give so many rows in this encoding."""
    columns = encoding_of(parameters).columns(classes)
    encoded = block_arrays(columns, rows, ONE_POSITION, targets.rows_per_block, targets.compression)
    return (*index_arrays(rows), *encoded)


def store_bytes(
    layout: Layout, arrays: Sequence[ArraySpec], attributes: dict[str, Any], share: float | None = None
) -> int:
    """Bytes of all files of a store: metadata, index arrays, whole blocks with their padding and trailers.

    Exact without compression; with it, the most that it can be, or what is expected where `share` of a compressed block
    is stored. The metadata are really written, to a temporary folder; the chunks that a layout reserves with them take no
    space there.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        layout.create(folder, arrays, attributes)
        created = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        to_come = [spec for spec in arrays if not (folder / layout.file_of(spec.chunk_name(0))).exists()]
    return created + sum(spec.chunks * (_chunk_bytes(spec, share) + layout.trailer_bytes) for spec in to_come)


def bytes_of_encodings(
    recipe: Recipe, rows: Mapping[str, int], class_names: Sequence[str], share: float | None = None
) -> list[dict[str, Any]]:
    """Of each encoding that can be chosen: its name and parameters, and the bytes of the store of each split with so many rows.

    `exact` is false where blocks are compressed: then these are the most, and the recipe's own encoding, the first, has
    `estimated_bytes` as well, if it is known that `share` of a block is stored.
    """
    targets, classes = recipe.targets, len(class_names)
    attributes = {"temperature": targets.temperature, "class_names": list(class_names)}

    def by_split(parameters: dict[str, Any], share: float | None = None) -> dict[str, int]:
        return {
            split: store_bytes(
                LAYOUTS[targets.layout], arrays_of(parameters, targets, count, classes), attributes, share
            )
            for split, count in rows.items()
        }

    exact = targets.compression == "none"
    found: list[dict[str, Any]] = [
        {
            "encoding": encoding_name(parameters),
            "parameters": parameters,
            "exact": exact,
            "bytes": by_split(parameters),
        }
        for parameters in choosable_encodings(recipe, classes)
    ]
    if not exact and share is not None:
        found[0]["estimated_bytes"] = by_split(found[0]["parameters"], share)
    return found


def _chunk_bytes(spec: ArraySpec, share: float | None) -> int:
    """The bytes of one chunk's data: the most that it takes, or the expected `share`."""
    if spec.compression == "none":
        return spec.chunk_bytes
    if share is not None:
        return round(share * spec.chunk_bytes)
    return spec.chunk_bytes + (spec.chunk_bytes >> EXPANSION_SHIFT) + EXPANSION_BYTES
