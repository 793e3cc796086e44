"""The digits source: known without scikit-learn, loaded with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.arrays import ArrayDataset
from data.digits import DigitsSource
from pipeline.dataset import Dataset


@pytest.fixture(scope="module")
def parts() -> dict[str, ArrayDataset]:
    return DigitsSource(validation=0.2, test=0.2, split_seed=0).load()


def test_files_names_the_bundled_file_without_importing_numpy_heavy_packages() -> None:
    program = (
        "import sys\n"
        "from data.digits import DigitsSource\n"
        "[file] = DigitsSource(validation=0.2, test=0.2, split_seed=0).files().values()\n"
        "assert file.is_file(), file\n"
        "print(file.name, *[name for name in ('sklearn', 'scipy', 'torch') if name in sys.modules])\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["digits.csv.gz"]


def test_there_are_1797_images_of_8_by_8_pixels_in_ten_classes(parts: dict[str, ArrayDataset]) -> None:
    assert sum(len(part) for part in parts.values()) == 1797
    for part in parts.values():
        assert isinstance(part, Dataset)
        assert part.sample_shape == (1, 8, 8)
        assert part.values.dtype == np.uint8
        assert part.values.max() == 16
        assert part.class_names == tuple("0123456789")
        assert set(part.labels().tolist()) == set(range(10))


def test_the_digits_are_split_as_they_always_were(parts: dict[str, ArrayDataset]) -> None:
    assert {split: len(part) for split, part in parts.items()} == {"training": 1080, "validation": 337, "test": 380}


def test_another_split_seed_gives_another_split(parts: dict[str, ArrayDataset]) -> None:
    other = DigitsSource(validation=0.2, test=0.2, split_seed=1).load()
    assert not np.array_equal(other["test"].sample_digests()[:50], parts["test"].sample_digests()[:50])
