"""The batch size of a teacher that the recipe leaves to the machine: `targets.batch_size = "auto"`.

On a GPU it is the largest that fits, as near as matters: larger batches are never slower there. On a CPU it is the fastest of
few, in bounded memory: there a batch that leaves the processor's cache is slower.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.canonical import short
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.sorting import Indices
    from pipeline.targets.encodings import Encoding
    from pipeline.targets.production import TeacherForward
    from pipeline.targets.writer import CachePlan

AUTO = "auto"
DEFAULT = 256  # as in a recipe that says nothing: where a search would not pay, or the teacher is not run at all

HEADROOM = 0.1  # of a GPU's free memory that stays free: fragments, and what other processes come to need
SHARE_OF_HOST = 0.25  # of the memory that is available, for the tensors of a forward pass on a CPU
TRIAL_SECONDS = 2.0  # on a CPU: a call that takes so long is not worth doubling
TRIES = 2  # of each size on a CPU; the faster counts


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, or up to a sixteenth less: found by doubling, then by bisection.

    `fits` must say yes to whatever is smaller than what it said yes to. 0 when not even 1 fits.
    """
    if most < 1 or not fits(1):
        return 0
    fitting, failing = 1, most + 1
    while fitting < most:
        tried = min(2 * fitting, most)
        if not fits(tried):
            failing = tried
            break
        fitting = tried
    while failing - fitting > max(1, fitting // 16):
        tried = (fitting + failing) // 2
        if fits(tried):
            fitting = tried
        else:
            failing = tried
    return fitting


def fastest(sizes: Iterable[int], seconds: Callable[[int], float], enough: float = TRIAL_SECONDS) -> int:
    """The size, of ascending ones, with the most samples a second; of equals the smaller.

    Sizes after one that takes `enough` seconds are not tried, nor after two in a row that are slower than the best.
    """
    best, best_rate, slower = 0, 0.0, 0
    for size in sizes:
        taken = seconds(size)
        rate = size / taken
        if rate > best_rate:
            best, best_rate, slower = size, rate, 0
        else:
            slower += 1
        if taken >= enough or slower == 2:
            break
    return best


def powers_of_two(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    size = 1
    while size <= most:
        yield size
        size *= 2


class TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations give while it is active: more than are alive at any moment."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        """Run one operation and count what it gives."""
        given = operation(*arguments, **(named or {}))
        self.total += sum(leaf.nbytes for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        return given


def bytes_of_sample(teacher: TeacherForward, indices: Indices) -> int:
    """At most how many bytes of tensors each sample more costs a forward pass on a CPU; `indices` are of two samples."""
    found: list[int] = []
    for count in (1, 2):
        with TensorBytes() as counted:
            teacher(indices[:count])
        found.append(counted.total)
    return max(1, found[1] - found[0])


def available_bytes() -> int:
    """Memory of the host that can be used without swapping; where the system does not say, what it calls free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def size_on_cpu(teacher: TeacherForward, indices: Indices) -> int:
    """The power of two that is fastest, of those whose tensors surely need no more than a share of the available memory."""
    if len(indices) < 2:
        return 1
    most = int(SHARE_OF_HOST * available_bytes()) // bytes_of_sample(teacher, indices)

    def seconds(size: int) -> float:
        taken = []
        for _ in range(TRIES):
            started = time.perf_counter()
            teacher(indices[:size])
            taken.append(time.perf_counter() - started)
        return min(taken)

    return fastest(powers_of_two(max(1, min(most, len(indices)))), seconds)


def size_on_gpu(
    teacher: TeacherForward, indices: Indices, encoding: Encoding, temperature: float, device: torch.device
) -> int:
    """The largest that fits with headroom, less where that divides the samples (n,) evenly into as many batches.

    Two batches are computed and encoded, as two are under way in a pass. Raises UserError when one sample does not fit.
    """
    free, total = torch.cuda.mem_get_info(device)
    allowed = (1 - HEADROOM) * (free + torch.cuda.memory_reserved(device))

    def fits(size: int) -> bool:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            _two_batches(teacher, indices[:size], encoding, temperature)
            torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return False
        return torch.cuda.max_memory_reserved(device) <= allowed

    # What torch does not allocate itself (cuBLAS, kernels that are loaded late) fails with other errors, so it keeps its room.
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), device)
    try:
        found = largest_fitting(fits, len(indices))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()
    if not found:
        raise _one_does_not_fit(device)
    return -(-len(indices) // -(-len(indices) // found))


def _one_does_not_fit(device: torch.device) -> UserError:
    return UserError(
        f"a batch of one sample does not fit the GPU, which has {torch.cuda.mem_get_info(device)[0]:,} bytes free. Use a GPU "
        'with more memory, targets.precision = "bfloat16", or device = "cpu".'
    )


def _two_batches(teacher: TeacherForward, indices: Indices, encoding: Encoding, temperature: float) -> None:
    from pipeline.targets.encoders import encoded_pieces

    kept = []
    for _ in range(2):
        logits = teacher(indices)
        kept.append((logits, encoded_pieces(encoding, logits.flatten(0, -2), temperature)))


def with_batch_size(
    plan: CachePlan,
    open_teacher: Callable[[Indices], TeacherForward],
    new_rows: Callable[[], Indices],
    say: Callable[[str], None] = lambda text: None,
) -> CachePlan:
    """The plan with a number for its batch size, found by running the teacher on the first `new_rows()` where it is "auto".

    Batches never cross a block, so no more than its rows are tried.
    """
    if plan.resumable["batch_size"] != AUTO:
        return plan
    size, how = DEFAULT, "there are no new rows"
    new = new_rows()
    if len(new):
        order = plan.rows.first_index[new].astype("int64", copy=False)
        teacher = open_teacher(order)
        tried = order[: plan.block_arrays()[0].rows_per_chunk]
        size, how = chosen_size(teacher, tried, plan.encoding, plan.temperature)
    say(f"cache {short(plan.key)}: batch size {size} (auto: {how})")
    return replace(plan, resumable={**plan.resumable, "batch_size": size})


def chosen_size(teacher: TeacherForward, indices: Indices, encoding: Encoding, temperature: float) -> tuple[int, str]:
    """The batch size for a teacher that was opened, tried on samples at `indices` (n,), and why, for people."""
    try:
        device = teacher(indices[:1]).device
    except torch.OutOfMemoryError:
        raise _one_does_not_fit(torch.device("cuda")) from None
    if device.type == "cpu":
        return size_on_cpu(teacher, indices), "the fastest power of two"
    return size_on_gpu(teacher, indices, encoding, temperature, device), "the largest that fits the GPU"
