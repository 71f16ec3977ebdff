"""Two evaluations of the same items against each other, or one alone: the `metrics` of result.json."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.frechet import compare_frechet
from lpo_platform.evaluation.measure import Measure
from lpo_platform.evaluation.statistics import alone, beside_real, compare, compare_pooled
from lpo_platform.tasks.task import Task

LATENT_FD = "image/latent_fd"
GUARD = "guard/"  # of what a method should leave where it is


def compare_evaluations(
    before: Evaluation | None, after: Evaluation, task: Task | None, measures: Mapping[str, Measure] | None = None
) -> dict[str, dict[str, Any]]:
    """Paired differences with 95 % bootstrap intervals; the values of `after` alone where there is no `before`."""
    if before is None:
        own = {name: value.numpy() for name, value in after.of_items().items()}
        return alone(compare_evaluations(after, after, task, measures), own)
    measures = measures or {}
    better = {name: None if name.startswith(GUARD) else True for name in before.scores} | (task.scores if task else {})
    for measure in measures.values():
        better |= measure.directions()
    numbers = [{name: value.numpy() for name, value in side.of_items().items()} for side in (before, after)]
    metrics = pooled(before, after, task) | compare(*numbers, {name: better[name] for name in before.scores})
    if before.real is not None:
        features = (side.numpy() for side in (before.real, before.features, after.features))
        metrics |= {LATENT_FD: compare_frechet(*features)}
    for name, measure in measures.items():
        sides = [
            {row: value.transpose(0, 1).flatten(0, 1) for row, value in _of(name, side.rows).items()}
            for side in (before, after)
        ]
        metrics |= measure.compare(*sides, _of(name, before.real_rows))
    for name, real in before.real_scores.items():
        metrics[name] |= beside_real(real.numpy(), numbers[1][name])
    return metrics


def pooled(before: Evaluation, after: Evaluation, task: Task | None) -> dict[str, dict[str, Any]]:
    """The task's metrics of the whole set, {} where it has none."""
    if task is None or before.counts is None:
        return {}
    sides = (before.counts.numpy(), after.counts.numpy())
    return {
        name: compare_pooled(
            *sides, lambda sums, name=name: task.pool(torch.from_numpy(sums))[name].numpy(), higher_is_better=better
        )
        for name, better in task.pooled.items()
    }


def _of(measure: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows that a measure has named, of those of all measures."""
    return {name.removeprefix(f"{measure}:"): v for name, v in rows.items() if name.startswith(f"{measure}:")}
