"""baseline-search: choose the label-only student's learning rate and weight decay on validation."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment
from pipeline.keys import stage_key
from pipeline.made_from import baseline_made_from, has_baseline, search_seeds
from pipeline.stage_runner import Outcome, Stage, Unit


def units(experiment: Experiment) -> Sequence[Unit]:
    """One search, shared by all seeds; none where the student may use no label."""
    if not has_baseline(experiment):
        return []
    parts = baseline_made_from(experiment)
    return [Unit("", stage_key("baseline-search", parts), parts)]


def run(experiment: Experiment, unit: Unit, folder: Path) -> Outcome:
    """Try every pair with a few seeds; the best mean score on validation wins, the first pair where there are no labels."""
    from pipeline.fitting import fitted_provenance
    from stages.baseline import fit_of, train_baseline

    grid = experiment.recipe.baseline
    tried: list[dict[str, Any]] = []
    for learning_rate in grid.learning_rates:
        for weight_decay in grid.weight_decays:
            rates = {"learning_rate": learning_rate, "weight_decay": weight_decay}
            trials = folder / f"rate-{learning_rate}-decay-{weight_decay}"  # a killed trial leaves its own checkpoint
            scores = [
                train_baseline(experiment, fit_of(experiment, seed, rates), trials / str(seed)).best.get("score")
                for seed in search_seeds(experiment)
            ]
            shutil.rmtree(trials)
            known = [score for score in scores if score is not None]
            tried.append({**rates, "score": statistics.fmean(known) if known else None, "scores": scores})
    best = max(tried, key=lambda pair: -1.0 if pair["score"] is None else pair["score"])
    chosen = {name: best[name] for name in ("learning_rate", "weight_decay")}
    provenance = fitted_provenance(fit_of(experiment, search_seeds(experiment)[0], chosen))
    return Outcome([], {"chosen": chosen, "tried": tried}, line_of(best, len(tried)), provenance)


def line_of(best: dict[str, Any], pairs: int) -> str:
    """One line for people on the pair that was taken of so many."""
    rates = f"learning rate {best['learning_rate']:g} and weight decay {best['weight_decay']:g}"
    if best["score"] is None:
        first = "the only pair" if pairs == 1 else f"the first of {pairs} pairs"
        return f"not validated: no labels; {first} is taken, {rates}"
    score = f"{100 * best['score']:.2f} % on validation"
    return f"{rates}, {score}" if pairs == 1 else f"{rates} are best of {pairs} pairs, {score}"


STAGE = Stage("baseline-search", units, run, user_models=lambda experiment: [experiment.recipe.student.model])
