"""Builds what a run is made of: model, task, data and reward of a configuration, on their device."""

import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import lightning as L
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.build import create, identity_of, plain, policy_of, reward_of, task_of, with_scorers
from lpo_platform.commands.job_log import quiet
from lpo_platform.commands.plan.budget import with_micro_batch
from lpo_platform.config.signature import signature
from lpo_platform.data.prepared import alignment_pairs, conditions, preferences
from lpo_platform.data.prepared.alignment_pairs import AlignedPairs
from lpo_platform.data.prepared.cache import Cache
from lpo_platform.data.prepared.conditions import ConditionPairs
from lpo_platform.data.prepared.preferences import PreferenceRows
from lpo_platform.data.source import Data
from lpo_platform.hardware.distributed import lead, wait
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.method import Method
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling
from lpo_platform.rewards.reward import Reward, StepReward
from lpo_platform.tasks.task import Task
from lpo_platform.tracking.callbacks.sentinel import Sentinel

CACHE = Path("outputs/cache")


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

    @cached_property
    def eval_task(self) -> Task | None:
        """The task as evaluation sees it, with the settings of metrics.task: the training's own where it has none."""
        changed = OmegaConf.select(self.cfg, "metrics.task")
        return task_of(self.cfg, changed) if changed and self.task is not None else self.task

    @property
    def batch(self) -> int:
        """How many pictures are computed at once where nothing is trained."""
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
        if get_class(self.cfg.method._target_).online:
            return None
        if "labels" in self.needs() and "control" in self.needs():
            return self.aligned(force=force)
        if "labels" in self.needs():
            rows = self.preferences("train", force=force)
            return rows.decided() if get_class(self.cfg.method._target_).needs_winner else rows
        losers, more = "loser" in self.needs(), {name: name in self.needs() for name in ("target", "features")}
        cache = conditions.cache_of(
            self.data.train, self.policy, self.task, control_digest=self.control_digest if losers else None,
            sampling=self.sampling, folder=self.cache, **more,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return conditions.prepare(
                cache, self.data.train, self.policy, self.task, losers=losers, sampling=self.sampling, batch=self.batch,
                **more,
            )  # fmt: skip

    def aligned(self, *, force: bool = False) -> AlignedPairs:
        """Preferences between pictures that the starting policy draws of the data's conditions."""
        method, source = self.cfg.method, self.data.train
        options = {"sampling": self.sampling, "group": method.group}
        cache = alignment_pairs.cache_of(
            source, self.policy, self.task, reward=plain(self.cfg.reward) if self.reward else None,
            control_digest=self.control_digest, folder=self.cache, **options,
        )  # fmt: skip
        if force:
            forget(cache)
        with self.hardware.autocast():
            return alignment_pairs.prepare(
                cache, source, self.policy, self.task, self.reward, gap=method.gap, batch=self.batch, **options
            )

    def preferences(self, split: str, *, force: bool = False) -> PreferenceRows:
        """Rows of a split of preference data, train, validation or test; its cache is checked once."""
        if split in self._preferences and not force:
            return self._preferences[split]
        if getattr(self.data, "draws", False):
            with self.hardware.autocast():
                self.data.draw(self.policy, self.cache, self.batch)
        source, adapter = getattr(self.data, split), self.policy.adapter
        cache = preferences.cache_of(source, adapter, text="text" in self.needs(), folder=self.cache)
        if force:
            forget(cache)
        with self.hardware.autocast():
            text = "text" in self.needs()
            rows = preferences.prepare(cache, source, adapter, text=text, title=f"preferences ({split})")
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
    hardware = with_micro_batch(hardware, cfg)
    task, (policy, control_digest) = task_of(cfg), policy_of(cfg, hardware)
    known, live = signature(cfg.data._target_), {"resolution": cfg.model.resolution, "task": task}
    data = create(cfg.data, **{name: value for name, value in live.items() if not known or known[name]})
    return Job(cfg, hardware, policy, task, data, reward_of(cfg, policy.adapter, task), control_digest)


def sentinel_of(job: Job, folder: Path) -> Sentinel | None:
    """What watches the training, with its gold rewards."""
    if not (node := job.cfg.callbacks.get("sentinel")):
        return None
    build = with_scorers(node, "callbacks.sentinel", "gold", {"adapter": job.policy.adapter, "task": job.eval_task})
    return build(folder=folder, data=job.drawn, task=job.eval_task, reward=job.reward)


def method_of(job: Job) -> Method:
    """The method, given what it asks for."""
    live = {"policy": job.policy, "optim": create(job.cfg.optim), "seed": job.cfg.seed}
    asked = signature(job.cfg.method._target_)
    live |= {"reward": job.reward} if job.reward else {}
    live |= {"task": job.task} if asked and asked["task"] else {}
    return create(job.cfg.method, **live)
