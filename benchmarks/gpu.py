"""teacher-targets and a student's step on a GPU against bare loops; on a machine without one, the same with small models.

python -m benchmarks.gpu [--quick] [--json FILE]

On a GPU the bare loop of images runs on images that lie in its memory, whatever teacher-targets is given; on a CPU it reads the
same images as teacher-targets. In either case it throws the logits away.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.rounds import QUICK_ROUNDS, Findings, Row, alternately, at_least, at_most, median_ratio, run, seconds_of
from benchmarks.synthetic import random_rows
from benchmarks.transformer_models import LanguageModel, VisionTransformer, made_on
from benchmarks.workload import TEMPERATURE, cache_in, class_names, epoch_seconds, made_up_teacher, plan_of
from data.arrays import ArrayDataset
from pipeline.batches import Preprocess, SoftTargets
from pipeline.canonical import digest_of
from pipeline.devices import autocast, described, device_of, memory_format_of
from pipeline.models import parameter_count
from pipeline.recipe import Model, Normalise, Precision
from pipeline.student_data import CachedSoftTargets, learning_set
from pipeline.targets.arrays import Positions
from pipeline.targets.encoders import encoded_pieces
from pipeline.targets.production import TeacherForward
from pipeline.targets.reader import TargetCache
from pipeline.targets.top_k import TopK
from pipeline.targets.writer import CachePlan
from pipeline.teacher_pass import forward_of

CLASSES = 1000
ROUNDS = 3
LEAST_OF_BARE_LOOP, LEAST_OF_LANGUAGE_LOOP, MOST_OF_LABEL_STEP = 0.97, 0.9, 1.03  # on a GPU
MOST_ON_CPU = 1.05
IMAGE_NORMALISE = Normalise(mean=(120.0,), std=(60.0,))


@dataclass(frozen=True)
class Sizes:
    """What is run: networks (options of their classes), batches, and seconds that a bare loop is to take."""

    images: dict[str, int]
    image_batch: int
    texts: dict[str, int]
    text_batch: int
    student: dict[str, int]
    student_batch: int
    student_steps: int
    precision: Precision
    weights: torch.dtype  # of the language model
    seconds: float


SIZES = {
    # A ViT-B/16, and a language model with the vocabulary and about the size of Llama 3 8B.
    "cuda": Sizes(
        images={"side": 224, "patch": 16, "width": 768, "layers": 12, "heads": 12},
        image_batch=256,
        texts={"vocabulary": 128_256, "tokens": 512, "width": 4096, "layers": 32, "heads": 32},
        text_batch=8,
        student={"patch": 16, "width": 768, "layers": 12, "heads": 12},
        student_batch=128,
        student_steps=48,
        precision="bfloat16",
        weights=torch.bfloat16,
        seconds=5.0,
    ),
    "cpu": Sizes(
        images={"side": 96, "patch": 16, "width": 192, "layers": 6, "heads": 3},
        image_batch=64,
        texts={"vocabulary": 32_000, "tokens": 32, "width": 768, "layers": 12, "heads": 12},
        text_batch=4,
        student={"patch": 16, "width": 192, "layers": 4, "heads": 3},
        student_batch=64,
        student_steps=32,
        precision="float32",
        weights=torch.float32,
        seconds=5.0,
    ),
}
QUICK = Sizes(
    images={"side": 32, "patch": 16, "width": 32, "layers": 1, "heads": 2},
    image_batch=8,
    texts={"vocabulary": 2000, "tokens": 4, "width": 32, "layers": 1, "heads": 2},
    text_batch=2,
    student={"patch": 16, "width": 32, "layers": 1, "heads": 2},
    student_batch=8,
    student_steps=2,
    precision="float32",
    weights=torch.float32,
    seconds=0.0,
)
POOLED = 1024  # different samples in memory; a loop meets them again and again


class Pool:
    """Samples of any number: a few in memory, again and again."""

    def __init__(self, held: NDArray[np.generic]):
        self._held = held

    def samples(self, indices: NDArray[np.int64]) -> NDArray[np.generic]:
        """Samples at any indices, in memory of their own, as datasets give them."""
        return self._held[indices % len(self._held)]


def finished(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds until a work, and all that it asked the device for, is done."""

    def whole() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds_of(whole)


def loop_of(forward: TeacherForward, samples: int, batch: int) -> Callable[[], None]:
    """A bare loop."""

    def bare() -> None:
        for start in range(0, samples, batch):
            forward(np.arange(start, min(start + batch, samples)))

    return bare


def samples_for(device: torch.device, forward: TeacherForward, batch: int, seconds: float) -> int:
    """How many samples, in whole batches, take about so long."""
    if not seconds:
        return 2 * batch
    finished(device, loop_of(forward, 2 * batch, batch))
    rough = finished(device, loop_of(forward, 4 * batch, batch)) / 4
    return batch * max(4, round(seconds / rough))


def compared(
    what: str,
    device: torch.device,
    plan: CachePlan,
    forward: TeacherForward,
    bare: TeacherForward,
    rounds: int,
    least: float,
) -> Row:
    """One row: making a cache, everything included, against the bare loop."""
    samples, batch = len(plan.rows), plan.resumable["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        places = (Path(folder, str(number)) for number in count())

        def cached() -> None:
            place = next(places)
            cache_in(place, plan, forward)
            shutil.rmtree(place)

        works = {"bare loop": loop_of(bare, samples, batch), "teacher-targets": cached}
        measured = alternately(
            rounds, **{name: lambda work=work: finished(device, work) for name, work in works.items()}
        )
    rate = samples / statistics.median(measured["teacher-targets"])
    if device.type == "cuda":
        ratio, words = median_ratio(measured, "bare loop", "teacher-targets")
        return at_least(f"{what}: samples/s of the bare loop's", f"{words}; {rate:,.4g} samples/s", ratio, least)
    ratio, words = median_ratio(measured, "teacher-targets", "bare loop")
    return at_most(f"{what}: seconds of the bare loop's", f"{words}; {rate:,.4g} samples/s", ratio, MOST_ON_CPU)


def image_plan(samples: int, sizes: Sizes) -> CachePlan:
    """The plan of a dense cache of so many samples."""
    noise = ArrayDataset(np.zeros((2, 1), np.uint8), np.arange(2), class_names(CLASSES), "training", "noise")
    return replace(plan_of(noise, sizes.image_batch), rows=random_rows(samples, CLASSES))


def image_rows(device: torch.device, sizes: Sizes, rounds: int) -> list[Row]:
    """A vision transformer, on images in the device's memory and in the host's."""
    network = made_on(device, torch.float32, lambda: VisionTransformer(**sizes.images, classes=CLASSES))
    side, batch = sizes.images["side"], sizes.image_batch
    held = np.random.default_rng(0).integers(
        0, 256, (max(batch, POOLED if sizes.seconds else 0), 3, side, side), np.uint8
    )
    preprocess = Preprocess(IMAGE_NORMALISE, (3, side, side))
    on_device = preprocess.normalised(torch.from_numpy(held[:batch]).to(device))
    on_device = on_device.contiguous(memory_format=memory_format_of(network, device))  # as teacher-targets gives them

    @torch.inference_mode()
    def resident(indices: NDArray[np.int64]) -> Tensor:
        with autocast(device, sizes.precision):
            return torch.as_tensor(network(on_device[: len(indices)]))

    samples = samples_for(device, resident, batch, sizes.seconds)
    plan = image_plan(samples, sizes)
    from_host = forward_of(network, Pool(held), preprocess, sizes.precision, device, plan.rows.first_index)
    of = (
        f"ViT of {parameter_count_of(network):,} parameters, {side} x {side}, {sizes.precision}, dense {CLASSES} classes, "
        f"{samples:,} samples in batches of {batch}"
    )
    bare = resident if device.type == "cuda" else from_host
    return [
        compared(f"{of}, on the device", device, plan, resident, resident, rounds, LEAST_OF_BARE_LOOP),
        compared(f"{of}, from the host's memory", device, plan, from_host, bare, rounds, LEAST_OF_BARE_LOOP),
    ]


def parameter_count_of(network: nn.Module) -> int:
    """All parameters, of a network that is not trained as well."""
    return parameter_count(network) or sum(parameter.numel() for parameter in network.parameters())


def language_plan(samples: int, sizes: Sizes) -> CachePlan:
    """The plan of a top-64 cache of so many texts, at T = 1."""
    vocabulary, tokens = sizes.texts["vocabulary"], sizes.texts["tokens"]
    plan = image_plan(2, sizes)
    encoding = TopK(64, (1.0,)).as_parameters()
    names = class_names(vocabulary)
    row_made_from: dict[str, Any] = {
        **plan.row_made_from,
        "class_names": list(names),
        "encoding": encoding,
        "temperature": 1.0,
    }
    return replace(
        plan,
        row_key=digest_of(row_made_from),
        row_made_from=row_made_from,
        rows=random_rows(samples, vocabulary),
        class_names=names,
        positions=Positions(("token",), (tokens,)),
        resumable={**plan.resumable, "batch_size": sizes.text_batch, "certify": [1.0]},
    )


def language_row(device: torch.device, sizes: Sizes, rounds: int) -> Row:
    """A causal language model, every position of every text."""
    network = made_on(device, sizes.weights, lambda: LanguageModel(**sizes.texts))
    vocabulary, tokens, batch = sizes.texts["vocabulary"], sizes.texts["tokens"], sizes.text_batch
    held = np.random.default_rng(0).integers(0, vocabulary, (batch, tokens)).astype(np.float32)
    ids = torch.from_numpy(held).to(device)

    @torch.inference_mode()
    def resident(indices: NDArray[np.int64]) -> Tensor:
        with autocast(device, sizes.precision):
            return torch.as_tensor(network(ids[: len(indices)]))

    samples = samples_for(device, resident, batch, sizes.seconds)
    what = (
        f"causal language model of {parameter_count_of(network):,} parameters, vocabulary {vocabulary:,}, {sizes.precision}, "
        f"top-64, {samples:,} texts of {tokens} tokens in batches of {batch}"
    )
    plan = language_plan(samples, sizes)
    row = compared(what, device, plan, resident, resident, rounds, LEAST_OF_LANGUAGE_LOOP)
    return replace(row, measured=f"{row.measured}; {encoding_words(device, plan, resident)}")


def encoding_words(device: torch.device, plan: CachePlan, forward: TeacherForward) -> str:
    """What encoding one batch takes alone, and what it takes as torch.compile makes it (only on a GPU)."""
    with torch.inference_mode():
        logits_NC = forward(np.arange(plan.resumable["batch_size"])).flatten(0, -2)
        ways = {"encoding a batch alone": plan.encoding.encode}
        if device.type == "cuda":
            ways["compiled"] = torch.compile(plan.encoding.encode, dynamic=False)
        words = []
        for name, encode in ways.items():
            try:
                taken = [
                    finished(device, lambda encode=encode: encoded_pieces(plan.encoding, logits_NC, 1.0, encode))  # type: ignore[misc]
                    for _ in range(4)
                ]
                words.append(f"{name} {1000 * min(taken[1:]):.3g} ms")
            except Exception as problem:  # no C compiler, no Triton: reasons are many
                words.append(f"{name}: not possible here ({type(problem).__name__})")
    return ", ".join(words)


def student_row(device: torch.device, sizes: Sizes, rounds: int) -> Row:
    """Steps of the real training loop with cached soft targets, and with labels alone."""
    side, batch = sizes.images["side"], sizes.student_batch
    generator = np.random.default_rng(0)
    samples = 4 * batch
    images = generator.integers(0, 256, (samples, 3, side, side), np.uint8)
    labels = generator.integers(0, CLASSES, samples)
    dataset = ArrayDataset(images, labels, class_names(CLASSES), "training", "noise")
    learn, epochs = learning_set(dataset), max(1, sizes.student_steps // 4)
    model = Model(model="benchmarks.transformer_models:student", options=sizes.student)
    place = "cuda" if device.type == "cuda" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        cache = cache_in(Path(folder), plan_of(dataset), made_up_teacher(CLASSES)).folder

        def distilled() -> float:
            return epoch(CachedSoftTargets(TargetCache(cache), learn, TEMPERATURE, None).for_loss)

        def labels_only() -> float:
            return epoch(None)

        def epoch(targets: SoftTargets | None) -> float:
            """An epoch of many, without what a run costs once: the first step, and copying the best weights."""

            def seconds(many: int) -> float:
                return many * epoch_seconds(model, learn, batch, targets, many, place, sizes.precision)

            return (seconds(epochs + 1) - seconds(1)) / epochs if sizes.seconds else seconds(1)

        measured = alternately(rounds, **{"distilled": distilled, "labels only": labels_only})
    ratio, words = median_ratio(measured, "distilled", "labels only")
    what = (
        f"student's step, ViT of width {sizes.student['width']} and {sizes.student['layers']} layers, {side} x {side}, "
        f"{sizes.precision}, batch {batch}, {CLASSES} classes: seconds of a label-only step's"
    )
    words += f"; a label-only step takes {1000 * min(measured['labels only']) / 4:.1f} ms"
    return at_most(what, words, ratio, MOST_OF_LABEL_STEP if device.type == "cuda" else MOST_ON_CPU)


def measure(quick: bool) -> Findings:
    """The four rows, on a GPU where there is one."""
    started, device = time.monotonic(), device_of("auto")
    sizes, rounds = (QUICK, QUICK_ROUNDS) if quick else (SIZES[device.type], ROUNDS)
    rows = image_rows(device, sizes, rounds)
    rows.append(language_row(device, sizes, rounds))
    rows.append(student_row(device, sizes, rounds))
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return Findings(f"teacher-targets and a student's step, {described(device, sizes.precision)}", rows)


if __name__ == "__main__":
    run(measure)
