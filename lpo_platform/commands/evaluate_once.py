"""Evaluates a policy as one side of a run folder, "before" or "after", and never twice."""

from __future__ import annotations

import shutil
from pathlib import Path

from lpo_platform.commands.build import plain
from lpo_platform.commands.job import Job
from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.hardware.distributed import agree, lead, wait
from lpo_platform.runs.files import fingerprint

UNDER_WAY = Path("outputs/cache/evaluations")
ROWS = 2  # raise it when rows are called otherwise, so that both sides of a run have the same ones
SIDES = {"before": "evaluate base", "after": "evaluate trained"}


def evaluate_once(
    job: Job, evaluator: Evaluator | PairEvaluator, folder: Path, side: str, identity: str, title: str | None = None
) -> Evaluation:
    """Evaluates the policy as it is now, as a side of a run folder. Items that were evaluated before are read.

    side: before or after. identity: what tells its weights from others. What an interrupted evaluation has measured
    lies below UNDER_WAY and is found by any run that measures the same.
    """
    file = folder / "evaluation" / f"{side}.safetensors"
    key = agree(_key(job, side, identity) if lead() else "")
    if (known := agree(Evaluation.kept(file, key) if lead() else None)) is not None:
        return known
    title = title or SIDES[side]
    with job.hardware.autocast():
        if evaluator.of_rewards != ("reward" in job.policy.learning):
            raise UserError("a reward model is measured with metrics=pairs, and nothing else is")
        if evaluator.of_rewards:
            result = evaluator(job.policy, job.preferences("test"), title=title)
        else:
            result = evaluator(
                job.policy, job.drawn, job.eval_task, title=title, reward=job.reward, base=side == "before",
                under_way=UNDER_WAY / key, pictures=folder / "pictures" / side,
            )  # fmt: skip
    if lead():
        result.save(file, key)
        shutil.rmtree(UNDER_WAY / key, ignore_errors=True)
    wait()
    return result


def _key(job: Job, side: str, identity: str) -> str:
    """Identifies everything that the numbers depend on. Batch and processes are not among it."""
    cfg = plain(job.cfg)
    metrics = {name: value for name, value in cfg["metrics"].items() if name != "batch"}
    parts = [cfg.get("model"), cfg.get("control"), cfg.get("task"), cfg.get("reward"), metrics]
    source = getattr(getattr(job.drawn, "test", None), "fingerprint", None)
    return fingerprint(ROWS, side, identity, source, job.hardware.chosen_precision, *parts)[:16]
