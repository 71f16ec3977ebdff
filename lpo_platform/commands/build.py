"""Builds the objects of a run from a checked configuration. Nothing else calls hydra's instantiate."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import KEPT
from lpo_platform.config.signature import attribute, signature
from lpo_platform.runs.files import fingerprint

if TYPE_CHECKING:  # the parts are imported when a configuration names them: a task alone needs no denoiser
    from lpo_platform.data.source import Data
    from lpo_platform.evaluation.evaluator import Evaluator
    from lpo_platform.evaluation.pairs import PairEvaluator
    from lpo_platform.hardware.hardware import Hardware
    from lpo_platform.models.adapter import Adapter
    from lpo_platform.models.policy import Policy
    from lpo_platform.rewards.reward import Reward, StepReward
    from lpo_platform.tasks.task import Task

create = partial(instantiate, _convert_="all")
log = logging.getLogger(__name__)


def policy_of(cfg: DictConfig, hardware: Hardware) -> tuple[Policy, str | None]:
    """The model with its trained parts, on its device, and the digest of the ControlNet that it starts from."""
    from lpo_platform.models.policy import Policy

    adapter, control, control_digest = create(cfg.model), None, None
    if cfg.get("control"):
        branch, task = create(cfg.control), get_class(cfg.task._target_)
        control = branch.load(adapter, task.name, nearest=task.nearest)
        control_digest = branch.digest(adapter, task.name)
    policy = Policy(adapter, create(cfg.tune), control).place(hardware.device, hardware.frozen_dtype)
    hardware.prepare(policy.networks)
    return policy, control_digest


def task_of(cfg: DictConfig, changed: DictConfig | None = None) -> Task | None:
    """The task, with the arguments that it takes from the run: the model's resolution, and whether pictures are toy
    scenes.

    changed: settings that replace its own, as metrics.task has them.

    A tiny model draws them whatever its data are, and toy data are read whatever draws: in both cases detector=auto is
    the embedded detector.
    """
    if not cfg.get("task"):
        return None
    toy = cfg.model.get("toy", False) or attribute(cfg.data._target_, "toy", False)
    known, live = signature(cfg.task._target_), {"toy": toy, "resolution": cfg.model.resolution}
    settings = plain(cfg.task) | plain(changed or OmegaConf.create())
    for name in changed or ():
        if known and not known.open and (known[name] is None or name in live):
            names = ", ".join(sorted(option for option in plain(cfg.task) if option != "_target_"))
            raise UserError(f"metrics.task.{name}: {known.name} has no such option. Options: {names}")
    return create(settings, **{name: value for name, value in live.items() if known and known[name]})


def data_of(node: DictConfig, resolution: int, task: Task | None) -> Data:
    """The data, with the arguments that they take from the run. data.cache and data.cache_gb are no arguments of their
    class."""
    known, live = signature(node._target_), {"resolution": resolution, "task": task}
    node = OmegaConf.masked_copy(node, [name for name in node if name not in KEPT])
    return create(node, **{name: value for name, value in live.items() if not known or known[name]})


def reward_of(cfg: DictConfig, adapter: Adapter, task: Task | None) -> Reward | StepReward | None:
    """The reward, where the model is; one of latents gets the model whose latents it reads, one of conditions the task
    that finds them."""
    return _scorer(cfg.reward, "reward", {"adapter": adapter, "task": task}) if cfg.get("reward") else None


def evaluator_of(cfg: DictConfig, adapter: Adapter, task: Task | None) -> Evaluator | PairEvaluator:
    """The evaluator with its measures, which get the same arguments from the run as rewards."""
    return with_scorers(cfg.metrics, "metrics", "measures", {"adapter": adapter, "task": task})()


def with_scorers(node: DictConfig, path: str, key: str, live: dict[str, Adapter | Task | None]) -> partial:
    """The class of a node with its arguments, those of `key` made into rewards or measures."""
    parts = {name: part for name, part in (node.get(key) or {}).items() if part}
    scorers = {name: _scorer(part, f"{path}.{key}.{name}", live) for name, part in parts.items()}
    build = create(OmegaConf.masked_copy(node, [name for name in node if name != key]), _partial_=True)
    return partial(build, **({key: scorers} if scorers else {}))


def _scorer(node: DictConfig, path: str, live: dict[str, Adapter | Task | None]) -> Any:
    """A reward or a measure, where the model is; the rewards that it is made of first."""
    known, own = signature(node._target_), ("reward", "rewards")
    given = {name: value for name, value in live.items() if known and known[name]}
    for key in (key for key in own if OmegaConf.is_config(node.get(key))):
        part, make = node[key], partial(_scorer, live=live)
        below = f"{path}.{key}"
        one = "_target_" in part
        given[key] = make(part, below) if one else {name: make(p, f"{below}.{name}") for name, p in part.items()}
    with located(path):
        scorer = create(OmegaConf.masked_copy(node, [key for key in node if key not in given]), _partial_=True)(**given)
    return scorer.to(live["adapter"].device) if isinstance(scorer, nn.Module) else scorer


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


def identity_of(policy: Policy, control_digest: str | None, cfg: DictConfig) -> str:
    """Identifies the weights that a configuration starts from. Those that are drawn at random follow from its seed."""
    return fingerprint(policy.adapter.fingerprint, control_digest, cfg.seed)


def plain(cfg: DictConfig) -> dict:
    return OmegaConf.to_container(cfg, resolve=True)


def title(cfg: DictConfig) -> str:
    return cfg.method._target_.rsplit(".", 1)[-1].lower()
