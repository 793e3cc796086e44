"""Whatever kind of dataset samples come in, they are the same samples: equal pixels and equal arrays share a row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import source_of
from pipeline.recipe import Data
from tests.data.pictures import colour, write
from tests.data.test_parquet import encoded, pa
from tests.data.test_parquet import written as write_table
from tests.data.test_webdataset import as_npy
from tests.data.test_webdataset import written as write_tar

datasets = pytest.importorskip("datasets")

COUNT = 30
VALUES = np.random.default_rng(0).normal(size=(COUNT, 4)).astype(np.float32)


def folder_of_images(path: Path) -> dict[str, Any]:
    for number in range(COUNT):
        write(path / "set" / "ab"[number % 2] / f"{number:02}.png", colour(number))
    return {"kind": "folder", "path": "set"}


def hugging_face_images(path: Path) -> dict[str, Any]:
    columns = {"image": [Image.fromarray(colour(number)) for number in range(COUNT)], "label": [0, 1] * (COUNT // 2)}
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path / "set"))
    return {"kind": "huggingface", "path": "set"}


def parquet_images(path: Path) -> dict[str, Any]:
    rows = [encoded(colour(number), "BMP") for number in range(COUNT)]
    write_table(path / "set.parquet", pa.table({"image": rows, "label": [0, 1] * (COUNT // 2)}))
    return {"kind": "parquet", "path": "set.parquet"}


def tar_of_images(path: Path) -> dict[str, Any]:
    members = []
    for number in range(COUNT):
        members += [(f"{number}.ppm", encoded(colour(number), "PPM")), (f"{number}.cls", str(number % 2).encode())]
    write_tar(path / "set.tar", members)
    return {"kind": "webdataset", "path": "set.tar"}


def npz(path: Path) -> dict[str, Any]:
    np.savez(path / "set.npz", x=VALUES, y=np.arange(COUNT) % 2)
    return {"kind": "npz", "path": "set.npz"}


def hugging_face_arrays(path: Path) -> dict[str, Any]:
    features = datasets.Features(image=datasets.Sequence(datasets.Value("float32")), label=datasets.Value("int64"))
    columns = {"image": list(VALUES), "label": [0, 1] * (COUNT // 2)}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(str(path / "set"))
    return {"kind": "huggingface", "path": "set"}


def parquet_arrays(path: Path) -> dict[str, Any]:
    column = pa.array(VALUES.tolist(), pa.list_(pa.float32()))
    write_table(path / "set.parquet", pa.table({"image": column, "label": [0, 1] * (COUNT // 2)}))
    return {"kind": "parquet", "path": "set.parquet"}


def tar_of_arrays(path: Path) -> dict[str, Any]:
    members = []
    for number in range(COUNT):
        members += [(f"{number}.npy", as_npy(VALUES[number])), (f"{number}.cls", str(number % 2).encode())]
    write_tar(path / "set.tar", members)
    return {"kind": "webdataset", "path": "set.tar", "input": "npy"}


@pytest.mark.parametrize(
    "kinds",
    [
        (folder_of_images, hugging_face_images, parquet_images, tar_of_images),
        (npz, hugging_face_arrays, parquet_arrays, tar_of_arrays),
    ],
)
def test_the_same_samples_have_the_same_digests_labels_and_splits(
    tmp_path: Path, kinds: tuple[Callable[[Path], dict[str, Any]], ...]
) -> None:
    found = []
    for make in kinds:
        folder = tmp_path / make.__name__
        folder.mkdir()
        parts = source_of(Data(**make(folder)), folder).load()
        found.append(
            {
                split: sorted(zip(map(bytes, part.sample_digests()), part.labels().tolist(), strict=True))
                for split, part in parts.items()
            }
        )
    assert sum(map(len, found[0].values())) == COUNT
    assert all(parts == found[0] for parts in found[1:])
