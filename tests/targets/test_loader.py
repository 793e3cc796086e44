"""A loader serves every row once an epoch, in an order that is fixed, and goes on where another was stopped."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.errors import CorruptCacheError, MismatchError, UserError
from pipeline.targets.loader import TargetLoader
from pipeline.targets.order import ORDERS, Windows
from pipeline.targets.reader import TargetCache
from pipeline.targets.sparse import SparseTargets
from pipeline.targets.torch_data import TargetBatchSampler, TargetRows, whole_batch
from tests.targets.tiny import Tiny, overwrite

ORDER_NAMES: tuple[Any, ...] = tuple(ORDERS)
FORMS = {
    "zarr": Tiny(),
    "hdf5": Tiny("hdf5"),
    "top-k": Tiny(k=2),
    "compressed": Tiny(compression="blosc-lz4", dtype="log-uint16"),
    "compressed top-k": Tiny(compression="zstd", k=2),
}
SHARED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Tiny:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def cache(form: Tiny, tmp_path_factory: pytest.TempPathFactory) -> TargetCache:
    folder = form.make(tmp_path_factory.mktemp("caches")).folder
    return TargetCache(folder, pool_bytes=200)  # two or three blocks


def dense(soft_targets: Any) -> Tensor:
    assert isinstance(soft_targets, Tensor | SparseTargets)
    return soft_targets.dense() if isinstance(soft_targets, SparseTargets) else soft_targets


def served(loader: TargetLoader) -> list[int]:
    """The positions of what is left of an epoch; each batch's soft targets are compared with the cache's."""
    positions = []
    for batch in loader:
        rows = batch.positions.numpy()
        torch.testing.assert_close(dense(batch.soft_targets), loader.cache.soft_targets(rows), rtol=1e-5, atol=1e-7)
        positions += rows.tolist()
    return positions


@SHARED
@given(
    batch_size=st.integers(1, 30),
    order=st.sampled_from(ORDER_NAMES),
    seed=st.integers(0, 2**31),
    ahead=st.integers(0, 3),
    blocks=st.integers(1, 6),
)
def test_every_row_is_served_exactly_once_per_epoch(
    batch_size: int, order: Any, seed: int, ahead: int, blocks: int, cache: TargetCache
) -> None:
    cut = Windows(5, blocks)
    loader = TargetLoader(cache, batch_size, order=order, seed=seed, groups_ahead=ahead, windows=cut)
    for epoch in range(3):
        assert loader.epoch == epoch
        positions = served(loader)
        expected = ORDERS[order](len(cache), seed, epoch, cut).between(0, len(cache)).tolist()
        assert positions == expected
        assert sorted(positions) == list(range(len(cache)))


@SHARED
@given(
    batch_size=st.integers(1, 12),
    order=st.sampled_from(ORDER_NAMES),
    seed=st.integers(0, 100),
    stopped_after=st.integers(0, 60),
    drop_last=st.booleans(),
)
def test_a_loader_stopped_anywhere_and_resumed_serves_exactly_the_remaining_rows_in_the_same_order(
    batch_size: int, order: Any, seed: int, stopped_after: int, drop_last: bool, cache: TargetCache
) -> None:
    def loader() -> TargetLoader:
        return TargetLoader(cache, batch_size, order=order, seed=seed, drop_last=drop_last)

    def batches(one: TargetLoader) -> list[list[int]]:
        return [batch.positions.tolist() for _ in range(3) for batch in one]

    whole, stopped = batches(loader()), loader()
    endless = itertools.chain.from_iterable(itertools.repeat(stopped))
    before = [batch.positions.tolist() for batch in itertools.islice(endless, min(stopped_after, len(whole) - 1))]
    resumed = loader()
    resumed.load_state_dict(pickle.loads(pickle.dumps(stopped.state_dict())))
    after = [
        batch.positions.tolist()
        for batch in itertools.islice(
            itertools.chain.from_iterable(itertools.repeat(resumed)), len(whole) - len(before)
        )
    ]
    assert before + after == whole


def test_the_same_loader_goes_on_after_a_break(cache: TargetCache) -> None:
    loader = TargetLoader(cache, 4, order="window", seed=3)
    first = next(iter(loader)).positions.tolist()
    assert sorted(first + served(loader)) == list(range(len(cache)))
    assert (loader.epoch, loader.batch) == (1, 0)


def test_a_state_of_other_rows_or_another_order_is_refused(cache: TargetCache) -> None:
    state = TargetLoader(cache, 4, seed=1).state_dict()
    for other in (
        TargetLoader(cache, 4, seed=2),
        TargetLoader(cache, 5, seed=1),
        TargetLoader(cache, 4, order="window"),
    ):
        with pytest.raises(UserError, match="this loader has"):
            other.load_state_dict(state)
    with pytest.raises(UserError, match="rows = 23, this loader has 3"):
        TargetLoader(cache, 4, seed=1, rows=np.arange(3)).load_state_dict(state)


def test_joined_rows_are_served_by_their_positions(form: Tiny, cache: TargetCache) -> None:
    rows = np.array([4, 22, 4, 0, 7])
    for order in ORDER_NAMES:
        seen: dict[int, Tensor] = {}
        for batch in TargetLoader(cache, 2, rows=rows, order=order):
            seen |= dict(zip(batch.positions.tolist(), dense(batch.soft_targets), strict=True))
        assert sorted(seen) == [0, 1, 2, 3, 4]
        for position, row in enumerate(rows):
            torch.testing.assert_close(seen[position], cache.soft_targets(np.array([row]))[0], rtol=1e-5, atol=1e-7)


def test_undecoded_batches_are_the_stored_bytes(cache: TargetCache) -> None:
    for batch in TargetLoader(cache, 4, decode=False, order="window"):
        assert isinstance(batch.soft_targets, tuple)
        for found, expected in zip(batch.soft_targets, cache.stored(batch.positions.numpy()), strict=True):
            assert found.dtype == expected.dtype
            assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_what_a_loader_may_not_be_asked_is_refused(cache: TargetCache) -> None:
    with pytest.raises(UserError, match="order = 'random'; there are global, window, sequential"):
        TargetLoader(cache, 4, order="random")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch_size = 0"):
        TargetLoader(cache, 0)
    with pytest.raises(MismatchError, match="temperature 3"):
        TargetLoader(cache, 4, temperature=3.0)


@pytest.mark.parametrize("name", FORMS)
def test_a_damaged_block_ends_the_epoch_before_a_row_of_it_is_served(name: str, tmp_path: Path) -> None:
    form = replace(FORMS[name], rows_per_block=5)
    cache = form.open(tmp_path)
    array = cache.manifest.encoding_arrays()[0]
    entry = np.load(cache.folder / "blocks.npy")[-cache_chunks(cache) + 2]
    file = cache.folder / ("targets.h5" if form.layout == "hdf5" else f"targets.zarr/{array.chunk_name(2)}")
    content = file.read_bytes()
    place = int(entry["offset"]) + 3
    overwrite(file, place, bytes([content[place] ^ 1]))
    loader = TargetLoader(TargetCache(cache.folder), 2, order="sequential")
    with pytest.raises(CorruptCacheError, match=rf"{array.name}/c\.2.*crc32c"):
        served(loader)
    assert loader.batch * 2 <= 10


def cache_chunks(cache: TargetCache) -> int:
    return sum(array.chunks for array in cache.manifest.encoding_arrays())


def test_threads_may_share_a_cache_of_fewer_slots_than_blocks(form: Tiny, tmp_path: Path) -> None:
    cache = TargetCache(form.make(tmp_path).folder, pool_bytes=1)
    expected = TargetCache(cache.folder).soft_targets(np.arange(23))
    wrong: list[object] = []

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        try:
            for _ in range(60):
                rows = generator.integers(0, 23, 9)
                if not torch.allclose(cache.soft_targets(rows), expected[rows], atol=1e-6):
                    wrong.append(rows)
        except Exception as problem:  # a thread's exception would be lost
            wrong.append(problem)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_serves_the_same_rows_once(start: str, workers: int, cache: TargetCache) -> None:
    cache.soft_targets(np.arange(3))  # opened and used before the workers are started
    rows = TargetRows(cache)
    sampler = TargetBatchSampler(rows, 4, order="window", seed=5, windows=Windows(5, 2))
    context = multiprocessing.get_context(start) if workers else None
    loader: DataLoader[Any] = DataLoader(
        rows, batch_sampler=sampler, collate_fn=whole_batch, num_workers=workers, multiprocessing_context=context
    )
    for epoch in range(2):
        positions: list[int] = []
        for some, soft_targets in loader:
            expected = cache.soft_targets(some.numpy())
            torch.testing.assert_close(dense(soft_targets), expected, rtol=1e-5, atol=1e-7)
            positions += some.tolist()
        assert positions == ORDERS["window"](23, 5, epoch, Windows(5, 2)).between(0, 23).tolist()
        if start == "spawn" and workers:
            return  # a spawned process imports torch anew: one epoch is enough


def test_a_sampler_goes_on_after_the_batches_that_were_used(cache: TargetCache) -> None:
    rows = TargetRows(cache, rows=np.arange(20))
    sampler, resumed = TargetBatchSampler(rows, 6, seed=1), TargetBatchSampler(rows, 6, seed=1)
    batches = [list(sampler), list(sampler)]
    resumed.load_state_dict({"epoch": 1, "batch": 2})
    assert len(resumed) == 2
    assert list(resumed) == batches[1][2:]
    assert [len(batch) for batch in batches[0]] == [6, 6, 6, 2]
    assert len(list(TargetBatchSampler(rows, 6, drop_last=True))) == 3
    position, soft_target = rows[7]
    assert position.tolist() == [7]
    assert torch.equal(dense(soft_target), cache.soft_targets(np.array([7])))


def test_a_pickled_cache_is_small_and_opens_anew(cache: TargetCache) -> None:
    content = pickle.dumps(cache)
    assert len(content) < 1000
    assert torch.equal(pickle.loads(content).soft_targets(np.arange(23)), cache.soft_targets(np.arange(23)))


FORKED = """
import os, sys
import numpy as np
import torch
from pipeline import TargetCache
cache = TargetCache(sys.argv[1])
before = cache.soft_targets(np.arange(23))
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # torch's own threads are gone, and it would wait for them; DataLoader's workers do the same
same = bool((cache.soft_targets(np.arange(23)[::-1].copy()).flip(0) == before).all())
if child == 0:
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
"""


@pytest.mark.parametrize("name", FORMS)
def test_a_forked_process_reads_the_cache_that_its_parent_had_used(name: str, tmp_path: Path) -> None:
    folder = FORMS[name].make(tmp_path).folder
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


WITHOUT_ADDRESSES = """
import resource, sys
import numpy as np
import torch
from pipeline import TargetCache
from pipeline.targets.pooled_rows import PooledRows
cache = TargetCache(sys.argv[1])
torch.softmax(torch.zeros(9, 9), dim=1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))  # less than the blocks' reservation
found = cache.soft_targets(np.arange(200))
assert all(isinstance(memory, PooledRows) for memory in cache.store._memories.values()), cache.store._memories
sys.stdout.buffer.write(found.numpy().tobytes())
"""


def test_without_addresses_for_a_mapping_the_same_rows_are_read(tmp_path: Path) -> None:
    form = Tiny("zarr", rows=200, classes=1001, rows_per_block=1)  # blocks of 2002 bytes lie 4 MB apart
    cache = form.open(tmp_path)
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT_ADDRESSES, str(cache.folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr.decode()
    expected = cache.soft_targets(np.arange(200))
    assert ran.stdout == expected.numpy().tobytes()
