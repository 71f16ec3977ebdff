"""From a model to its evaluation, once, and from two evaluations to what a run folder shows of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.utils import get_class
from omegaconf import OmegaConf

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.evaluation.pictures import save_pictures
from lpo_platform.evaluation.statistics import cautions, many, table
from lpo_platform.hardware.distributed import agree, lead, wait
from lpo_platform.runs import record
from lpo_platform.runs.files import fingerprint
from lpo_platform.tracking.callbacks.sentinel import last_look
from lpo_platform.tracking.report import report

if TYPE_CHECKING:
    from lpo_platform.commands.job import Job

UNDER_WAY = Path("outputs/cache/evaluations")
SIDES = {"before": "evaluate base", "after": "evaluate trained"}


def evaluate_once(job: Job, evaluator: Evaluator | PairEvaluator, folder: Path, side: str, identity: str) -> Evaluation:
    """The policy as it is now, as a side of a run folder; what is there of it already is not done again.

    side: before or after. identity: what tells its weights from others. What an interrupted evaluation has measured
    lies below UNDER_WAY and is found by any run that measures the same.
    """
    file = folder / "evaluation" / f"{side}.safetensors"
    key = agree(_key(job, side, identity) if lead() else "")
    if (known := agree(Evaluation.kept(file, key) if lead() else None)) is not None:
        return known
    title = SIDES[side]
    with job.hardware.autocast():
        if isinstance(evaluator, PairEvaluator) != ("reward" in job.policy.learning):
            raise UserError("a reward model is measured with metrics=pairs, and nothing else is")
        if isinstance(evaluator, PairEvaluator):
            result = evaluator(job.policy, job.preferences("test"), title=title)
        else:
            result = evaluator(
                job.policy, job.drawn, job.task, title=title, reward=job.reward, base=side == "before",
                under_way=UNDER_WAY / key, pictures=folder / "pictures" / side,
            )  # fmt: skip
    if lead():
        result.save(file, key)
        shutil.rmtree(UNDER_WAY / key, ignore_errors=True)
    wait()
    return result


def _key(job: Job, side: str, identity: str) -> str:
    """What the numbers depend on, but not the batch nor the processes."""
    from lpo_platform.commands.build import plain

    cfg = plain(job.cfg)
    metrics = {name: value for name, value in cfg["metrics"].items() if name != "batch"}
    parts = [cfg.get("model"), cfg.get("control"), cfg.get("task"), cfg.get("reward"), metrics]
    source = getattr(getattr(job.drawn, "test", None), "fingerprint", None)
    return fingerprint(side, identity, source, job.hardware.chosen_precision, *parts)[:16]


def conclude(
    job: Job,
    evaluator: Evaluator | PairEvaluator,
    before: Evaluation | None,
    after: Evaluation,
    folder: Path,
    weights: Path | None,
    seconds: float,
) -> dict:
    """Writes result.json, the items, the pictures and the report, and prints the table: on the first process.

    weights: where what was evaluated lies, None where it is a model as it is. before: None where it is compared with
    nothing.
    """
    if not lead():
        return {}
    from lpo_platform.commands.build import plain
    from lpo_platform.commands.job_log import say

    metrics = evaluator.compare(before, after, job.task)
    samples = evaluator.items(job.data if isinstance(evaluator, PairEvaluator) else job.drawn)
    sides = {name: side.scores for name, side in (("before", before), ("after", after)) if side is not None}
    ids, captions = [sample.id for sample in samples], [sample.caption for sample in samples]
    item_table.write(folder / "evaluation" / "items.parquet", ids, captions, sides)
    if after.images is not None:
        save_pictures(folder / "samples", before, after)
    deviations = []
    if (protocol := getattr(evaluator, "protocol", None)) is not None:
        deviations = protocol.deviations(
            plain(job.cfg), items=len(samples), toy=getattr(job.task, "toy", False),
            task=get_class(job.cfg.task._target_).name if job.cfg.get("task") else None,
            precision=job.hardware.chosen_precision,
        )  # fmt: skip
    alarms = []
    if before is not None and (watch := OmegaConf.select(job.cfg, "callbacks.sentinel")):
        better = {name: metric["higher_is_better"] for name, metric in metrics.items()}
        alarms = last_look(folder / "sentinel.json", before, after, better, job.task, watch.effect)
    paths = ({} if weights is None else {"export": weights}) | {"report": folder / "report.html"}
    record.finish(folder, metrics, len(samples), seconds, paths, job.cfg.seed, deviations)
    page = report.write_report(folder)
    noise = ", the same noise before and after" if before is not None else ""
    say(f"\n{table(metrics)}\n\n{len(samples)} held-out items{noise}.")
    if line := many(metrics):
        say(line)
    for line in cautions(metrics):
        say(line)
    for line in alarms:
        say(f"sentinel: {line}")
    for line in deviations:
        say(f"not as in protocol {protocol.name}: {line}")
    say(f"report  {page}")
    if weights is not None:
        say(f"export  {weights}")
    return metrics
