"""Reads configurations that a run has stored, although classes have moved and settings were added since."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Where a class stood when it was stored: where it stands now.
RENAMED = {
    "lpo_platform.callbacks.sentinel.Sentinel": "lpo_platform.tracking.callbacks.sentinel.Sentinel",
    "lpo_platform.callbacks.settings.Callbacks": "lpo_platform.tracking.callbacks.settings.Callbacks",
    "lpo_platform.data.generated_pairs.GeneratedPairs": "lpo_platform.data.prepared.own_pairs.GeneratedPairs",
    "lpo_platform.evaluation.controllability.Controllability": (
        "lpo_platform.evaluation.what.controllability.Controllability"
    ),
    "lpo_platform.evaluation.evaluate.Evaluator": "lpo_platform.evaluation.evaluator.Evaluator",
    "lpo_platform.evaluation.fid_folders.FidOfFolder": "lpo_platform.evaluation.what.fid.FidOfFolder",
    "lpo_platform.evaluation.folders.Oks": "lpo_platform.evaluation.what.oks.Oks",
    "lpo_platform.evaluation.generation.Generate": "lpo_platform.evaluation.what.generate.Generate",
    "lpo_platform.evaluation.picture_folders.ClipScore": "lpo_platform.evaluation.what.clip_lpips.ClipScore",
    "lpo_platform.evaluation.picture_folders.Lpips": "lpo_platform.evaluation.what.clip_lpips.Lpips",
    "lpo_platform.evaluation.prompt_sets.GenEval": "lpo_platform.evaluation.what.prompt_sets.GenEval",
    "lpo_platform.evaluation.prompt_sets.T2ICompBench": "lpo_platform.evaluation.what.prompt_sets.T2ICompBench",
    "lpo_platform.hardware.Hardware": "lpo_platform.hardware.hardware.Hardware",
    "lpo_platform.rewards.refresh.Refresh": "lpo_platform.methods.reward_refresh.Refresh",
    "lpo_platform.tracking.tensorboard.TensorBoard": "lpo_platform.tracking.loggers.tensorboard.TensorBoard",
    "lpo_platform.tracking.trackio.Trackio": "lpo_platform.tracking.loggers.trackio.Trackio",
    "lpo_platform.tracking.wandb.Wandb": "lpo_platform.tracking.loggers.wandb.Wandb",
}


def load(file: Path) -> DictConfig:
    """A stored configuration as the present code takes it."""
    config = OmegaConf.load(file)
    for path, value in changes(OmegaConf.to_container(config, resolve=False)):
        OmegaConf.update(config, path, value, force_add=True)
    return config


def changes_of(file: Path) -> list[tuple[str, object]]:
    """What has to be set in the configuration of a file; nothing where it cannot be read, which others complain of."""
    try:
        return list(changes(OmegaConf.to_container(OmegaConf.load(file), resolve=False)))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return []


def changes(values: object) -> Iterator[tuple[str, object]]:
    """What has to be set in a stored configuration, as dotted paths and values."""
    yield from _moved(values)
    model = values.get("model") if isinstance(values, dict) else None
    if isinstance(model, dict) and "toy" not in model and str(model.get("name")).startswith("tiny"):
        yield "model.toy", True  # the name said it before there was a setting


def _moved(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key == "_target_" and value in RENAMED:
            yield f"{prefix}_target_", RENAMED[value]
        yield from _moved(value, f"{prefix}{key}.")
