"""Finished runs and a sweep as the platform leaves them, with drawn pictures and plausible numbers."""

import json
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from lpo_platform.evaluation import item_table
from lpo_platform.evaluation.statistics import compare
from lpo_platform.runs import files, record
from lpo_platform.tracking.report.report import write_report

CHOICES = {"model": "tiny", "method": "cpo", "task": "canny", "control": "controlnet", "data": "toy"}


def scene(generator: np.random.Generator, *, noise: float, seed: int, side: int) -> np.ndarray:
    """A drawn shape, blurred by noise that stands for a model's mistakes: (side, side, 3) uint8."""
    shape = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(int(v) for v in shape.integers(150, 255, 3)))
    draw, color = ImageDraw.Draw(image), tuple(int(v) for v in shape.integers(0, 150, 3))
    x, y, r = (int(v) for v in shape.integers(side // 4, side // 2, 3))
    (draw.ellipse if seed % 2 else draw.rectangle)((x - r // 2, y - r // 2, x + r // 2, y + r // 2), fill=color)
    pixels = np.asarray(image, dtype=np.float64) + generator.normal(0, noise, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def edges(pixels: np.ndarray) -> np.ndarray:
    gray = pixels.astype(np.float64).mean(axis=2)
    strength = np.hypot(*np.gradient(gray))
    return np.repeat(np.where(strength > 18, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def make_run(folder: Path, *, pictures: int = 16, side: int = 64, steps: int = 300, count: int = 128) -> Path:
    """A finished run as the platform leaves it, with plausible numbers."""
    generator = np.random.default_rng(0)
    config = {
        "name": None, "seed": 0, "resume": None,
        "model": {"_target_": "lpo_platform.models.tiny.stable_diffusion.load", "resolution": side, "guidance": 3.0},
        "task": {"_target_": "lpo_platform.tasks.canny.Canny", "low": 0.1, "high": 0.2},
        "method": {"_target_": "lpo_platform.methods.cpo.CPO", "loss": "hard", "beta": 2500.0, "steps": steps},
        "optim": {"lr": 1e-05},
    }  # fmt: skip
    record.start(folder, config, ["/somewhere/bin/lpo-train", "method=cpo", "task=canny", "optim.lr=1e-5"])
    (folder / ".hydra").mkdir()
    record.write_json(folder / ".hydra" / "hydra.yaml", {"hydra": {"runtime": {"choices": CHOICES}}})

    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            noise = generator.normal(0, 0.06)
            row = {"step": step, "time": step * 0.3, "epoch": step // 50}
            row |= {"train/loss": 0.35 + 0.4 * np.exp(-step / 60) + noise, "train/grad_norm": 0.2 + abs(noise)}
            row |= {"train/lr": 1e-5 * min(1, step / 30), "cpo/difference": -0.002 * step / steps + noise / 50}
            row |= {"cpo/implicit_accuracy": 0.5 + 0.4 * (1 - np.exp(-step / 80)) + noise / 2}
            row |= {"perf/train_seconds": 0.29, "perf/images_per_second": 52.0 + noise}
            file.write(json.dumps(row) + "\n")

    base = generator.beta(5, 5, count)
    f1 = (base, (base + generator.normal(0.06, 0.09, count)).clip(0, 1))
    text = generator.beta(8, 3, count)
    alignment = (text, (text + generator.normal(0.0, 0.05, count)).clip(0, 1))
    before = {"canny/f1": f1[0], "text/alignment": alignment[0], "image/distance": 40 * f1[0]}
    after = {"canny/f1": f1[1], "text/alignment": alignment[1], "image/distance": 40 * f1[0] + 1 + 3 * (f1[1] - f1[0])}
    better = {"canny/f1": True, "text/alignment": True, "image/distance": False}
    captions = [f"a large {['red', 'blue', 'green'][i % 3]} circle left of a small square" for i in range(count)]
    sides = {"before": before, "after": after}
    item_table.write(folder / "evaluation" / "items.parquet", [f"{i:05d}" for i in range(count)], captions, sides)

    for i in range(pictures):
        clean = scene(generator, noise=0, seed=i, side=side)
        drawn = {
            "before": scene(generator, noise=22, seed=i, side=side),
            "after": scene(generator, noise=7, seed=i, side=side),
        }
        all_pictures = {"condition": edges(clean), **drawn, **{f"detected_{n}": edges(p) for n, p in drawn.items()}}
        for name, pixels in all_pictures.items():
            (folder / "samples" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "samples" / name / f"{i}.png")

    metrics = compare(before, after, better, resamples=500)
    record.finish(folder, metrics, count, 148.2, {"export": folder / "export"}, seed=0)
    return folder


def make_sweep(folder: Path) -> Path:
    """Two settings with two seeds each, whose canny/f1 rises by 0, 0.02 and 0.04, 0.06, and a failed job."""
    for number, (beta, seed) in enumerate([(9, 0), (9, 1), (500, 0), (500, 1), ("9 0", 0)]):
        job = make_run(folder / f"{number}-cpo", pictures=2, side=32, steps=3, count=6)
        OmegaConf.save([f"method.beta={beta}", "task=canny", f"seed={seed}"], job / ".hydra" / "overrides.yaml")
        hydra = {"job": {"num": number, "name": "train"}, "runtime": {"choices": CHOICES}}
        OmegaConf.save({"hydra": hydra}, job / ".hydra" / "hydra.yaml")
        (job / ".hydra" / "config.yaml").write_text((job / "resolved.yaml").read_text())
        result = files.read_json(job / "result.json") | {"seed": seed}
        rise = number / 50  # without an error of its own, so that the seeds alone make the interval
        result["metrics"]["canny/f1"] |= {"before": 0.4, "after": 0.4 + rise, "ci95": [rise, rise]}
        record.write_json(job / "result.json", result)
        write_report(job)
    record.fail(job, "beta: <not> a number")
    record.write_json(folder / "sweep.json", {})
    return folder
