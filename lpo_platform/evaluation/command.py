"""lpo-eval: a model alone or against another, a finished run against its start, or what lies in folders."""

import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lpo_platform import record
from lpo_platform.build import (
    Job,
    assemble,
    create,
    evaluator_of,
    load_trained,
    located,
    plain,
    policy_of,
    quiet,
    say,
    trained_identity,
)  # fmt: skip
from lpo_platform.config import CONF, UserError, run_folder
from lpo_platform.data.cache import fingerprint
from lpo_platform.distributed import lead
from lpo_platform.evaluation.outcome import conclude, evaluate_once
from lpo_platform.evaluation.weights import with_weights
from lpo_platform.hardware import Hardware
from lpo_platform.models.policy import Policy
from lpo_platform.models.weights import digest
from lpo_platform.signature import signature
from lpo_platform.tasks.task import Task


def evaluate(cfg: DictConfig, folder: Path) -> dict:
    """A model as it is; or two on the same items and noise: a run or `weights` against `against`, the start if unset.

    Or, with `what`, something else that is there.
    """
    if cfg.get("what"):
        return measure(cfg, folder)
    started = time.monotonic()
    if lead():
        record.start(folder, plain(cfg), sys.argv)
    job = assemble(of_run(cfg) if cfg.run else of_model(cfg))
    evaluator = evaluator_of(job.cfg, job.policy.adapter, job.task)
    trained, before = cfg.run or cfg.weights, None
    if trained or cfg.against:
        side, identity = (job, job.identity) if cfg.against is None else other(job, cfg, cfg.against, "against")
        before = evaluate_once(side, evaluator, folder, "before", identity, "evaluate base")
        del side
    identity, title = job.identity, f"evaluate {'trained' if cfg.run else 'weights' if trained else 'model'}"
    if trained:
        job, identity = other(job, cfg, trained, "weights")
    after = evaluate_once(job, evaluator, folder, "after", identity, title)
    place = Path(cfg.run) / "export" if cfg.run else trained
    return conclude(job, evaluator, before, after, folder, place, time.monotonic() - started)


def of_run(cfg: DictConfig) -> DictConfig:
    """The configuration of a run, on the hardware and by the protocol asked for now, if one is."""
    known = run_config(cfg, cfg.run)
    if cfg.metrics != OmegaConf.load(CONF / "metrics" / "default.yaml"):
        known.metrics = cfg.metrics
    return known


def of_model(cfg: DictConfig) -> DictConfig:
    """As a training would start from it: what would learn is float32, and the numbers are those of a run."""
    tune = "control" if cfg.get("control") else "full"
    return OmegaConf.create(plain(cfg) | {"tune": plain(OmegaConf.load(CONF / "tune" / f"{tune}.yaml"))})


def other(job: Job, cfg: DictConfig, place: str, setting: str) -> tuple[Job, str]:
    """The job with the weights of a place, and what identifies them."""
    job.policy.to("cpu")
    if (run := run_folder(place)) is not None:
        known = run_config(cfg, run)
        known.model.resolution = job.cfg.model.resolution
        policy, _ = policy_of(known, job.hardware)
        settings = create(known.callbacks)
        load_trained(policy, run, settings)
        return replace(job, policy=policy), fingerprint(policy.adapter.fingerprint, trained_identity(run, settings))
    policy, control = policy_of(with_weights(job.cfg, place, setting), job.hardware)
    changed = replace(job, policy=policy, control_digest=control)
    return changed, changed.identity


def run_config(cfg: DictConfig, run: str | Path) -> DictConfig:
    """The configuration of a run, on the hardware asked for now."""
    known = OmegaConf.load(Path(run) / "resolved.yaml")
    known.hardware = cfg.hardware
    return known


def load_run(
    cfg: DictConfig, hardware: Hardware, weights: str, resolution: int | None, *, control: bool = True
) -> tuple[Policy, str]:
    """The model of a run at a resolution (None: its own), and what identifies its weights.

    weights: trained, start (those that the run started from) or the place of another ControlNet. control: whether the
    run has to have a ControlNet, or has to have none.
    """
    known = run_config(cfg, cfg.run)
    if bool(known.get("control")) != control:
        has, works = ("without", "controlnet") if control else ("with", "none")
        raise UserError(f"run={cfg.run}: {has} a ControlNet; what works: a run with control={works}")
    known.model.resolution = resolution or known.model.resolution
    if weights not in ("trained", "start"):
        known.control.weights, known.control.subfolder = weights, None
    policy, identity = policy_of(known, hardware)
    if weights == "trained":
        load_trained(policy, Path(cfg.run), create(known.callbacks))
        identity = digest(f"{cfg.run}/export")
    return policy, identity


def measure(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Measures folders, or draws with the model of a run; writes report.json and prints the means."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    hardware.join()
    asked = signature(cfg.what._target_)
    live = {"load": partial(load_run, cfg, hardware), "task": partial(detector, cfg)}
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
