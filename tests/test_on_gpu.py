"""What only a GPU can show: copies beside the computation, encoding on the device, the search for a batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.batch_size import chosen_size
from pipeline.lanes import lane_to, one_tensor
from pipeline.targets.reader import TargetCache
from pipeline.targets.verification import verify
from tests.targets.tiny import Tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
FORMS = [Tiny(dtype="float16"), Tiny(dtype="log-uint16"), Tiny(classes=9, k=2)]


def test_what_is_sent_and_fetched_comes_back_as_it_was() -> None:
    lane, values = lane_to(torch.device("cuda")), torch.arange(1000.0)
    back = lane.buffer((1000,), torch.float32)
    sent = lane.send(values, one_tensor).arrived()
    assert sent.device.type == "cuda"
    lane.fetch(sent * 2, back)
    lane.fetched().wait()
    assert torch.equal(back, values * 2)


@pytest.mark.parametrize("tiny", FORMS, ids=["float16", "log-uint16", "top-k"])
def test_a_cache_encoded_on_the_device_agrees_with_one_that_a_cpu_made(tiny: Tiny, tmp_path: Path) -> None:
    logits = torch.from_numpy(tiny.logits()).cuda()

    def on_device(indices: NDArray[np.int64]) -> Tensor:
        return logits[torch.from_numpy(indices).cuda()]

    found = TargetCache(tiny.make(tmp_path / "gpu", on_device).folder)
    verify(found.folder)
    rows, expected = np.arange(tiny.rows), tiny.open(tmp_path / "cpu")
    torch.testing.assert_close(found.soft_targets(rows), expected.soft_targets(rows), atol=2e-3, rtol=0)


def test_the_largest_batch_that_fits_is_found_and_leaves_the_memory_as_it_was() -> None:
    tiny, weights = Tiny(), torch.rand(4, 4, device="cuda")

    def hungry(indices: NDArray[np.int64]) -> Tensor:
        held = torch.empty(len(indices), 2**28, dtype=torch.uint8, device="cuda")  # 256 MB a sample
        return torch.zeros(len(indices), 4, device="cuda") @ weights + held[:, :1]

    size, _ = chosen_size(hungry, np.arange(4096), tiny.plan().encoding, 4.0)
    assert 1 <= size < 4096
    assert torch.cuda.memory_reserved() < 2**28
