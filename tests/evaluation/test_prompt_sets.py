"""Pictures for GenEval's and T2I-CompBench's scorers, through the command: layout, noise, resume and refusals."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image
from toys.instances import first

from lpo_platform.commands import main
from lpo_platform.config.schema import CONF
from lpo_platform.diffusion.noise import normal
from lpo_platform.models.weights import ASSETS

PROMPTS = ["a red circle", "a blue square"]
OPTIONS = ["run=run", "hardware=cpu", "what.weights=start", "what.num_steps=2", "hydra.run.dir=out"]
GENEVAL = ["what=geneval", "what.metadata=metadata.jsonl", "what.pictures=2", *OPTIONS]
COMPBENCH = ["what=t2i_compbench", "what.prompts=color_val.txt", "what.pictures=2", *OPTIONS]
Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """lpo-eval beside a run without a ControlNet, GenEval's metadata and T2I-CompBench's prompts."""
    monkeypatch.chdir(tmp_path)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = ["control=none", "tune=lora", "method=ddpo", "task=none", "reward=toy", "data=toy_prompts"]
        OmegaConf.save(hydra.compose("train", chosen), Path("resolved.yaml"), resolve=True)
    Path("run").mkdir()
    Path("resolved.yaml").rename("run/resolved.yaml")
    metadata("metadata.jsonl", PROMPTS)
    Path("color_val.txt").write_text("\n".join(f"{prompt}\tcolor" for prompt in PROMPTS) + "\n")

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["lpo-eval", *words])
        with pytest.raises(SystemExit) as end:
            main.evaluate()
        return end.value.code

    return run


def metadata(file: str, prompts: list[str]) -> None:
    rows = [{"tag": "colors", "include": [{"class": "circle", "count": 1}], "prompt": prompt} for prompt in prompts]
    Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))


def drawn(folder: Path | str) -> dict[str, np.ndarray]:
    files = sorted(Path(folder).rglob("*.png"))
    return {str(file.relative_to(folder)): np.array(Image.open(file)).astype(int) for file in files}


def test_geneval(command: Command) -> None:
    """Its scorer reads every folder whose name is a number: metadata.jsonl as one object, samples/<number>.png."""
    assert command(*GENEVAL, "what.save=images", "what.guidance=2.0", "what.batch=3") == 0
    first = drawn("images")
    assert list(first) == [f"0000{i}/samples/000{j}.png" for i in range(2) for j in range(2)]
    folders = sorted(place for place in Path("images").iterdir() if place.is_dir() and place.name.isdigit())
    found = [json.loads((place / "metadata.jsonl").read_text()) for place in folders]
    assert found == [json.loads(line) for line in Path("metadata.jsonl").read_text().splitlines()]
    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / "tiny", safety_checker=None, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for number, prompt in enumerate(PROMPTS):
        size = (pipeline.unet.config.in_channels, *[64 // pipeline.vae_scale_factor] * 2)
        start = normal([f"1/{prompt}"], size, seed=0, stream="geneval")
        stock = pipeline(prompt, num_inference_steps=2, guidance_scale=2.0, latents=start, height=64, width=64)
        assert abs(np.array(stock.images[0]).astype(int) - first[f"0000{number}/samples/0001.png"]).max() <= 1
    # more prompts, before and after: what is there stays, unless its prompt has changed
    times = {file: file.stat().st_mtime_ns for file in Path("images").rglob("*.png")}
    Path("images/00001/samples/0000.png").unlink()
    metadata("metadata.jsonl", [*PROMPTS, "a green ring"])
    assert command(*GENEVAL, "what.save=images", "what.guidance=2.0", "what.batch=1") == 0
    again = drawn("images")
    assert len(again) == 6 and abs(again["00001/samples/0000.png"] - first["00001/samples/0000.png"]).max() <= 1
    times.pop(Path("images/00001/samples/0000.png"))
    assert times == {file: file.stat().st_mtime_ns for file in times}
    metadata("metadata.jsonl", ["a green ring", *PROMPTS])
    assert command(*GENEVAL, "what.save=images", "what.guidance=2.0") == 2


def test_t2i_compbench(command: Command) -> None:
    """Its scorers list samples/, take the prompt up to the first underscore and the number after the last."""
    assert command(*COMPBENCH, "what.save=color") == 0
    names = [file.name for file in Path("color/samples").iterdir()]
    assert sorted(int(re.split("_|[.]", name)[-2]) for name in names) == [0, 1, 2, 3]
    assert [name.split("_")[0] for name in sorted(names, key=lambda n: int(n[-10:-4]))] == sorted(PROMPTS * 2)[::-1]
    pictures = drawn("color")
    assert abs(pictures["samples/a red circle_000000.png"] - pictures["samples/a red circle_000001.png"]).max() > 8


@pytest.mark.parametrize(
    ("words", "file", "text", "said"),
    first(
        [
            (
                GENEVAL,
                "metadata.jsonl",
                '{"prompt": "a"}\n',
                "metadata=metadata.jsonl: line 1 is no JSON object with prompt",
            ),
            (GENEVAL, "metadata.jsonl", "\n", "metadata=metadata.jsonl: an empty file"),
            (
                COMPBENCH,
                "color_val.txt",
                "a\nred/blue circle\n",
                "prompts=color_val.txt: line 2 cannot be the name of a file",
            ),
            (
                COMPBENCH,
                "color_val.txt",
                "a red_circle\n",
                "prompts=color_val.txt: line 1 cannot be the name of a file",
            ),
            (
                COMPBENCH,
                "color_val.txt",
                "a" * 250 + "\n",
                "prompts=color_val.txt: line 1 cannot be the name of a file",
            ),
        ],
        keep=3,
    ),
)
def test_what_is_no_set_of_prompts_is_refused(
    command: Command, words: list[str], file: str, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(file).write_text(text)
    assert command(*words, "what.save=save") == 2 and not Path("save").exists()
    assert f"lpo-eval: what: {said}" in capsys.readouterr().err


def test_a_run_with_a_control_net_is_refused(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        OmegaConf.save(hydra.compose("train", ["method=cpo"]), Path("run/resolved.yaml"), resolve=True)
    assert command(*GENEVAL, "what.save=save") == 2
    assert "with a ControlNet; what works: a run with control=none" in capsys.readouterr().err
