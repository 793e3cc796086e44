"""Which sample is at which place of its source: what the index of a row of imported outputs means. No torch here.

Shape legend: N samples of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import canonical_json

if TYPE_CHECKING:
    from pipeline.dataset import Dataset
    from pipeline.experiment import Experiment


def places_of(dataset: Dataset) -> tuple[str, NDArray[np.int64]]:
    """The part of the source that a split was taken from, and the samples' places (N,) in it.

    A user's dataset that does not say is a part of its own, in its own order.
    """
    part: str = getattr(dataset, "part", dataset.split)
    positions: Any = getattr(dataset, "positions", None)
    return part, np.arange(len(dataset)) if positions is None else np.asarray(positions, dtype=np.int64)


def part_lengths(splits: Mapping[str, Dataset]) -> dict[str, int]:
    """How many samples each part of the source has: as its datasets say (`part_samples`), else up to the last place taken.

    Only the first counts samples that are in no split, such as an unlabelled one that equals a test sample.
    """
    lengths: dict[str, int] = {}
    for dataset in splits.values():
        part, positions = places_of(dataset)
        said: Any = getattr(dataset, "part_samples", None)
        lengths[part] = max(lengths.get(part, 0), int(positions.max(initial=-1)) + 1, 0 if said is None else int(said))
    return lengths


def places_sha256(splits: Mapping[str, Dataset]) -> str:
    """Hash of which sample is at which place of the source, whatever split it fell in: what an index means."""
    by_part: dict[str, list[tuple[NDArray[np.int64], NDArray[np.uint8]]]] = {}
    for dataset in splits.values():
        part, positions = places_of(dataset)
        by_part.setdefault(part, []).append((positions, dataset.sample_digests()))
    digest = hashlib.sha256()
    for part in sorted(by_part):
        positions = np.concatenate([found for found, _ in by_part[part]])
        digests = np.concatenate([found for _, found in by_part[part]])
        order = np.argsort(positions, kind="stable")
        digest.update(canonical_json([part, len(order)]))
        digest.update(positions[order].astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(digests[order]).tobytes())
    return digest.hexdigest()


def places_here(experiment: Experiment) -> str:
    """`places_sha256` of the student's data, which needs no file of outputs; remembered while the data are the same."""
    data = experiment.data_memory("student")
    memory = None if data is None else data.with_name(data.name.replace("data-", "places-", 1))
    try:
        known = {} if memory is None else json.loads(memory.read_bytes())
        return str(known["places_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        found = places_sha256(experiment.datasets("student"))
    if memory is not None:
        experiment.remember(memory, {"places_sha256": found})
    return found
