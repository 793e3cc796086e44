"""An exported cache holds every row for other tools, is written whole or not at all, and comes back by import."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from data.arrays import ArrayDataset, checked_dataset
from data.digests import array_digests
from pipeline.errors import MismatchError, UserError
from pipeline.targets.export import WRITERS, export
from pipeline.teachers.joining import JoinedOutputs
from pipeline.teachers.outputs_file import read_outputs
from tests.targets.tiny import DTYPES, LAYOUT_NAMES, Tiny


@dataclass(frozen=True)
class OfSamples(Tiny):
    """A tiny cache of the samples of a dataset, all of view 0."""

    def samples(self) -> ArrayDataset:
        values = np.arange(self.rows * 2, dtype=np.float32).reshape(self.rows, 2)
        return checked_dataset(values, None, self.plan().class_names, split="all", origin="the test")

    def digests(self) -> NDArray[np.uint8]:
        return array_digests(np.arange(self.rows * 2, dtype=np.float32).reshape(self.rows, 2))

    def views(self) -> NDArray[np.int32]:
        return np.zeros(self.rows, np.int32)


def columns(path: Path) -> dict[str, Any]:
    """What another tool reads."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    table = parquet.read_table(path)
    said = json.loads(table.schema.metadata[b"softcache"])
    digests = np.array([list(digest) for digest in table["sample_digest"].to_pylist()], dtype=np.uint8)
    return {
        **{name: table[name].to_numpy() for name in ("view", "label", "class")},
        "sample_digest": digests,
        "probabilities": np.array(table["probabilities"].to_pylist(), dtype=np.float32),
        "class_names": np.array(said["class_names"]),
        "temperature": np.array(said["temperature"]),
        "provenance": np.array(json.dumps(said)),
    }


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_an_export_holds_every_row_with_its_digest_label_and_soft_targets(
    layout: str, suffix: str, tmp_path: Path
) -> None:
    tiny = Tiny(layout)
    cache = tiny.open(tmp_path)
    assert export(cache, tmp_path / f"out{suffix}") == tiny.rows
    found = columns(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(found["sample_digest"], tiny.digests())
    np.testing.assert_array_equal(found["view"], tiny.views())
    np.testing.assert_array_equal(found["label"], tiny.labels())
    np.testing.assert_array_equal(found["probabilities"], cache.soft_targets(np.arange(tiny.rows)))
    assert tuple(found["class_names"]) == cache.class_names
    assert float(found["temperature"]) == 4.0
    said = json.loads(str(found["provenance"]))
    assert (said["cache"], said["teacher"]) == (cache.key, cache.manifest.teacher["digest"])
    assert said["provenance"] == cache.manifest.provenance
    if suffix == ".parquet":
        names = [None if label < 0 else cache.class_names[label] for label in tiny.labels()]
        assert list(found["class"]) == names


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_export_may_be_of_another_certified_temperature(suffix: str, tmp_path: Path) -> None:
    cache = Tiny(dtype="float32").open(tmp_path)
    export(cache, tmp_path / f"out{suffix}", 2.0)
    found = columns(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(found["probabilities"], cache.soft_targets(np.arange(len(cache)), 2.0))
    assert float(found["temperature"]) == 2.0
    with pytest.raises(MismatchError, match=r"temperature 3\.0 is not certified"):
        export(cache, tmp_path / f"other{suffix}", 3.0)
    assert sorted(path.name for path in tmp_path.glob("*out*")) == [f"out{suffix}"]
    assert not (tmp_path / f"other{suffix}").exists()


def test_a_file_that_is_there_is_replaced_only_when_asked(tmp_path: Path) -> None:
    cache, target = Tiny().open(tmp_path), tmp_path / "out.npz"
    target.write_text("precious")
    with pytest.raises(UserError, match=r"out\.npz is there already.*--force"):
        export(cache, target)
    assert target.read_text() == "precious"
    export(cache, target, replace=True)
    assert "probabilities" in columns(target)


@pytest.mark.parametrize(
    ("name", "message"), [("out.csv", r"must end in \.npz or \.parquet"), ("none/out.npz", "none: no such folder")]
)
def test_a_target_that_cannot_be_written_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        export(Tiny().open(tmp_path), tmp_path / name)


@pytest.mark.parametrize("suffix", WRITERS)
def test_an_export_that_fails_leaves_nothing(suffix: str, tmp_path: Path) -> None:
    cache = Tiny().open(tmp_path)
    block = cache.folder / "targets.zarr" / "soft_targets" / "c.4.0"
    damaged = bytearray(block.read_bytes())
    damaged[3] ^= 1
    block.write_bytes(damaged)
    with pytest.raises(Exception, match=r"soft_targets/c\.4\.0"):
        export(cache, tmp_path / f"out{suffix}")
    assert list(tmp_path.glob("*out*")) == list(tmp_path.glob(".*out*")) == []


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_export_then_import_gives_the_same_soft_targets(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout, suffix = data.draw(st.sampled_from(LAYOUT_NAMES)), data.draw(st.sampled_from(list(WRITERS)))
    dtype: Literal["float16", "float32"] = data.draw(st.sampled_from(DTYPES))
    rows, classes = data.draw(st.integers(6, 30)), data.draw(st.integers(2, 7))
    spread = data.draw(st.sampled_from([0.1, 3.0, 30.0]))
    folder = tmp_path_factory.mktemp("exported")
    tiny = OfSamples(layout, dtype, rows, classes, spread=spread, seed=data.draw(st.integers(0, 99)))
    samples, cache, path = tiny.samples(), tiny.open(folder), folder / f"out{suffix}"
    export(cache, path)
    order = np.array(data.draw(st.permutations(range(rows))))
    turned = samples.subset(order, "training")
    file = read_outputs(path, "probabilities", samples.class_names)
    joined = JoinedOutputs(file, {"training": turned}, samples.class_names, "probabilities", cache.temperature)
    assert joined.places_sha256 is None
    logits: NDArray[Any] = joined.forward("training")(np.arange(rows)).numpy()
    found = torch.softmax(torch.from_numpy(logits) / cache.temperature, dim=1)
    np.testing.assert_allclose(found, cache.soft_targets(order, max_kl=math.inf), atol=1e-6)
