"""encoding: try every encoding on a sample of the teacher's outputs, to choose the smallest that is near enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.encoding_trials import Trial, Trials, drawn, logits_of_sample, trials_of
from pipeline.errors import UserError
from pipeline.recipe import LARGEST_KL
from pipeline.recipe_reader import find_recipe, read_recipe
from pipeline.recipe_writer import encoding_fields, refuse_overrides, refuse_unwritable, write_targets
from stages.chain import open_experiment, runner_of, say

# The teacher is asked whatever the recipe's own encoding is, even one that its classes are too few for.
ANY_ENCODING = [f"targets.{name}=none" for name in ("encoding", "dtype", "k", "value_bits", "temperatures")]
CHOSEN_BY = ("targets", "student.distillation.temperature")


def refuse_to_write(recipe: str, overrides: Sequence[str]) -> None:
    """Raises UserError or RecipeError when --write could not end well, before the teacher runs for it."""
    refuse_overrides(overrides, CHOSEN_BY)
    refuse_unwritable(find_recipe(recipe))


def try_encodings(
    recipe: str,
    overrides: Sequence[str],
    workspace: Path,
    data_dir: Path | None,
    max_kl: float | None,
    samples: int | None,
) -> Trials:
    """Every encoding, measured on what the recipe's teacher, trained first if need be, says of some training samples."""
    from pipeline.allocator import keep_freed_memory
    from pipeline.batch_size import DEFAULT
    from pipeline.dataset import rows_of
    from pipeline.teachers.opening import device_line, open_teacher

    if max_kl is not None and not 0 < max_kl < math.inf:
        raise UserError(f"--max-kl {max_kl:g}: a number of nats above 0 is needed.")
    settings = read_recipe(find_recipe(recipe), overrides)
    if settings.targets.use is not None:
        raise UserError(
            f"targets.use = {settings.targets.use!r} names a cache, whose encoding is sealed. Remove it from the recipe, or "
            "add --set targets.use=none, to choose the encoding of a new one."
        )
    experiment = open_experiment(recipe, [*overrides, *ANY_ENCODING], workspace, data_dir)
    runner_of(experiment, report=say).run("teacher")
    classes = len(experiment.row_made_from()["class_names"])
    distinct = rows_of(experiment.datasets("transfer")["training"]).first_index
    indices = distinct[drawn(len(distinct), classes, samples)].astype("int64")
    given = settings.targets.batch_size
    batch_size = given if isinstance(given, int) else DEFAULT
    keep_freed_memory()
    say(f"encoding: {len(indices):,} samples, {device_line(experiment)}")
    with experiment.bar("encoding, the teacher", len(indices), "rows") as advance:
        teacher = open_teacher(experiment, "training")
        logits = logits_of_sample(teacher, indices, classes, batch_size, advance)
    experiment.save_memory()
    return trials_of(logits, len(distinct), settings, max_kl, experiment.bar)


def write_choice(recipe: str, choice: Trial, wanted_at: float) -> str:
    """Set the recipe's [targets] to an encoding; returns one line for people. Raises UserError where its student would refuse."""
    path = find_recipe(recipe)
    settings = read_recipe(path)
    if settings.targets.encoding_parameters() == choice.parameters:
        return f"{path}: has {choice.name} already; nothing was written"
    distillation = settings.student.distillation
    accepted = distillation.max_kl or LARGEST_KL[choice.parameters["name"]]
    if distillation.coefficient and choice.kl_at(wanted_at) > accepted:
        raise UserError(
            f"{path}: nothing was written, because its student would refuse the cache: {choice.name} has a mean KL of "
            f"{choice.kl_at(wanted_at):.2g} at T = {wanted_at:g}, and the student accepts {accepted:g}. Set "
            "student.distillation.max_kl in the recipe first, or a smaller --max-kl."
        )
    changes = write_targets(path, encoding_fields(choice.parameters, settings.targets))
    return f"{path}: {', '.join(changes)}"
