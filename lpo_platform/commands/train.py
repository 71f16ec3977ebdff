"""lpo-train: evaluate, train, evaluate again on the same items and noise, and leave a run folder."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.utils import get_class
from omegaconf import DictConfig

from lpo_platform.commands import artifacts
from lpo_platform.commands.build import create, evaluator_of, plain, title
from lpo_platform.commands.conclude import conclude
from lpo_platform.commands.evaluate_once import evaluate_once
from lpo_platform.commands.fit import fit
from lpo_platform.commands.job import assemble, method_of
from lpo_platform.commands.job_log import say
from lpo_platform.hardware.distributed import lead
from lpo_platform.models.export import restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.weights import digest
from lpo_platform.runs import record
from lpo_platform.runs.files import fingerprint
from lpo_platform.tracking.callbacks.settings import Callbacks
from lpo_platform.tracking.loggers.files import Files
from lpo_platform.tracking.loggers.final_tables import log_tables
from lpo_platform.tracking.loggers.service import About, RunLogger, logged


def train(cfg: DictConfig, folder: Path) -> dict:
    """Trains, evaluates before and after on the same held-out items and noise, and leaves a run folder."""
    started = time.monotonic()
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    job = assemble(cfg)
    evaluator = evaluator_of(cfg, job.policy.adapter, job.eval_task)
    settings: Callbacks = create(cfg.callbacks)
    method = method_of(job)  # which may refuse its settings, before anything is computed
    say(f"{cfg.model.name} on {job.hardware.describe()}, run folder {folder}")

    phases = Phases()
    with phases("evaluate_base"):
        before = evaluate_once(job, evaluator, folder, "before", job.identity)
    with logged(create(cfg.logger) if cfg.get("logger") else None, folder, about(cfg, folder)) as logger:
        with phases("prepare"):
            rows = job.rows()
            if job.before_training:
                rows.fill(job.read_of(rows))
        artifacts.log_inputs(logger, job)
        with phases("train"):
            fit(job, method, rows, evaluator, settings, folder, logger)
        with phases("evaluate_trained"):
            load_trained(job.policy, folder, settings)
            after = evaluate_once(job, evaluator, folder, "after", trained_identity(folder, settings))
        last = max(0, method.trainer.global_step - 1)
        log_phases(phases, folder, logger, last)
        metrics = conclude(job, evaluator, before, after, folder, folder / "export", time.monotonic() - started)
        log_tables(logger, metrics, folder, last)
        artifacts.log_outputs(logger, job, folder, about(cfg, folder).series, _suffix(settings), metrics)
    return metrics


class Phases:
    """Measures the parts of a job in seconds, for the report: `with phases("train"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[f"perf/{name}_seconds"] = time.monotonic() - started


def log_phases(phases: Phases, folder: Path, logger: RunLogger, step: int) -> None:
    """Logs the seconds of each phase, from the first process only."""
    for place in [Files(folder), logger] if lead() else ():
        place.log_metrics(phases.seconds, step)


def load_trained(policy: Policy, run: Path, settings: Callbacks) -> None:
    """Gives the policy the weights that a run exported: their average, or the raw ones."""
    restore(policy, run / "export", _suffix(settings))


def trained_identity(run: Path, settings: Callbacks) -> str:
    """Identifies the weights that load_trained() reads."""
    return fingerprint(digest(str((run / "export").resolve())), _suffix(settings))


def _suffix(settings: Callbacks) -> str:
    return "_ema" if settings.evaluate == "ema" and settings.ema_decay is not None else ""


def about(cfg: DictConfig, folder: Path) -> About:
    """What a logging service is told about a run. The runs of a sweep form a group."""
    sweep = (folder.parent / "sweep.json").exists()
    task = [get_class(cfg.task._target_).name] if cfg.get("task") else []
    return About(
        name=cfg.name or folder.name,
        group=folder.parent.name if sweep else cfg.name or folder.parent.name,
        job_type=title(cfg),
        tags=[cfg.model.name, *task],
        series=cfg.name or "-".join([title(cfg), cfg.model.name, *task]),
        config=plain(cfg),
    )
