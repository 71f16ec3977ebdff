"""The training itself: samples, callbacks, Lightning's Trainer, and the export of what was trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from lpo_platform.commands.build import create, title
from lpo_platform.commands.doctor.first_step import Checkup
from lpo_platform.commands.job import Job, sentinel_of
from lpo_platform.commands.job_log import say
from lpo_platform.commands.plan.throughput import work_of
from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.data.prepared.rows import Rows
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.hardware.trainer_flags import TrainerFlags
from lpo_platform.methods.method import Method
from lpo_platform.methods.rollouts import Rollouts
from lpo_platform.models.export import export
from lpo_platform.tracking.callbacks.best import Best
from lpo_platform.tracking.callbacks.checkpoint import Checkpoint, newest
from lpo_platform.tracking.callbacks.ema import EMA
from lpo_platform.tracking.callbacks.finite import Finite
from lpo_platform.tracking.callbacks.progress import Progress
from lpo_platform.tracking.callbacks.samples import Samples
from lpo_platform.tracking.callbacks.settings import Callbacks
from lpo_platform.tracking.callbacks.throughput import Throughput
from lpo_platform.tracking.loggers.files import Files, Resume
from lpo_platform.tracking.loggers.service import NoLogger, RunLogger


def fit(
    job: Job,
    method: Method,
    rows: Rows | None,
    evaluator: Evaluator | PairEvaluator,
    settings: Callbacks,
    folder: Path,
    logger: RunLogger | None = None,
    *,
    checkup: Checkup | None = None,
) -> None:
    """Trains from the newest checkpoint of the folder, if there is one, and exports the result to folder/export."""
    micro_batch, accumulation = job.hardware.split(method.batch)
    if accumulation > 1 or job.hardware.processes > 1:
        say(job.hardware.arithmetic(method.batch))
    rounds = samples_of(job, method, rows, settings, micro_batch)
    ema = EMA(settings.ema_decay) if settings.ema_decay is not None else None
    checkup = checkup or Checkup(folder, averaged=ema is not None)
    flags = create(job.cfg.trainer) if job.cfg.get("trainer") else TrainerFlags()  # older runs have none
    trainer = L.Trainer(
        **job.hardware.trainer(find_unused_parameters="reward" in job.policy.learning),
        max_epochs=method.steps if method.online else rounds.num_rounds,
        reload_dataloaders_every_n_epochs=1,
        accumulate_grad_batches=accumulation,
        use_distributed_sampler=False,
        log_every_n_steps=settings.log_every,
        logger=[Files(folder), logger or NoLogger()],
        callbacks=callbacks_of(job, method, evaluator, settings, folder, ema, checkup, rows),
        default_root_dir=folder,
        enable_checkpointing=False,
        **flags.options(folder),
        num_sanity_val_steps=0,
    )
    method.train()
    if job.draws and "reward" not in job.policy.learning and not job.policy.has_reference():
        job.policy.freeze_reference()  # what draws samples stays as it started, as it does beside a reward model
    try:
        trainer.fit(method, rounds, ckpt_path=newest(folder / "checkpoints"), weights_only=True)
    finally:
        if rows is not None:
            rows.close()
    method.to(job.hardware.device)  # Lightning's teardown has moved it to the CPU, away from the parts that are frozen
    # here and not in a callback: a run that was killed after its last checkpoint trains no more, but is exported
    export(job.policy, folder / "export")
    if ema is not None:
        with ema.averaged(job.policy.trainable()):
            export(job.policy, folder / "export", "_ema")


def samples_of(job: Job, method: Method, rows: Rows | None, settings: Callbacks, micro_batch: int) -> Rollouts | Rounds:
    """What the method trains on, in rounds: its own samples for an online method, else the rows of the data."""
    if method.online:
        return Rollouts(job.data.train, method, micro_batch=micro_batch, seed=job.cfg.seed)
    return Rounds(
        rows, job.needs(), batch=method.batch, micro_batch=micro_batch, steps=method.steps, every=settings.every,
        seed=job.cfg.seed,
    )  # fmt: skip


def callbacks_of(
    job: Job,
    method: Method,
    evaluator: Evaluator | PairEvaluator,
    settings: Callbacks,
    folder: Path,
    ema: EMA | None,
    checkup: Checkup,
    rows: Rows | None,
) -> list[Callback]:
    """The callbacks of the training, in the order in which they are called."""
    online = method.online
    every = settings.every if online else 1  # epochs between checkpoints: an offline epoch is `every` steps already
    throughput = throughput_of(job, method, rows)
    progress = Progress(title(job.cfg), method.steps, rounds=online)
    callbacks = [Resume(), throughput, Finite(folder), checkup, progress]
    callbacks += [ema] if ema else []
    sentinel = sentinel_of(job, folder)
    if (settings.samples or sentinel) and not evaluator.of_rewards:
        rounds = every * settings.samples_every
        drawn = Samples(folder / "samples", job.drawn, job.eval_task, evaluator, settings.samples, rounds, sentinel)
        callbacks += [drawn, *([sentinel] if sentinel else [])]
    if evaluator.of_rewards:
        callbacks.append(Best(folder / "export", evaluator, job.preferences("validation")))
    callbacks.append(Checkpoint(folder / "checkpoints", every))  # behind the others: it saves what they have done
    return [*callbacks, throughput.end]


def throughput_of(job: Job, method: Method, rows: Rows | None) -> Throughput:
    """The counter of pictures per second: pictures of the samples that are trained on, or those that a round draws."""
    made = method.prompts * getattr(method, "group", 1) if method.online else 0
    each = job.cfg.data.get("num_images", 2) if "labels" in job.needs() else 1
    waited = None if rows is None else lambda: rows.waited
    step = 0 if method.online else method.batch * each
    return Throughput(step, made, partial(work_of, job.cfg, job.hardware), waited)
