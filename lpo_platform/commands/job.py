"""Builds what a run is made of: model, task, data and reward of a configuration, on their device."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.build import (
    create,
    data_of,
    identity_of,
    plain,
    policy_of,
    reward_of,
    task_of,
    with_scorers,
)
from lpo_platform.commands.job_log import quiet
from lpo_platform.commands.plan.budget import with_micro_batch
from lpo_platform.config.schema import KEPT
from lpo_platform.config.signature import signature
from lpo_platform.data.prepared import alignment_pairs, conditions, preferences
from lpo_platform.data.prepared.readers import Readers
from lpo_platform.data.prepared.rows import Chosen, Keeping, Preparation, Rows
from lpo_platform.data.prepared.store import Columns, Store
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
    _measured: dict[str, Chosen] = field(default_factory=dict)

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
        """The columns of a training sample: those that the method needs and that this model and task have."""
        asked = get_class(self.cfg.method._target_).columns(self.cfg.method)
        text = "tokens" if self.policy.reads_tokens else "text"
        return tuple(text if c == "text" else c for c in asked if c != "control" or self.task is not None)

    @property
    def draws(self) -> bool:
        """Whether the starting policy draws a part of the training samples, such as the losers."""
        needs, source = self.needs(), getattr(self.data, "train", None)
        aligned = {"labels", "control"} <= {*needs}
        return getattr(self.data, "draws", False) or aligned or conditions.draws(source, needs)

    @property
    def before_training(self) -> bool:
        """Whether all samples have to be computed before the first step, because the model that draws them is sharded
        or changes later."""
        return self.draws and (self.hardware.strategy == "fsdp" or self.policy.trains_text)

    def rows(self, *, force: bool = False) -> Rows | None:
        """The training samples, computed as they are read; None for a method that draws its own."""
        method = get_class(self.cfg.method._target_)
        if method.online:
            return None
        needs, source = self.needs(), getattr(self.data, "train", None)
        if "labels" not in needs:
            options = {"columns": needs, "control_digest": self.control_digest, "sampling": self.sampling}
            return self._rows(conditions.preparation(source, self.policy, self.task, **options), force=force)
        if "control" in needs:
            return self._rows(self._aligned(), force=force)
        return self._rows(self._preferences("train", decided=method.needs_winner), force=force)

    def _aligned(self) -> Preparation:
        """Preferences between pictures that the starting policy draws of the data's conditions."""
        method, settings = self.cfg.method, plain(self.cfg.reward) if self.reward else None
        return alignment_pairs.preparation(
            self.data.train, self.policy, self.task, self.reward, settings=settings, control_digest=self.control_digest,
            sampling=self.sampling, group=method.group, gap=method.gap, batch=self.batch,
        )  # fmt: skip

    def _preferences(self, split: str, *, decided: bool = False) -> Preparation:
        if getattr(self.data, "draws", False) and not hasattr(self.data, "train"):
            self.data.open(self.policy, self.batch)
        source, title = getattr(self.data, split), f"preferences ({split})"
        return preferences.preparation(
            source, self.policy.adapter, columns=self.needs(), title=title, decided=decided
        )  # fmt: skip

    def _rows(self, what: Preparation, *, force: bool = False, whole: bool = False) -> Rows:
        """The rows of a preparation, computed with the starting policy in the run's precision.

        whole: all of them are read, and kept.
        """
        store, count = Store(self.cache, what.key, len(what.source)), self.hardware.processes
        if force:
            forget(store)

        def encode(items: list[Any]) -> Columns:
            with self.hardware.autocast(), self.policy.start():
                return what.encode(items)

        reads = len(what.source) if whole else min(len(what.source), self.reads)
        options = {"workers": self.hardware.num_workers, "share": self.hardware.local_processes}
        readers, kept = Readers(what.source, expected=reads, **options), KEPT | plain(self.cfg.data)
        keeping = Keeping("all") if whole else Keeping(kept["cache"], 1e9 * kept["cache_gb"], count)
        return Rows(replace(what, encode=encode), store, readers, group=min(self.batch, reads), keeping=keeping)

    @property
    def reads(self) -> int:
        """How many samples the run reads in all."""
        return self.cfg.method.steps * self.cfg.method.batch

    def read_of(self, rows: Rows) -> np.ndarray:
        """Which rows the run reads, in the order in which it reads them first."""
        return rows.order(self.reads, self.cfg.seed).distinct()

    def preferences(self, split: str) -> Chosen:
        """The usable rows of a split of preference data, validation or test. They are computed once."""
        if split not in self._measured:
            rows = self._rows(self._preferences(split), whole=True)
            rows.fill()
            self._measured[split] = rows.usable()
            rows.close()
        return self._measured[split]

    @property
    def drawn(self) -> Data:
        """The data whose pictures an evaluation draws. For preferences they are the prompts."""
        return getattr(self.data, "prompts", self.data)

    @property
    def identity(self) -> str:
        """Identifies the weights that the run starts from."""
        return identity_of(self.policy, self.control_digest, self.cfg)


def forget(store: Store) -> None:
    """Deletes what is kept, before any process looks for it."""
    wait()
    if lead():
        store.forget()
    wait()
    store.__init__(store.folder.parent, store.key, store.total)


def assemble(cfg: DictConfig) -> Job:
    """Builds the objects that a configuration names, on their device, and connects to the other processes."""
    quiet()
    L.seed_everything(cfg.seed, verbose=False)
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    hardware = with_micro_batch(hardware, cfg)
    task, (policy, control_digest) = task_of(cfg), policy_of(cfg, hardware)
    data = data_of(cfg.data, cfg.model.resolution, task)
    return Job(cfg, hardware, policy, task, data, reward_of(cfg, policy.adapter, task), control_digest)


def sentinel_of(job: Job, folder: Path) -> Sentinel | None:
    """The guard rails of the training, with their held-out (gold) rewards."""
    if not (node := job.cfg.callbacks.get("sentinel")):
        return None
    build = with_scorers(node, "callbacks.sentinel", "gold", {"adapter": job.policy.adapter, "task": job.eval_task})
    return build(folder=folder, data=job.drawn, task=job.eval_task, reward=job.reward)


def method_of(job: Job) -> Method:
    """The method, with those arguments that it takes from the run."""
    optim = create(job.cfg.optim)
    optim.check()
    live = {"policy": job.policy, "optim": optim, "seed": job.cfg.seed}
    asked = signature(job.cfg.method._target_)
    live |= {"reward": job.reward} if job.reward else {}
    live |= {"task": job.task} if asked and asked["task"] else {}
    return create(job.cfg.method, **live)
