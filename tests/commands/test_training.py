"""Whole runs of the embedded tiny model through the command line: result, export, and resuming after being killed."""

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys.forked import Training

from lpo_platform.data.toy import Toy
from lpo_platform.evaluation import item_table

SMALL = [
    "method.steps=6", "method.batch=4", "callbacks.every=2", "callbacks.samples=2", "metrics.num_samples=6",
    "data.num_train=12", "data.num_test=8", "logger=none",
]  # fmt: skip


def start(folder: Path, *more: str) -> Training:
    words = ["method=cpo", "task=canny", *SMALL, *more]
    return Training(words, folder, OMP_NUM_THREADS="1", WANDB_MODE="offline")


def run_folders(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "outputs" / "cpo-tiny-canny").glob("2*") if p.is_dir())


def exported(folder: Path, name: str = "controlnet") -> dict[str, torch.Tensor]:
    return load_file(folder / "export" / name / "diffusion_pytorch_model.safetensors")


def steps(folder: Path) -> list[int]:
    """The logged training steps, in the order of the file."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "train/loss" in line]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("straight")
    done = start(folder, "+trainer.profiler=simple", "+trainer.detect_anomaly=true")  # which change no weight
    assert done.wait() == 0, done.said
    assert "canny/f1" in done.said and "report.html" in done.said
    return run_folders(folder)[0]


def test_run_folder_holds_the_result(straight: Path) -> None:
    result = json.loads((straight / "result.json").read_text())
    assert result["status"] == "finished" and result["samples"] == 6
    assert set(result["metrics"]) == {"canny/f1", "canny/f1_above_chance", "text/alignment", "image/latent_fd"}
    for metric in result["metrics"].values():
        low, high = metric["ci95"]
        assert low <= metric["difference"] <= high
        assert metric["difference"] == pytest.approx(metric["after"] - metric["before"], abs=1e-6)
    assert steps(straight) == list(range(6))
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss", "train/grad_norm", "cpo/weight"} <= set().union(*lines)
    assert lines[-1]["perf/train_seconds"] > 0
    rows = item_table.read(straight / "evaluation" / "items.parquet")
    assert len(rows) == 6 and {"id", "caption", "canny/f1/before", "canny/f1/after"} <= set(rows[0])
    assert (straight / "report.html").stat().st_size > 10_000
    assert (straight / "samples" / "grid.png").exists()
    assert "optimizer_step" in (straight / "fit-profile.txt").read_text()


def test_a_killed_run_resumes_to_the_same_weights(straight: Path, tmp_path: Path) -> None:
    """SIGKILL after the first checkpoint, then resume=auto: bit for bit the weights of the undisturbed run."""
    process = start(tmp_path, "resume=auto")
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("outputs/cpo-tiny-canny/2*/checkpoints/step=00000002.ckpt")):
        assert process.runs() and time.monotonic() < deadline, "no checkpoint before the run ended"
        time.sleep(0.02)
    assert process.kill() == -signal.SIGKILL
    (folder,) = run_folders(tmp_path)
    assert not (folder / "export").exists()
    done = start(tmp_path, "resume=auto")
    assert done.wait() == 0, done.said
    assert run_folders(tmp_path) == [folder]
    for name in ("controlnet", "controlnet_ema"):
        ours, theirs = exported(folder, name), exported(straight, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert steps(folder) == list(range(6))
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in (folder, straight)]
    assert results[0] == results[1]


def test_stock_diffusers_draws_our_picture_from_the_export(straight: Path) -> None:
    """from_pretrained needs none of our code, and its pipeline repeats our sampling loop."""
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    from lpo_platform.diffusion.noise import normal
    from lpo_platform.models.adapter import Condition
    from lpo_platform.models.policy import Policy
    from lpo_platform.models.sampling import Sampling, sample_latents
    from lpo_platform.models.stable_diffusion import StableDiffusion
    from lpo_platform.models.tuning import Control
    from lpo_platform.models.weights import ASSETS
    from lpo_platform.tasks.canny import Canny

    control = ControlNetModel.from_pretrained(straight / "export" / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        ASSETS / "tiny", controlnet=control, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    sample = Toy(num_train=4, num_test=2, resolution=64).test[0]
    image = Canny().render(Canny().detect(sample.image[None]))
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=3.0, num_inference_steps=8)
    policy = Policy(adapter, Control(), control)
    condition = Condition(adapter.embed(adapter.tokenize([sample.caption])), image)
    ours = sample_latents(policy, condition, [sample.id], Sampling(8, guidance=3.0), seed=0, stream="test")
    start = normal([sample.id], adapter.latent_shape, seed=0, stream="test")
    theirs = pipeline(
        sample.caption, image, num_inference_steps=8, guidance_scale=3.0, latents=start, output_type="latent"
    ).images
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
