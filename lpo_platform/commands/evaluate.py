"""lpo-eval: a model alone or against another, a finished run against its start, or what lies in folders."""

import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpo_platform.commands.build import create, evaluator_of, identity_of, located, plain, policy_of
from lpo_platform.commands.conclude import conclude
from lpo_platform.commands.evaluate_once import evaluate_once
from lpo_platform.commands.job import assemble
from lpo_platform.commands.job_log import quiet, say
from lpo_platform.commands.train import load_trained, trained_identity  # fmt: skip
from lpo_platform.commands.weights import with_weights
from lpo_platform.config import own_modules, stored
from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import run_folder
from lpo_platform.config.schema import CONF
from lpo_platform.config.signature import signature
from lpo_platform.hardware.distributed import lead
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.policy import Policy
from lpo_platform.runs import record, resume
from lpo_platform.runs.files import fingerprint
from lpo_platform.tasks.task import Task


def evaluate(cfg: DictConfig, folder: Path) -> dict:
    """Evaluates one model, or two on the same items and noise: a run or `weights` against `against`, by default the
    start.

    Or, with `what`, something else that is there.
    """
    if cfg.get("what"):
        return measure(cfg, folder)
    started = time.monotonic()
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    start = of_run(cfg) if cfg.run else of_model(cfg)
    place, before = cfg.run or cfg.weights, None
    after = None if place is None else placed(place, "weights", start, cfg)
    against = None if cfg.against is None else placed(cfg.against, "against", start, cfg)
    job = assemble(start)
    evaluator = evaluator_of(job.cfg, job.policy.adapter, job.eval_task)
    own = job.policy, job.identity
    if after or against:
        job.policy, identity = policy_at(against, job.hardware) if against else own
        before = evaluate_once(job, evaluator, folder, "before", identity)
    job.policy, identity = policy_at(after, job.hardware, own if cfg.run else None) if after else own
    found = evaluate_once(job, evaluator, folder, "after", identity, None if after or against else "evaluate")
    weights = Path(cfg.run) / "export" if cfg.run else place
    return conclude(job, evaluator, before, found, folder, weights, time.monotonic() - started)


def of_run(cfg: DictConfig) -> DictConfig:
    """The configuration of a run, with the hardware and the protocol of this command line, if it has one.

    The network that judges pictures stays that of the run where the protocol names none.
    """
    known = run_config(cfg, cfg.run)
    if cfg.metrics != OmegaConf.load(CONF / "metrics" / "default.yaml"):
        judge, known.metrics = known.metrics.get("task"), cfg.metrics
        if judge and not known.metrics.get("task"):
            OmegaConf.update(known.metrics, "task", judge, force_add=True)
    return known


def of_model(cfg: DictConfig) -> DictConfig:
    """As a training would start from it: what would learn is float32, and the numbers are those of a run."""
    tune = "control" if cfg.get("control") else "full"
    return OmegaConf.create(plain(cfg) | {"tune": plain(OmegaConf.load(CONF / "tune" / f"{tune}.yaml"))})


@dataclass(frozen=True)
class Placed:
    """A model with the weights of a place, before anything is loaded: of a run what it trained."""

    cfg: DictConfig
    run: Path | None


def placed(place: str, setting: str, like: DictConfig, cfg: DictConfig) -> Placed:
    """like: the model that weights which are no run are put into, and whose resolution all have."""
    run = run_folder(place)
    known = with_weights(like, place, setting) if run is None else run_config(cfg, run)
    known.model.resolution = like.model.resolution
    return Placed(known, run)


def policy_at(side: Placed, hardware: Hardware, start: tuple[Policy, str] | None = None) -> tuple[Policy, str]:
    """The policy, and what identifies its weights. start: what it starts from, if loaded; it gets the run's weights."""
    policy, identity = start or initial(side.cfg, hardware)
    if side.run is not None:
        settings = create(side.cfg.callbacks)
        load_trained(policy, side.run, settings)
        identity = fingerprint(identity, trained_identity(side.run, settings))
    return policy, identity


def initial(cfg: DictConfig, hardware: Hardware) -> tuple[Policy, str]:
    """The policy that a configuration starts from, and what identifies its weights."""
    policy, control = policy_of(cfg, hardware)
    return policy, identity_of(policy, control, cfg)


def run_config(cfg: DictConfig, run: str | Path) -> DictConfig:
    """The configuration of a run, with the hardware of this command line."""
    own_modules.look_in(resume.config_dirs_of(Path(run)))
    known = stored.load(Path(run) / "resolved.yaml")
    known.hardware = cfg.hardware
    return known


def load(
    cfg: DictConfig, hardware: Hardware, weights: str, resolution: int | None, *, control: bool = True
) -> tuple[Policy, str]:
    """The model of a run, or the one named, at a resolution (None: its own), and what identifies its weights.

    weights: trained, start (those that the run started from, or the model as it is) or the place of another ControlNet.
    control: whether it has to have a ControlNet, or has to have none.
    """
    known = run_config(cfg, cfg.run) if cfg.run else of_model(cfg)
    if bool(known.get("control")) != control:
        has, works = ("without", "controlnet") if control else ("with", "none")
        named, a_run = (f"run={cfg.run}", "a run with ") if cfg.run else (f"model={known.model.name}", "")
        raise UserError(f"{named}: {has} a ControlNet; what works: {a_run}control={works}")
    known.model.resolution = resolution or known.model.resolution
    if weights not in ("trained", "start"):
        known.control.weights, known.control.subfolder = weights, None
    elif weights == "trained" and (place := cfg.run or cfg.weights):
        return policy_at(placed(place, "weights", known, cfg), hardware)
    return initial(known, hardware)


def measure(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Measures folders, or draws with the model of a run; writes report.json and prints the means."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    asked = signature(cfg.what._target_)
    live = {"load": partial(load, cfg, hardware), "task": partial(detector, cfg)}
    live = {name: value for name, value in live.items() if asked and asked[name]}
    with located("what"), hardware.autocast() if "load" in live else nullcontext():
        result = create(cfg.what, **live)(folder, hardware.device)
    for name, metric in result["metrics"].items():
        low, high = metric["ci95"]
        say(f"{name:20}{metric['mean']:9.4f} [{low:.4f}, {high:.4f}]  of {metric['count']}")
    for name, value in result.get("pooled", {}).items():
        say(f"{name:20}{value:9.4f}  of the whole set")
    for reason, names in result["left_out"].items():
        if names:
            say(f"{len(names)} {reason}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    say(f"report  {folder / 'report.json'}")
    return result


def detector(cfg: DictConfig, resolution: int) -> Task:
    """The task at a resolution, for pictures of any kind; toy scenes are those that task.detector=toy asks for."""
    known, live = signature(cfg.task._target_), {"toy": False, "resolution": resolution}
    return create(cfg.task, **{name: value for name, value in live.items() if known and known[name]})
