"""Pictures of a CSV by the model of a run, through the command: stock diffusers' pictures, each of them drawn once."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline
from omegaconf import OmegaConf
from PIL import Image

from lpo_platform.commands import main
from lpo_platform.config.schema import CONF
from lpo_platform.diffusion.noise import normal
from lpo_platform.models.weights import ASSETS

ROWS = {"0.png": "a red circle", "sub/1.png": "a blue square", "2.png": "a green triangle", "broken.png": "nothing"}
WORDS = ["run=run", "what=generate", "what.csv=rows.csv", "what.conditions=conditions", "what.num_steps=3"]
Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """lpo-eval beside a table and a run that has moved the weights of its ControlNet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conditions" / "sub").mkdir(parents=True)
    for index, name in enumerate(ROWS):
        noise = np.random.default_rng(index).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"conditions/{name}")
    Path("conditions/broken.png").write_bytes(b"no picture")
    lines = ["file,prompt", *(f"{name},{prompt}" for name, prompt in ROWS.items()), "gone.png,nobody"]
    Path("rows.csv").write_text("\n".join(lines) + "\n")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = ["control=controlnet", "tune=control", "method=control", "task=canny", "callbacks.evaluate=raw"]
        OmegaConf.save(hydra.compose("train", chosen), Path("resolved.yaml"), resolve=True)
    Path("run").mkdir()
    Path("resolved.yaml").rename("run/resolved.yaml")
    control = ControlNetModel.from_pretrained(ASSETS / "tiny" / "controlnet_canny")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in control.parameters():
            weight += 0.02 * torch.randn_like(weight)
    control.save_pretrained("run/export/controlnet")

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lpo-eval", *WORDS, "hardware=cpu", *more])
        with pytest.raises(SystemExit) as end:
            main.evaluate()
        return end.value.code

    return run


def drawn(folder: str) -> dict[str, np.ndarray]:
    return {file.stem: np.array(Image.open(file)).astype(int) for file in Path(folder).glob("*.png")}


def stock(name: str, prompt: str, control: ControlNetModel) -> np.ndarray:
    """What diffusers draws from the noise of this name, guided by 2."""
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        ASSETS / "tiny", controlnet=control, safety_checker=None, torch_dtype=torch.float32
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    condition = Image.open(f"conditions/{name}").resize((64, 64), Image.Resampling.BICUBIC, box=(16, 0, 80, 64))
    size = (pipeline.unet.config.in_channels, *[64 // pipeline.vae_scale_factor] * 2)
    start = normal([Path(name).stem], size, seed=0, stream="generate")
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "latents": start}
    return np.array(pipeline(prompt, condition, **options).images[0]).astype(int)


def test_pictures_are_those_of_diffusers_and_drawn_once(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("what.save=out", "what.guidance=2.0", "what.batch=2") == 0
    said = capsys.readouterr().err
    assert "1 missing in conditions: gone.png" in said and "1 unreadable or truncated: broken.png" in said
    first = drawn("out")
    assert set(first) == {"0", "1", "2"}
    control = ControlNetModel.from_pretrained("run/export/controlnet")
    for name in ("0.png", "sub/1.png"):
        assert abs(first[Path(name).stem] - stock(name, ROWS[name], control)).max() <= 1
    times = {file: file.stat().st_mtime_ns for file in Path("out").glob("[12].png")}
    Path("out/0.png").unlink()
    assert command("what.save=out", "what.guidance=2.0", "what.batch=1") == 0
    assert abs(drawn("out")["0"] - first["0"]).max() <= 1
    assert times == {file: file.stat().st_mtime_ns for file in times}
    assert command("what.save=conditions") == 2  # pictures that it has not drawn
    assert command("what.save=out", "what.guidance=3.0") == 2
    assert "what: save=out: holds pictures drawn otherwise" in capsys.readouterr().err
    assert json.loads(Path("out/manifest.json").read_text())["settings"]["guidance"] == 2.0


@pytest.mark.slow
def test_the_start_another_control_and_another_size(command: Command) -> None:
    """The run's own export, named as another ControlNet, draws as the run does; what it started from does not."""
    of = {"a": "weights=trained", "b": "weights=run/export/controlnet", "c": "weights=start", "d": "resolution=32"}
    for folder, option in of.items():
        assert command(f"what.save={folder}", f"what.{option}") == 0
    trained, other, start, small = (drawn(folder)["1"] for folder in of)
    assert abs(other - trained).max() <= 1 < abs(start - trained).max()
    assert trained.shape == (64, 64, 3) and small.shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "csv=rows.csv: no table of condition images and prompts"),
        ("file,prompt\n0.png\n", "csv=rows.csv: no table of condition images and prompts"),
        ("file,prompt\n0.png,a\na/0.jpg,b\n", "csv=rows.csv: several rows for one picture: 0"),
        ("file,prompt\nx.png,a\n", "conditions=conditions: nothing to draw, it has none of 1 files: x.png"),
    ],
)
def test_a_table_that_is_none_is_refused(
    command: Command, table: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("rows.csv").write_text(table)
    assert command("what.save=out") == 2
    assert f"lpo-eval: what: {said}" in capsys.readouterr().err


def test_a_run_without_a_control_net_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = OmegaConf.load("run/resolved.yaml")
    cfg.control = None
    OmegaConf.save(cfg, "run/resolved.yaml")
    assert command("what.save=out") == 2
    assert "without a ControlNet; what works: a run with control=controlnet" in capsys.readouterr().err
