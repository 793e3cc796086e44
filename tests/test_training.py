"""The training loop: its schedule, its resume, its reproducibility, and λ = 0 against a plain loop."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

from data.arrays import ArrayDataset
from pipeline.batches import Batch, Preprocess, TrainingBatches
from pipeline.errors import RecipeError, UserError
from pipeline.fitting import WEIGHTS_FILE, Fit, fit, steps_of
from pipeline.lanes import HostLane
from pipeline.losses import distillation_loss
from pipeline.models import build_model
from pipeline.prefetch import sent_ahead
from pipeline.progress import no_bar
from pipeline.recipe import Distillation, Model, Normalise, Precision, Training
from pipeline.student_data import LearningSet, learning_set
from pipeline.training import Loss, Tick, Trained, _seed_dropout, dropout_seed_at, learning_rate_at, no_tick, train
from pipeline.weights import load_weights, weights_digest

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
STEPS = 12
SHAPE = (1, 4, 4)
CLASSES = ("a", "b", "c")
OPTIONS = {"channels": (4, 4), "dropout": 0.3}  # batch normalisation and dropout: state and randomness to resume
NORMALISE = Normalise(mean=(0.5,), std=(2.0,))


class Stopped(Exception):
    """Stands for a kill at the end of a step."""


def settings_of(**changes: Any) -> Training:
    chosen = {"batch_size": 8, "learning_rate": 0.02, "validate_every": 3, "checkpoint_seconds": 0, "steps": STEPS}
    return Training(**{**chosen, **changes})


def dataset_of(rows: int, seed: int, split: str, labelled: bool = True) -> ArrayDataset:
    """Three classes of noisy images, told apart by their mean."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, size=rows)
    values = generator.normal(size=(rows, *SHAPE)) + labels.reshape(-1, 1, 1, 1)
    return ArrayDataset(values.astype(np.float32), labels if labelled else np.full(rows, -1), CLASSES, split, "made up")


def learn_set(rows: int = 40) -> LearningSet:
    return learning_set(dataset_of(rows, 1, "training"))


def validation_set(labelled: bool = True) -> LearningSet:
    return learning_set(dataset_of(30, 2, "validation", labelled))


def batches_of(learn: LearningSet, seed: int = 0, batch_size: int = 8) -> TrainingBatches:
    preprocess = Preprocess(NORMALISE, SHAPE)
    return TrainingBatches(learn.dataset, learn.indices, learn.labels, preprocess, batch_size=batch_size, seed=seed)


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    return distillation_loss(logits, batch.labels, None, coefficient=0.0, temperature=1.0, form="additive")


def score_of(model: nn.Module) -> dict[str, float]:
    """Deterministic, of the weights alone, and in no order: it goes up and down."""
    weights = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    return {"score": float((weights.double() * 1000).sin().mean())}


def run(checkpoint: Path, seed: int = 0, tick: Tick = no_tick, loss: Loss = loss_of, **changes: Any) -> Trained:
    """One small training of a network with dropout and batch normalisation."""
    model = build_model("cnn", OPTIONS, SHAPE, len(CLASSES), seed=seed)
    return train(
        model,
        batches_of(learn_set(), seed),
        STEPS,
        loss,
        settings_of(**changes),
        seed=seed,
        validate=score_of,
        device=CPU,
        checkpoint=checkpoint,
        tick=tick,
    )


def metadata_of(path: Path) -> dict[str, str]:
    """The text fields of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def stopping_after(after: int) -> Tick:
    """A tick that raises when so many steps have been reported since the start."""
    done = 0

    def tick(steps: int, loss: Tensor | None = None) -> None:
        nonlocal done
        done += steps
        if done >= after:
            raise Stopped

    return tick


def same(first: Trained, second: Trained) -> bool:
    """Equal in every bit but the time it took."""
    return (
        weights_digest(first.state) == weights_digest(second.state)
        and first.history == second.history
        and (first.best_step, first.best, first.steps) == (second.best_step, second.best, second.steps)
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return run(tmp_path_factory.mktemp("whole") / "checkpoint.safetensors")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def test_the_learning_rate_rises_linearly_and_falls_by_half_a_cosine_to_zero() -> None:
    settings = settings_of(learning_rate=0.5, warmup=0.1)
    rates = [learning_rate_at(step, 100, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)], abs=1e-15)
    assert rates[9] == rates[10] == max(rates) == 0.5
    assert rates[55] == pytest.approx(0.25, abs=1e-15)
    assert rates[100] == pytest.approx(0.0, abs=1e-15)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_without_warm_up_the_first_step_has_the_highest_rate() -> None:
    settings = settings_of(learning_rate=0.5, warmup=0.0)
    assert learning_rate_at(0, 1, settings) == 0.5
    assert [learning_rate_at(step, 4, settings) for step in range(4)] == pytest.approx(
        [0.5 * 0.5 * (1 + np.cos(np.pi * step / 4)) for step in range(4)], abs=1e-15
    )


def test_steps_are_given_or_follow_from_epochs() -> None:
    assert steps_of(settings_of(steps=7), 100) == 7
    assert steps_of(settings_of(steps=None, epochs=3, batch_size=8), 20) == 8  # 60 samples in batches of 8
    assert steps_of(settings_of(steps=None, epochs=3, batch_size=64), 20) == 3


def test_two_equal_runs_give_equal_bytes(uninterrupted: Trained, checkpoint: Path) -> None:
    assert same(run(checkpoint), uninterrupted)


def test_another_seed_gives_other_weights(uninterrupted: Trained, checkpoint: Path) -> None:
    assert weights_digest(run(checkpoint, seed=1).state) != weights_digest(uninterrupted.state)


def test_how_often_checkpoints_are_written_does_not_matter(uninterrupted: Trained, checkpoint: Path) -> None:
    assert same(run(checkpoint, checkpoint_seconds=1e6), uninterrupted)


@pytest.mark.parametrize("steps", range(2, STEPS))
def test_a_run_resumed_after_any_step_equals_an_uninterrupted_one(
    uninterrupted: Trained, checkpoint: Path, steps: int
) -> None:
    with pytest.raises(Stopped):
        run(checkpoint, tick=stopping_after(steps))
    assert checkpoint.exists()
    reported: list[tuple[int, bool]] = []

    def remember(steps: int, loss: Tensor | None = None) -> None:
        reported.append((steps, loss is not None))

    assert same(run(checkpoint, tick=remember), uninterrupted)
    # What the checkpoint holds is not done again.
    assert reported == [(steps - 1, False)] + [(1, True)] * (STEPS - steps + 1)


def test_a_run_interrupted_at_every_step_still_equals_an_uninterrupted_one(
    uninterrupted: Trained, checkpoint: Path
) -> None:
    for steps in range(2, STEPS + 1):
        with pytest.raises(Stopped):
            run(checkpoint, tick=stopping_after(steps))
    assert same(run(checkpoint), uninterrupted)


KILLED = """
import os, signal
from pathlib import Path
from tests.test_training import run

done = 0

def tick(steps, loss=None):
    global done
    done += steps
    if done == int({steps}):
        os.kill(os.getpid(), signal.SIGKILL)

run(Path({checkpoint!r}), tick=tick)
"""


def test_a_run_killed_with_sigkill_and_resumed_equals_an_uninterrupted_one(
    uninterrupted: Trained, checkpoint: Path
) -> None:
    program = KILLED.format(steps=7, checkpoint=str(checkpoint))
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert same(run(checkpoint), uninterrupted)


def test_float16_resumes_with_the_gradient_scale_that_it_had_found(tmp_path: Path) -> None:
    def steep(logits: Tensor, batch: Batch) -> Tensor:
        return 1000.0 * loss_of(logits, batch)  # overflows float16 at the initial scale, which is then halved

    whole = run(tmp_path / "whole", precision="float16", loss=steep)
    with pytest.raises(Stopped):
        run(tmp_path / "killed", precision="float16", loss=steep, tick=stopping_after(6))
    assert json.loads(metadata_of(tmp_path / "killed")["progress"])["scale"]["scale"] < 65536.0
    assert same(run(tmp_path / "killed", precision="float16", loss=steep), whole)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_gives_finite_float32_weights_that_differ_from_float32(
    uninterrupted: Trained, checkpoint: Path, precision: Precision
) -> None:
    trained = run(checkpoint, precision=precision)
    assert all(tensor.isfinite().all() for tensor in trained.state.values())
    assert {tensor.dtype for tensor in trained.state.values()} == {torch.float32, torch.int64}
    assert all(np.isfinite(record["loss"]) for record in trained.history)
    assert weights_digest(trained.state) != weights_digest(uninterrupted.state)


def test_torch_s_global_random_state_is_untouched_even_by_an_interrupted_run(checkpoint: Path) -> None:
    before = torch.get_rng_state()
    with pytest.raises(Stopped):
        run(checkpoint, tick=stopping_after(4))
    run(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_random_state_does_not_change_the_result(uninterrupted: Trained, checkpoint: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4711)
        assert same(run(checkpoint), uninterrupted)


def train_a_weight(scores: list[dict[str, float]], checkpoint: Path) -> tuple[Trained, list[float]]:
    """Train one number, validated after each step with the given scores; also its value at each validation."""
    model = nn.Linear(1, 2)
    seen: list[float] = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(float(model.state_dict()["weight"][0, 0]))
        return scores[len(seen) - 1]

    batch = Batch(torch.ones(2, 1), torch.tensor([0, 0]), None)
    settings = settings_of(validate_every=1, warmup=0.0)
    trained = train(
        model,
        lambda step: batch,
        len(scores),
        loss_of,
        settings,
        seed=0,
        validate=validate,
        device=CPU,
        checkpoint=checkpoint,
    )
    return trained, seen


@pytest.mark.parametrize(
    ("scores", "best_step"),
    [([0.1, 0.9, 0.3, 0.2], 2), ([0.9, 0.1, 0.2], 1), ([0.1, 0.2, 0.3], 3), ([0.1, 0.9, 0.9, 0.2], 3)],
)
def test_the_best_weights_on_validation_are_returned_and_of_equals_the_later(
    checkpoint: Path, scores: list[float], best_step: int
) -> None:
    trained, seen = train_a_weight([{"score": score} for score in scores], checkpoint)
    assert len(set(seen)) == len(scores)
    assert trained.best_step == best_step
    assert trained.best == {"score": scores[best_step - 1]}
    assert float(trained.state["weight"][0, 0]) == seen[best_step - 1]
    assert [record["step"] for record in trained.history] == list(range(1, len(scores) + 1))
    assert [record["score"] for record in trained.history] == scores


def test_without_anything_to_validate_on_the_last_weights_are_returned(checkpoint: Path) -> None:
    trained, seen = train_a_weight([{}, {}, {}], checkpoint)
    assert (trained.best_step, trained.best) == (3, {})
    assert float(trained.state["weight"][0, 0]) == seen[-1]


def test_validation_comes_every_so_many_steps_and_after_the_last(checkpoint: Path) -> None:
    assert [record["step"] for record in run(checkpoint, validate_every=5).history] == [5, 10, 12]


def test_frozen_parameters_stay_as_they_are(checkpoint: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Linear(4, 3))
    model[1].requires_grad_(False)
    before = weights_digest(model[1].state_dict())
    batches = batches_of(learn_set())
    train(model, batches, 3, loss_of, settings_of(), seed=0, validate=score_of, device=CPU, checkpoint=checkpoint)
    assert weights_digest(model[1].state_dict()) == before


def test_every_sample_is_drawn_exactly_once_in_each_epoch_with_its_own_label() -> None:
    learn = learn_set(20)
    batches = batches_of(learn, seed=3, batch_size=8)
    drawn = [batches(step) for step in range(5)]  # 40 places: two epochs of 20 samples
    inputs, labels = torch.cat([batch.inputs for batch in drawn]), torch.cat([batch.labels for batch in drawn])
    expected = (torch.from_numpy(np.asarray(learn.dataset.samples(learn.indices))) - 0.5) / 2.0
    for epoch in range(2):
        place_of = [int((expected == sample).flatten(1).all(dim=1).nonzero()) for sample in inputs[20 * epoch :][:20]]
        assert sorted(place_of) == list(range(20))
        assert labels[20 * epoch :][:20].tolist() == learn.labels[place_of].tolist()
    assert torch.equal(batches_of(learn, seed=3)(4).inputs, drawn[4].inputs)  # a pure function of the step


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">i4", ">f8", "float16", "bool"])
def test_samples_of_any_dtype_and_byte_order_are_normalised_in_float32(dtype: str) -> None:
    samples = np.array([[[[0, 1]]], [[[1, 0]]]]).astype(dtype)
    inputs = Preprocess(Normalise(mean=(0.5,), std=(0.25,)), (1, 1, 2))(samples)
    assert inputs.dtype == torch.float32
    assert inputs.flatten().tolist() == [-2.0, 2.0, 2.0, -2.0]


def fit_of(validate: LearningSet, folder: Path, **distilled: Any) -> Trained:
    folder.mkdir()
    training = settings_of(checkpoint_seconds=1e6)
    settings = Fit(Model(model="cnn", options=OPTIONS), training, NORMALISE, seed=5, device="cpu", steps=STEPS)
    return fit(settings, learn_set(), validate, folder, no_bar, **distilled)


def test_a_model_with_the_wrong_number_of_logits_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ModuleType("own_models")
    vars(own)["too_wide"] = lambda sample_shape, class_count: nn.Sequential(
        nn.Flatten(), nn.Linear(16, class_count + 1)
    )
    monkeypatch.setitem(sys.modules, "own_models", own)
    settings = Fit(Model(model="own_models:too_wide"), settings_of(), NORMALISE, seed=5, device="cpu", steps=STEPS)
    with pytest.raises(RecipeError, match=r"'own_models:too_wide' returned shape \(8, 4\) for 8 samples of 3 classes"):
        fit(settings, learn_set(), validation_set(), tmp_path, no_bar)


def test_a_finished_fit_leaves_its_weights_and_no_checkpoint(tmp_path: Path) -> None:
    fit_of(validation_set(), tmp_path / "fit")
    assert [path.name for path in (tmp_path / "fit").iterdir()] == [WEIGHTS_FILE]


def test_a_diverged_training_is_an_error_that_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged: the loss is nan at step 3\."):
        run(tmp_path / "checkpoint.safetensors", loss=lambda logits, batch: loss_of(logits, batch) * float("nan"))


def forbidden_targets(positions: NDArray[np.int64]) -> Tensor:
    """Soft targets that must not be read."""
    raise AssertionError("a term with coefficient 0 is not computed")


@pytest.mark.parametrize("form", ["convex", "additive"])
def test_a_coefficient_of_zero_trains_bit_for_bit_like_no_distillation_and_reads_no_soft_target(
    tmp_path: Path, form: Any
) -> None:
    distillation = Distillation(form=form, coefficient=0.0)
    plain = fit_of(validation_set(), tmp_path / "plain")
    distilled = fit_of(
        validation_set(),
        tmp_path / "distilled",
        distillation=distillation,
        temperature=4.0,
        soft_targets=forbidden_targets,
    )
    assert same(distilled, plain)
    assert (tmp_path / "plain" / WEIGHTS_FILE).read_bytes() == (tmp_path / "distilled" / WEIGHTS_FILE).read_bytes()


def test_a_coefficient_of_zero_equals_a_plain_pytorch_loop_on_the_same_batches(tmp_path: Path) -> None:
    distillation = Distillation(form="convex", coefficient=0.0)
    fitted = fit_of(validation_set(labelled=False), tmp_path / "fit", distillation=distillation, temperature=4.0)

    model = build_model("cnn", OPTIONS, SHAPE, len(CLASSES), seed=5).train()
    batches, settings = batches_of(learn_set(), seed=5), settings_of()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=settings.weight_decay, fused=True)
    with torch.random.fork_rng():
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = learning_rate_at(step, STEPS, settings)
            batch = batches(step)
            torch.manual_seed(dropout_seed_at(step, 5))  # dropout
            optimiser.zero_grad()
            functional.cross_entropy(model(batch.inputs), batch.labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
            optimiser.step()
    assert weights_digest(fitted.state) == weights_digest(model.state_dict())


def test_distillation_changes_the_weights_and_learns_the_soft_targets(tmp_path: Path) -> None:
    learn = learn_set()
    targets = functional.one_hot(torch.from_numpy((learn.labels + 1) % 3), 3).float()  # the opposite of the labels
    fitted = fit_of(
        validation_set(labelled=False),
        tmp_path / "fit",
        distillation=Distillation(form="convex", coefficient=1.0),
        temperature=1.0,
        soft_targets=lambda positions: targets[torch.from_numpy(positions)],
    )
    losses = [record["loss"] for record in fitted.history]
    assert losses[-1] < losses[0]
    plain = fit_of(validation_set(labelled=False), tmp_path / "plain")
    assert weights_digest(fitted.state) != weights_digest(plain.state)


def test_fit_writes_the_weights_that_it_returns_and_nothing_else(tmp_path: Path) -> None:
    trained = fit_of(validation_set(), tmp_path / "fit")
    assert list((tmp_path / "fit").iterdir()) == [tmp_path / "fit" / WEIGHTS_FILE]
    assert weights_digest(load_weights(tmp_path / "fit" / WEIGHTS_FILE)) == weights_digest(trained.state)
    assert set(trained.best) == {"score", "cross_entropy"}


class AheadLane(HostLane):
    """A lane of the CPU that sends as far ahead as that of a GPU."""

    batches_ahead = 1


def test_batches_that_are_sent_ahead_and_normalised_on_arrival_give_the_same_weights(
    uninterrupted: Trained, checkpoint: Path
) -> None:
    learn, preprocess = learn_set(), Preprocess(NORMALISE, SHAPE)
    raw = TrainingBatches(learn.dataset, learn.indices, learn.labels, preprocess.raw, batch_size=8, seed=0)
    with sent_ahead(raw, Batch.each, AheadLane(), 0, STEPS) as sent:

        def seen(step: int) -> Batch:
            batch = sent(step)
            return replace(batch, inputs=preprocess.normalised(batch.inputs))

        model = build_model("cnn", OPTIONS, SHAPE, len(CLASSES), seed=0)
        trained = train(
            model, seen, STEPS, loss_of, settings_of(), seed=0, validate=score_of, device=CPU, checkpoint=checkpoint
        )
    assert same(trained, uninterrupted)


@given(seed=st.integers(0, 2**53))
def test_dropout_on_the_cpu_is_seeded_as_torch_seeds_it(seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = torch.rand(5)
        torch.manual_seed(1)
        _seed_dropout(seed, CPU)
        assert torch.equal(torch.rand(5), expected)
