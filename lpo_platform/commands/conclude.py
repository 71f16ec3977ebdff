"""The end of a run: two evaluations are compared, the comparison is recorded, and the table is printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hydra.utils import get_class
from omegaconf import OmegaConf

from lpo_platform.commands.build import plain
from lpo_platform.commands.job import Job
from lpo_platform.commands.job_log import say
from lpo_platform.data.source import Sample
from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.evaluation.pictures import save_pictures
from lpo_platform.evaluation.result_table import cautions, many, table
from lpo_platform.hardware.distributed import lead
from lpo_platform.runs import record
from lpo_platform.tracking.callbacks.sentinel import last_look
from lpo_platform.tracking.report import report


@dataclass(frozen=True)
class Comparison:
    """What is known of a result.

    Attributes:
        metrics: the value before and after, the difference, its interval and the direction, for each name.
        samples: the held-out items.
        deviations: departures from the protocol, one sentence each.
        alarms: what the sentinel finds in the whole evaluation, one sentence each.
    """

    metrics: dict[str, dict]
    samples: list[Sample]
    deviations: list[str]
    alarms: list[str]


def conclude(
    job: Job,
    evaluator: Evaluator | PairEvaluator,
    before: Evaluation | None,
    after: Evaluation,
    folder: Path,
    weights: Path | None,
    seconds: float,
) -> dict:
    """Compares two evaluations, records the comparison and prints it, on the first process. Returns the metrics.

    Args:
        job: the live objects of the run.
        evaluator: what made the evaluations.
        before: the evaluation of the start; None where the result is compared with nothing.
        after: the evaluation of the result.
        folder: the folder of the run.
        weights: where the weights lie that were evaluated; None for a model that was not changed.
        seconds: how long the run took.
    """
    if not lead():
        return {}
    found = compare(job, evaluator, before, after, folder)
    page = keep(found, job, before, after, folder, weights, seconds)
    show(found, evaluator, page, weights, paired=before is not None)
    return found.metrics


def compare(
    job: Job, evaluator: Evaluator | PairEvaluator, before: Evaluation | None, after: Evaluation, folder: Path
) -> Comparison:
    """The metrics with their intervals, the departures from the protocol, and what the sentinel says at the end."""
    metrics = evaluator.compare(before, after, job.eval_task)
    samples = evaluator.items(job.data if evaluator.of_rewards else job.drawn)
    deviations, alarms = [], []
    if (protocol := getattr(evaluator, "protocol", None)) is not None:
        settings = plain(job.cfg)
        if job.eval_task is not None:
            settings["task"] |= settings["metrics"].get("task") or {}
        deviations = protocol.deviations(
            settings, items=len(samples), toy=getattr(job.eval_task, "toy", False),
            task=get_class(job.cfg.task._target_).name if job.cfg.get("task") else None,
            precision=job.hardware.chosen_precision,
        )  # fmt: skip
    if before is not None and (watch := OmegaConf.select(job.cfg, "callbacks.sentinel")):
        better = {name: metric["higher_is_better"] for name, metric in metrics.items()}
        alarms = last_look(folder / "sentinel.json", before, after, better, job.eval_task, job.reward, watch.effect)
    deviations += job.cfg.get("departures") or []  # of its recipe
    return Comparison(metrics, samples, deviations, alarms)


def keep(
    found: Comparison,
    job: Job,
    before: Evaluation | None,
    after: Evaluation,
    folder: Path,
    weights: Path | None,
    seconds: float,
) -> Path:
    """Writes the items, the pictures, result.json and the report; returns the page."""
    sides = {name: side.scores for name, side in (("before", before), ("after", after)) if side is not None}
    ids, captions = [sample.id for sample in found.samples], [sample.caption for sample in found.samples]
    item_table.write(folder / "evaluation" / "items.parquet", ids, captions, sides)
    if after.images is not None:
        save_pictures(folder / "samples", before, after)
    paths = ({} if weights is None else {"export": weights}) | {"report": folder / "report.html"}
    record.finish(folder, found.metrics, len(found.samples), seconds, paths, job.cfg.seed, found.deviations)
    return report.write_report(folder)


def show(
    found: Comparison, evaluator: Evaluator | PairEvaluator, page: Path, weights: Path | None, *, paired: bool
) -> None:
    """Prints the table and everything that a reader of it should know."""
    noise, protocol = ", the same noise before and after" if paired else "", getattr(evaluator, "protocol", None)
    say(f"\n{table(found.metrics)}\n\n{len(found.samples)} held-out items{noise}.")
    if line := many(found.metrics):
        say(line)
    for line in cautions(found.metrics):
        say(line)
    for line in found.alarms:
        say(f"sentinel: {line}")
    for line in found.deviations:
        say(f"not as published: {line}" if protocol is None else f"not as in protocol {protocol.name}: {line}")
    say(f"report  {page}")
    if weights is not None:
        say(f"export  {weights}")
