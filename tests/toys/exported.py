"""Finished runs whose weights have moved, made in a second: what lpo-export works on."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from lpo_platform.commands.build import policy_of
from lpo_platform.config.compose import compose
from lpo_platform.config.schema import CONF
from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.evaluation import Evaluation
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.export import export
from lpo_platform.runs import record

SECRET = "hf_abcdefghijklmnopqrstuvwx"
SMALL = ["model.resolution=64", "model.num_inference_steps=4", "callbacks.ema_decay=null", "logger=none"]
ROW = {"before": 0.4, "after": 0.5, "difference": 0.1, "ci95": [0.05, 0.15], "higher_is_better": True}
PROMPTS = ["a red circle", "a blue square"]


def run_of(folder: Path, *overrides: str) -> Path:
    """The folder of a finished run whose weights have moved, as lpo-train leaves it but for what takes time."""
    values = OmegaConf.create(compose("train", [*overrides, *SMALL], [], CONF).values)
    cfg = OmegaConf.create(OmegaConf.to_container(values, resolve=True))
    words = ["/home/somebody/bin/lpo-train", *overrides, f"x.token={SECRET}", SECRET]
    record.start(folder, OmegaConf.to_container(cfg), words)
    policy, _ = policy_of(cfg, Hardware("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.trainable().values():
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    export(policy, folder / "export")
    scores = {"text/alignment": torch.tensor([0.1, 0.2])}
    control = torch.rand(2, 3, 64, 64, generator=generator) if cfg.get("control") else None
    (folder / "evaluation").mkdir()
    Evaluation(scores, control=control).save(folder / "evaluation" / "after.safetensors")
    item_table.write(folder / "evaluation" / "items.parquet", ["0", "1"], PROMPTS, {"after": scores})
    record.finish(folder, {"text/alignment": ROW}, 2, 1.0, {}, 0)
    return folder
