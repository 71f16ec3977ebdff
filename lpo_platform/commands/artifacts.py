"""What a run was made from and what it leaves, as artifacts: dataset -> reward model -> policy -> evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpo_platform.models.weights import digest
from lpo_platform.runs.files import fingerprint
from lpo_platform.tracking.loggers.service import Artifact, RunLogger

if TYPE_CHECKING:
    from lpo_platform.commands.job import Job


def log_inputs(logger: RunLogger, job: Job) -> None:
    logger.attempt(lambda: [logger.used(artifact) for artifact in inputs(job)])


def log_outputs(
    logger: RunLogger, job: Job, run: Path, series: str, suffix: str, metrics: Mapping[str, Mapping[str, Any]]
) -> None:
    logger.attempt(lambda: [logger.made(artifact) for artifact in outputs(job, run, series, suffix, metrics)])


def inputs(job: Job) -> list[Artifact]:
    """The data, by its fingerprints and not its pictures, and the latent reward model, if one judges."""
    splits = {name: source.fingerprint for name in ("train", "test") if (source := getattr(job.data, name, None))}
    metadata = {"data": job.cfg.data._target_.rsplit(".", 1)[-1], **splits}
    found = [Artifact("dataset", fingerprint(splits), metadata)]
    if (folder := getattr(job.reward, "folder", None)) is not None:  # a reward that another run has trained
        found.append(Artifact("reward_model", fingerprint(digest(str(folder))), files=(folder,)))
    return found


def outputs(job: Job, run: Path, series: str, suffix: str, metrics: Mapping[str, Mapping[str, Any]]) -> list[Artifact]:
    """The exported weights, of which those with the suffix were evaluated and are the latest, and the evaluation."""
    about = {"model": job.cfg.model.name, "seed": job.cfg.seed, **{of.kind: of.name for of in inputs(job)}}
    found = []
    for folder in sorted((run / "export").iterdir(), key=lambda folder: _kind(folder) == suffix.removeprefix("_")):
        kind, aliases = _kind(folder), [_kind(folder) or "raw"]
        aliases += ["latest"] if kind == suffix.removeprefix("_") else []
        part, identity = folder.name.removesuffix(f"_{kind}"), fingerprint(digest(str(folder)))
        name = {"reward": "reward_model"}.get(part, "model")
        told = {**about, "part": part}
        found.append(
            Artifact(name, identity, told, (folder,), aliases, None if part == "reward" else f"{series}-{part}")
        )
    scores = {name: {key: metric[key] for key in ("before", "after", "ci95")} for name, metric in metrics.items()}
    files = tuple(file for file in (run / "result.json", run / "evaluation" / "items.parquet") if file.is_file())
    return [
        *found,
        Artifact("evaluation", fingerprint(scores), {**about, **scores}, files, ("latest",), f"{series}-eval"),
    ]


def _kind(folder: Path) -> str:
    """best or ema, "" for the last weights."""
    return next((kind for kind in ("best", "ema") if folder.name.endswith(f"_{kind}")), "")
