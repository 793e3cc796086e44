"""A newer reader opens every older version: these caches were sealed by the softcache of their time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from tests.targets.tiny import LAYOUT_NAMES, Tiny

VERSION_1 = Path(__file__).parent / "version_1"  # made by commit 8320dd4


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_cache_of_format_version_1_is_read_and_verified(layout: str) -> None:
    cache, tiny = TargetCache(VERSION_1 / layout), Tiny(layout)
    assert cache.manifest.format_version == 1
    np.testing.assert_allclose(cache.soft_targets(np.arange(23)).numpy(), tiny.exact(), rtol=0, atol=1e-3)
    assert cache.join(tiny.digests()[:3]).tolist() == [0, 1, 2]
    assert cache.key == tiny.plan().key
    verify(cache.folder)
