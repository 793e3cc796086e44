"""Exporting a cache to one file for other tools, block by block: .npz or Parquet.

Both can be imported again (`pipeline/teachers/outputs_file.py`): rows are joined by `sample_digest`.
Shape legend: R rows, B rows of a block, C classes.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.durable import sync_file, sync_folder
from pipeline.errors import UserError
from pipeline.targets.reader import TargetCache

METADATA_KEY = b"softcache"  # in the schema of an exported Parquet file


def export(cache: TargetCache, target: Path, temperature: float | None = None, replace: bool = False) -> int:
    """Write all rows of a cache to `target` (.npz or .parquet), whole or not at all; returns their number.

    The soft targets are at `temperature` (default: the cache's). Raises UserError for another suffix, for a folder, or when the
    file is there and may not be replaced; MismatchError for a temperature that the certificate does not vouch for.
    """
    write = WRITERS.get(target.suffix)
    if write is None:
        raise UserError(f"{target}: the file to write must end in {' or '.join(WRITERS)}.")
    if target.is_dir():
        raise UserError(f"{target} is a folder; name the file to write.")
    if target.exists() and not replace:
        raise UserError(f"{target} is there already. Choose another name, or replace it with --force.")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder.")
    wanted = cache.temperature if temperature is None else temperature
    cache.check_temperature(wanted, math.inf if wanted == cache.temperature else None)
    beside = target.with_name(f".unfinished-{target.name}")
    try:
        write(cache, beside, wanted)
        sync_file(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(target.parent)
    return len(cache)


def described(cache: TargetCache, temperature: float) -> dict[str, Any]:
    """What an export says of itself: classes in order, temperature, the cache's keys and provenance."""
    manifest = cache.manifest
    return {
        "class_names": list(cache.class_names),
        "temperature": temperature,
        "cache": manifest.key,
        "row_key": manifest.row_key,
        "teacher": manifest.teacher["digest"],
        "split": manifest.split,
        "provenance": manifest.provenance,
    }


def blocks_of(cache: TargetCache, temperature: float) -> Iterator[tuple[range, NDArray[np.float32]]]:
    """The rows and the probabilities (B, C) of each block, in order."""
    spec = cache.manifest.encoding_arrays()[0]
    for block in range(spec.chunks):
        rows = spec.rows_of_chunk(block)
        yield rows, cache.soft_targets(np.arange(rows.start, rows.stop), temperature, max_kl=math.inf).numpy()


def _write_npz(cache: TargetCache, path: Path, temperature: float) -> None:
    said = described(cache, temperature)
    small: dict[str, NDArray[Any]] = {
        "sample_digest": cache.sample_digests(),
        "view": cache.views(),
        "label": cache.labels(),
        "class_names": np.array(cache.class_names),
        "temperature": np.array(temperature),
        "provenance": np.array(json.dumps(said, sort_keys=True)),
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in small.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
        with archive.open(zipfile.ZipInfo("probabilities.npy"), "w", force_zip64=True) as member:
            shape = (len(cache), len(cache.class_names))
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for _, probabilities_BC in blocks_of(cache, temperature):
                member.write(np.ascontiguousarray(probabilities_BC, dtype="<f4").data.cast("B"))


def _write_parquet(cache: TargetCache, path: Path, temperature: float) -> None:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f'{path.suffix} needs pyarrow: pip install "softcache[parquet]"') from None
    names = list(cache.class_names)
    schema = arrow.schema(
        [
            ("sample_digest", arrow.binary(16)),
            ("view", arrow.int32()),
            ("label", arrow.int64()),
            ("class", arrow.string()),
            ("probabilities", arrow.list_(arrow.float32(), len(names))),
        ],
        metadata={METADATA_KEY: json.dumps(described(cache, temperature), sort_keys=True)},
    )
    digests, views, labels = cache.sample_digests(), cache.views(), cache.labels()
    with parquet.ParquetWriter(path, schema) as writer:
        for rows, probabilities_BC in blocks_of(cache, temperature):
            held = slice(rows.start, rows.stop)
            writer.write_table(
                arrow.table(
                    {
                        "sample_digest": arrow.array([digest.tobytes() for digest in digests[held]], arrow.binary(16)),
                        "view": views[held],
                        "label": labels[held],
                        "class": [None if label < 0 else names[label] for label in labels[held]],
                        "probabilities": arrow.FixedSizeListArray.from_arrays(probabilities_BC.ravel(), len(names)),
                    },
                    schema=schema,
                )
            )


WRITERS: dict[str, Callable[[TargetCache, Path, float], None]] = {".npz": _write_npz, ".parquet": _write_parquet}
