"""From a checked configuration to a finished job: the only caller of hydra's instantiate, every step written out."""

import logging
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lpo_platform import record
from lpo_platform.callbacks.best import Best
from lpo_platform.callbacks.checkpoint import Checkpoint, newest
from lpo_platform.callbacks.ema import EMA
from lpo_platform.callbacks.progress import Progress
from lpo_platform.callbacks.samples import Samples
from lpo_platform.callbacks.sentinel import Sentinel
from lpo_platform.callbacks.settings import Callbacks
from lpo_platform.config import UserError
from lpo_platform.data import aligned_pairs, condition_pairs, preference_rows
from lpo_platform.data.aligned_pairs import AlignedPairs
from lpo_platform.data.cache import Cache, fingerprint
from lpo_platform.data.condition_pairs import ConditionPairs
from lpo_platform.data.export_pairs import export_pairs
from lpo_platform.data.generated_pairs import GeneratedPairs
from lpo_platform.data.pose_extraction import extract
from lpo_platform.data.preference_rows import PreferenceRows
from lpo_platform.data.rollouts import Rollouts
from lpo_platform.data.rounds import Rounds
from lpo_platform.data.source import Data
from lpo_platform.distributed import agree, lead, wait
from lpo_platform.doctor.checkup import Checkup
from lpo_platform.evaluation.evaluate import Evaluator
from lpo_platform.evaluation.generate import Sampling
from lpo_platform.evaluation.outcome import conclude, evaluate_once
from lpo_platform.evaluation.pairs import PairEvaluator
from lpo_platform.hardware import Hardware
from lpo_platform.methods.method import Method
from lpo_platform.methods.online import Online
from lpo_platform.models.adapter import Adapter
from lpo_platform.models.export import export, restore
from lpo_platform.models.policy import Policy
from lpo_platform.models.weights import digest
from lpo_platform.rewards.reward import Reward, StepReward
from lpo_platform.signature import signature
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.task import Task
from lpo_platform.tracking import lineage, telling
from lpo_platform.tracking.files import Files, Resume
from lpo_platform.tracking.guest import About, Guest, invite

CACHE = Path("outputs/cache")
create = partial(instantiate, _convert_="all")
log = logging.getLogger(__name__)


@dataclass
class Job:
    """The live objects of a configuration."""

    cfg: DictConfig
    hardware: Hardware
    policy: Policy
    task: Task | None
    data: Data
    reward: Reward | StepReward | None
    control_digest: str | None
    cache: Path = CACHE
    _preferences: dict[str, PreferenceRows] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Pictures computed at once where nothing is trained."""
        return self.hardware.micro_batch or 32

    @property
    def sampling(self) -> Sampling:
        adapter = self.policy.adapter
        return Sampling(adapter.num_inference_steps, adapter.guidance)

    def needs(self) -> tuple[str, ...]:
        """Columns of a training sample: what the method asks for, as far as this model and task have it."""
        asked = get_class(self.cfg.method._target_).columns(self.cfg.method)
        text = "tokens" if self.policy.trains_text else "text"
        return tuple(text if c == "text" else c for c in asked if c != "control" or self.task is not None)

    def rows(self, *, force: bool = False) -> ConditionPairs | PreferenceRows | None:
        """The training samples, from the cache as far as it has them; None for a method that makes its own."""
        if issubclass(get_class(self.cfg.method._target_), Online):
            return None
        if "labels" in self.needs() and "control" in self.needs():
            return self.aligned(force=force)
        if "labels" in self.needs():
            rows = self.preferences("train", force=force)
            return rows.decided() if get_class(self.cfg.method._target_).needs_winner else rows
        losers, more = "loser" in self.needs(), {name: name in self.needs() for name in ("target", "features")}
        cache = condition_pairs.cache_of(
            self.data.train, self.policy, self.task, control_digest=self.control_digest if losers else None,
            sampling=self.sampling, folder=self.cache, **more,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return condition_pairs.prepare(
                cache, self.data.train, self.policy, self.task, losers=losers, sampling=self.sampling, batch=self.batch,
                **more,
            )  # fmt: skip

    def aligned(self, *, force: bool = False) -> AlignedPairs:
        """Preferences between pictures that the starting policy draws of the data's conditions."""
        method, source = self.cfg.method, self.data.train
        options = {"sampling": self.sampling, "group": method.group}
        cache = aligned_pairs.cache_of(
            source, self.policy, self.task, reward=plain(self.cfg.reward) if self.reward else None,
            control_digest=self.control_digest, folder=self.cache, **options,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return aligned_pairs.prepare(
                cache, source, self.policy, self.task, self.reward, gap=method.gap, batch=self.batch, **options
            )

    def preferences(self, split: str, *, force: bool = False) -> PreferenceRows:
        """Rows of a split of preference data, train, validation or test; its cache is checked once."""
        if split in self._preferences and not force:
            return self._preferences[split]
        if isinstance(self.data, GeneratedPairs):
            with self.hardware.autocast():
                self.data.draw(self.policy, self.cache, self.batch)
        source, adapter = getattr(self.data, split), self.policy.adapter
        cache = preference_rows.cache_of(source, adapter, text="text" in self.needs(), folder=self.cache)
        if force:
            forget(cache)
        with self.hardware.autocast():
            text = "text" in self.needs()
            rows = preference_rows.prepare(cache, source, adapter, text=text, title=f"preferences ({split})")
        self._preferences[split] = rows
        return rows

    @property
    def drawn(self) -> Data:
        """The data that pictures are drawn for: of preferences their prompts."""
        return getattr(self.data, "prompts", self.data)

    @property
    def identity(self) -> str:
        """What identifies the weights that it starts from."""
        return identity_of(self.policy, self.control_digest, self.cfg)


def forget(cache: Cache) -> None:
    """Deletes a cache, before any process looks into it."""
    if lead():
        shutil.rmtree(cache.folder, ignore_errors=True)
    wait()


def assemble(cfg: DictConfig) -> Job:
    """Builds what a configuration names, on its device, and meets the other processes."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    hardware = cut(hardware, cfg)
    task, (policy, control_digest) = task_of(cfg), policy_of(cfg, hardware)
    known, live = signature(cfg.data._target_), {"resolution": cfg.model.resolution, "task": task}
    data = create(cfg.data, **{name: value for name, value in live.items() if not known or known[name]})
    return Job(cfg, hardware, policy, task, data, reward_of(cfg, policy.adapter, task), control_digest)


def cut(hardware: Hardware, cfg: DictConfig) -> Hardware:
    """With a number for hardware.micro_batch=auto, the same on every process; null where nothing is trained."""
    if hardware.micro_batch != "auto":
        return hardware
    micro = None
    if "method" in cfg:
        from lpo_platform.plan.budget import largest  # which needs this module

        here = OmegaConf.merge(cfg, {"hardware": {"devices": hardware.local_processes}})
        half = hardware.frozen_dtype != torch.float32
        with torch.random.fork_rng(devices=[]):
            micro = agree(largest(here, hardware.memory, half=half) if lead() else None)
        say(f"hardware.micro_batch=auto: {micro} of {cfg.method.batch // hardware.processes} fit")
    return replace(hardware, micro_batch=micro)


def policy_of(cfg: DictConfig, hardware: Hardware) -> tuple[Policy, str | None]:
    """The model with what learns in it, on its device, and what identifies the ControlNet that it starts from."""
    adapter, control, control_digest = create(cfg.model), None, None
    if cfg.get("control"):
        branch, task = create(cfg.control), get_class(cfg.task._target_).name
        control, control_digest = branch.load(adapter, task), branch.digest(adapter, task)
    policy = Policy(adapter, create(cfg.tune), control).place(hardware.device, hardware.frozen_dtype)
    return hardware.prepare(policy), control_digest


def task_of(cfg: DictConfig) -> Task | None:
    """The task, told what it asks for: the model's resolution, and whether its pictures are toy scenes.

    A tiny model draws them whatever its data are, and toy data are read whatever draws: in both cases detector=auto is
    the embedded detector.
    """
    if not cfg.get("task"):
        return None
    toy = cfg.model.name.startswith("tiny") or cfg.data._target_.startswith("lpo_platform.data.toy.")
    known, live = signature(cfg.task._target_), {"toy": toy, "resolution": cfg.model.resolution}
    return create(cfg.task, **{name: value for name, value in live.items() if known and known[name]})


def reward_of(cfg: DictConfig, adapter: Adapter, task: Task | None) -> Reward | StepReward | None:
    """The reward, where the model is; one of latents gets the model whose latents it reads, one of conditions the task
    that finds them."""
    return _judge(cfg.reward, "reward", {"adapter": adapter, "task": task}) if cfg.get("reward") else None


def evaluator_of(cfg: DictConfig, adapter: Adapter, task: Task | None) -> Evaluator | PairEvaluator:
    """The evaluator with its measures, which get what rewards get."""
    return _with_judges(cfg.metrics, "metrics", "measures", {"adapter": adapter, "task": task})()


def sentinel_of(job: Job, folder: Path) -> Sentinel | None:
    """What watches the training, with its gold rewards."""
    if not (node := job.cfg.callbacks.get("sentinel")):
        return None
    build = _with_judges(node, "callbacks.sentinel", "gold", {"adapter": job.policy.adapter, "task": job.task})
    return build(folder=folder, data=job.drawn, task=job.task, reward=job.reward)


def _with_judges(node: DictConfig, path: str, key: str, live: dict[str, Adapter | Task | None]) -> partial:
    """The class of a node with its arguments, those of `key` made into rewards or measures."""
    parts = {name: part for name, part in (node.get(key) or {}).items() if part}
    judges = {name: _judge(part, f"{path}.{key}.{name}", live) for name, part in parts.items()}
    build = create(OmegaConf.masked_copy(node, [name for name in node if name != key]), _partial_=True)
    return partial(build, **({key: judges} if judges else {}))


def _judge(node: DictConfig, path: str, live: dict[str, Adapter | Task | None]) -> Any:
    """A reward or a measure, where the model is; the rewards that it is made of first."""
    known, own = signature(node._target_), ("reward", "rewards")
    given = {name: value for name, value in live.items() if known and known[name]}
    for key in (key for key in own if OmegaConf.is_config(node.get(key))):
        part, below = node[key], f"{path}.{key}"
        one = "_target_" in part
        given[key] = _judge(part, below, live) if one else {n: _judge(p, f"{below}.{n}", live) for n, p in part.items()}
    with located(path):
        judge = create(OmegaConf.masked_copy(node, [key for key in node if key not in given]), _partial_=True)(**given)
    return judge.to(live["adapter"].device) if isinstance(judge, nn.Module) else judge


@contextmanager
def located(path: str) -> Iterator[None]:
    """Puts the place in the configuration before a UserError that a class raised about its arguments."""
    try:
        yield
    except (UserError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(cause, UserError):
            raise
        raise UserError(f"{path}: {cause}") from error


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
            lineage.tell_inputs(guest, job)
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
            telling.tell(guest, metrics, folder, last)
            lineage.tell_outputs(guest, job, folder, about(cfg, folder).series, _suffix(settings), metrics)
    except BaseException:
        if guest:
            guest.finish(failed=True)
        raise
    if guest:
        guest.finish()
    return metrics


def method_of(job: Job) -> Method:
    """The method, given what it asks for."""
    live = {"policy": job.policy, "optim": create(job.cfg.optim), "seed": job.cfg.seed}
    asked = signature(job.cfg.method._target_)
    live |= {"reward": job.reward} if job.reward else {}
    live |= {"task": job.task} if asked and asked["task"] else {}
    return create(job.cfg.method, **live)


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


def prepare(cfg: DictConfig, folder: Path) -> None:
    """Computes everything frozen of the training samples, losing conditions included, into the cache.

    With `export` also into a folder that others can read. With `pose`, instead, the poses of a folder of pictures.
    """
    if cfg.pose is not None:
        return extract_poses(cfg)
    job = assemble(cfg)
    rows = job.rows(force=cfg.force)
    if cfg.export is not None:
        if not isinstance(rows, ConditionPairs):
            raise UserError(f"export={cfg.export}: method={title(cfg)} has no pairs of conditions; use method=cpo")
        export_pairs(job.data.train, rows, Path(cfg.export).expanduser())
    if rows is None:
        say(f"method={title(cfg)} makes its samples while it trains: there is nothing to prepare")
    else:
        say(f"{len(rows)} training samples are ready in {cfg.export or rows.cache.folder}")


def extract_poses(cfg: DictConfig) -> None:
    """Keypoints, skeletons and lines of photographs; toy scenes are those that task.detector=toy asks for."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    task: Pose = create(cfg.task, resolution=cfg.model.resolution, toy=False)
    found = extract(cfg.pose, Path(cfg.export).expanduser(), task, hardware.device)
    say(" | ".join(filter(None, [f"{cfg.export}: train.jsonl, test.jsonl for data=jsonl", found.line()])))


def load_trained(policy: Policy, run: Path, settings: Callbacks) -> None:
    """Gives the policy the weights that a run exported: their average, or the raw ones."""
    restore(policy, run / "export", _suffix(settings))


def identity_of(policy: Policy, control_digest: str | None, cfg: DictConfig) -> str:
    """What identifies the weights that a configuration starts from; new ones are drawn from its seed."""
    return fingerprint(policy.adapter.fingerprint, control_digest, cfg.seed)


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


def plain(cfg: DictConfig) -> dict:
    return OmegaConf.to_container(cfg, resolve=True)


def title(cfg: DictConfig) -> str:
    return cfg.method._target_.rsplit(".", 1)[-1].lower()


def say(text: str) -> None:
    """A line for the person at the terminal, which also stands in the log; the first process speaks for all."""
    if not lead():
        return
    log.info(text.strip())
    print(text, file=sys.stderr, flush=True)


def quiet() -> None:
    """Libraries speak up when something is wrong, not to introduce themselves."""
    import diffusers
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()  # it tells of every retry; the last one ends in our one message
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message="`FluxPosEmbed` is deprecated")  # diffusers warns of its own import
