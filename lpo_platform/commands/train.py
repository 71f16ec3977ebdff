"""lpo-train: evaluate, train, evaluate again on the same items and noise, and leave a run folder."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from hydra.utils import get_class
from omegaconf import DictConfig

from lpo_platform.commands import artifacts
from lpo_platform.commands.build import create, evaluator_of, plain, title
from lpo_platform.commands.conclude import conclude, evaluate_once
from lpo_platform.commands.doctor.first_step import Checkup
from lpo_platform.commands.job import Job, assemble, method_of, sentinel_of
from lpo_platform.commands.job_log import say
from lpo_platform.data.prepared.conditions import ConditionPairs
from lpo_platform.data.prepared.preferences import PreferenceRows
from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.hardware.distributed import lead
from lpo_platform.methods.method import Method
from lpo_platform.methods.online import Online
from lpo_platform.methods.rollouts import Rollouts
from lpo_platform.models.export import export, restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.weights import digest
from lpo_platform.runs import record
from lpo_platform.runs.files import fingerprint
from lpo_platform.tracking.callbacks.best import Best
from lpo_platform.tracking.callbacks.checkpoint import Checkpoint, newest
from lpo_platform.tracking.callbacks.ema import EMA
from lpo_platform.tracking.callbacks.progress import Progress
from lpo_platform.tracking.callbacks.samples import Samples
from lpo_platform.tracking.callbacks.settings import Callbacks
from lpo_platform.tracking.loggers import final_tables
from lpo_platform.tracking.loggers.files import Files, Resume
from lpo_platform.tracking.loggers.service import About, Guest, invite


def train(cfg: DictConfig, folder: Path) -> dict:
    """Trains, evaluates before and after on the same held-out items and noise, and leaves a run folder."""
    started = time.monotonic()
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    job = assemble(cfg)
    evaluator = evaluator_of(cfg, job.policy.adapter, job.task)
    settings: Callbacks = create(cfg.callbacks)
    say(f"{cfg.model.name} on {job.hardware.describe()}, run folder {folder}")

    phases = Phases()
    with phases("evaluate_base"):
        before = evaluate_once(job, evaluator, folder, "before", job.identity)
    guest = invite(create(cfg.logger), folder, about(cfg, folder)) if cfg.get("logger") else None
    try:
        with phases("prepare"):
            rows = job.rows()
        if guest:
            artifacts.tell_inputs(guest, job)
        with phases("train"):
            method = method_of(job)
            fit(job, method, rows, evaluator, settings, folder, guest)
        with phases("evaluate_trained"):
            load_trained(job.policy, folder, settings)
            after = evaluate_once(job, evaluator, folder, "after", trained_identity(folder, settings))
        last = max(0, method.trainer.global_step - 1)
        for logger in [Files(folder), *([guest] if guest else [])] if lead() else ():
            logger.log_metrics(phases.seconds, last)
        export_folder, seconds = folder / "export", time.monotonic() - started
        metrics = conclude(job, evaluator, before, after, folder, export_folder, seconds)
        if guest:
            final_tables.tell(guest, metrics, folder, last)
            artifacts.tell_outputs(guest, job, folder, about(cfg, folder).series, _suffix(settings), metrics)
    except BaseException:
        if guest:
            guest.finish(failed=True)
        raise
    if guest:
        guest.finish()
    return metrics


class Phases:
    """Seconds of each part of a job, as the report shows them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[f"perf/{name}_seconds"] = time.monotonic() - started


def fit(
    job: Job,
    method: Method,
    rows: ConditionPairs | PreferenceRows | None,
    evaluator: Evaluator,
    settings: Callbacks,
    folder: Path,
    guest: Guest | None,
    *,
    checkup: Checkup | None = None,
) -> None:
    """The training itself, from the newest checkpoint of the folder if it has one, and the export of its result."""
    micro_batch, accumulation = job.hardware.split(method.batch)
    if accumulation > 1 or job.hardware.processes > 1:
        say(job.hardware.arithmetic(method.batch))
    online = isinstance(method, Online)
    if online:
        rounds = Rollouts(job.data.train, method, micro_batch=micro_batch, seed=job.cfg.seed)
    else:
        rounds = Rounds(
            rows, job.needs(), batch=method.batch, micro_batch=micro_batch, steps=method.steps,
            every=settings.every, seed=job.cfg.seed, num_workers=job.hardware.num_workers,
        )  # fmt: skip
    every = settings.every if online else 1  # epochs between checkpoints: an offline epoch is `every` steps already
    ema = EMA(settings.ema_decay) if settings.ema_decay is not None else None
    checkup = checkup or Checkup(folder, averaged=ema is not None)
    callbacks = [Resume(), checkup, Progress(title(job.cfg), method.steps, rounds=online), *([ema] if ema else [])]
    sentinel = sentinel_of(job, folder)
    if (settings.samples or sentinel) and isinstance(evaluator, Evaluator):
        callbacks.append(
            Samples(
                folder / "samples", job.drawn, job.task, evaluator, settings.samples, every * settings.samples_every,
                sentinel,
            )
        )  # fmt: skip
        callbacks += [sentinel] if sentinel else []
    if isinstance(evaluator, PairEvaluator):
        callbacks.append(Best(folder / "export", evaluator, job.preferences("validation")))
    callbacks.append(Checkpoint(folder / "checkpoints", every))  # last: it saves what the others have done
    trainer = L.Trainer(
        **job.hardware.trainer(find_unused_parameters="reward" in job.policy.learning),
        max_epochs=method.steps if online else rounds.num_rounds,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        logger=[Files(folder), *([guest] if guest else [])],
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    method.train()
    trainer.fit(method, rounds, ckpt_path=newest(folder / "checkpoints"), weights_only=True)
    # here and not in a callback: a run that was killed after its last checkpoint trains no more, but is exported
    export(job.policy, folder / "export")
    if ema is not None:
        with ema.averaged(job.policy.trainable()):
            export(job.policy, folder / "export", "_ema")


def load_trained(policy: Policy, run: Path, settings: Callbacks) -> None:
    """Gives the policy the weights that a run exported: their average, or the raw ones."""
    restore(policy, run / "export", _suffix(settings))


def trained_identity(run: Path, settings: Callbacks) -> str:
    """What identifies those weights."""
    return fingerprint(digest(str((run / "export").resolve())), _suffix(settings))


def _suffix(settings: Callbacks) -> str:
    return "_ema" if settings.evaluate == "ema" and settings.ema_decay is not None else ""


def about(cfg: DictConfig, folder: Path) -> About:
    """What a guest is told of a run; the runs of a sweep are a group."""
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
