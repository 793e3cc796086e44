"""A newer reader opens every older version: these caches were sealed by the softcache of their time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from tests.targets.tiny import LAYOUT_NAMES, Tiny

VERSION_1 = Path(__file__).parent / "version_1"  # made by commit 8320dd4
VERSION_2 = Path(__file__).parent / "version_2"  # made by commit bde8dfb
FORMS_OF_VERSION_2 = {"zarr": Tiny("zarr"), "hdf5": Tiny("hdf5"), "top-k": Tiny(classes=5, k=2, compression="zstd")}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_cache_of_format_version_1_is_read_and_verified(layout: str) -> None:
    cache, tiny = TargetCache(VERSION_1 / layout), Tiny(layout)
    assert cache.manifest.format_version == 1
    np.testing.assert_allclose(cache.soft_targets(np.arange(23)).numpy(), tiny.exact(), rtol=0, atol=1e-3)
    assert cache.join(tiny.digests()[:3]).tolist() == [0, 1, 2]
    assert cache.key == tiny.plan().key
    verify(cache.folder)


@pytest.mark.parametrize("form", FORMS_OF_VERSION_2)
def test_a_cache_of_format_version_2_is_read_verified_and_gives_its_rows(form: str, tmp_path: Path) -> None:
    cache, tiny = TargetCache(VERSION_2 / form), FORMS_OF_VERSION_2[form]
    assert cache.manifest.format_version == 2
    found = cache.soft_targets(np.arange(23)).numpy()
    np.testing.assert_allclose(found, tiny.served(), rtol=0, atol=1e-3)
    assert cache.key == tiny.plan().key
    verify(cache.folder)
    shutil.copytree(cache.folder, tmp_path / cache.key)
    assert replace(tiny, of_samples=tuple(range(22, 2, -1))).make(tmp_path).rows_computed == 0
