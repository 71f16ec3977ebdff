"""hardware=fsdp: two processes that share every weight train, checkpoint, export and go on as one that has them all."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toys.processes import Job, together

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.options import offered
from lpo_platform.config.signature import attribute
from lpo_platform.models.weights import ASSETS
from lpo_platform.tracking.callbacks.checkpoint import newest

JOBS = {
    "lpo, full": Job("lpo", "full", "fsdp", double=True),
    "cpo, control": Job("cpo", "control", "fsdp", double=True),
}
LONGER = {
    "control, full": Job("control", "full", "fsdp", micro_batch=1, double=True),
    "cpo, dino": Job("cpo", "dino", "fsdp", double=True),
    "ddpo, control": Job("ddpo", "control", "fsdp", double=True, options={"kl": 0.1}),
}
ALL = [*JOBS, *(pytest.param(name, marks=pytest.mark.dist) for name in LONGER)]
LIMITS = {"cpo, dino": (1e-6, 1e-2)}  # DINOv2 resizes its positions in float32
FILES = {"control": "controlnet", "full": "unet"}
STARTS = {"control": "controlnet_canny", "full": "unet"}


def apart(ours: torch.Tensor, theirs: torch.Tensor, origin: torch.Tensor | float = 0.0) -> float:
    return ((ours - theirs).norm() / (theirs - origin).norm()).item()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    """What one process and two found."""
    return {"one": together(JOBS, 1, folder / "1")[0], "two": together(JOBS, 2, folder / "2")}


@pytest.fixture(scope="module")
def resumed(folder: Path) -> dict[str, Any]:
    """`on one` and `on two` go on where the other stopped after 2 of 3 steps."""

    def run(name: str, **options: Any) -> Job:
        return Job("cpo", "control", "fsdp", steps=3, folder=folder / name, double=True, **options)

    one = together({"straight": run("straight"), "stopped": run("one", stop=2)}, 1, folder / "resumed-1")[0]
    together({"stopped": run("two", stop=2)}, 2, folder / "resumed-2")
    for name in ("one", "two"):
        assert len(list((folder / name / "checkpoints").glob("step=*.ckpt"))) == 2
    on_one = together({"on one": replace(run("two"))}, 1, folder / "on-1")[0]
    on_two = together({"on two": replace(run("one"))}, 2, folder / "on-2")
    return {"straight": one["straight"], "on one": [on_one["on one"]], "on two": [of["on two"] for of in on_two]}


@pytest.fixture(scope="module")
def longer(folder: Path) -> dict[str, Any]:
    """The same of what `make test` leaves out."""
    one = together(LONGER, 1, folder / "longer-1")[0]
    return {"one": one, "two": together(LONGER | {"gradients": checkpointed()}, 2, folder / "longer-2")}


@pytest.fixture
def either(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    return request.getfixturevalue("longer" if name in LONGER else "found")


def checkpointed() -> Job:
    return replace(LONGER["control, full"], checkpointing=True)


@pytest.mark.parametrize("name", ALL)
def test_sharded_weights_take_the_same_steps(either: dict, name: str) -> None:
    one, (gradient, weights) = either["one"][name], LIMITS.get(name, (1e-12, 1e-11))
    for process in (process[name] for process in either["two"]):
        assert len(process["gradients"]) == len(one["gradients"]) >= 2
        for ours, theirs in zip(process["gradients"], one["gradients"], strict=True):
            assert theirs.norm() > 0 and apart(ours, theirs) < gradient
        assert apart(process["weights"], one["weights"], one["start"]) < weights


@pytest.mark.parametrize("name", ALL)
def test_each_process_holds_its_half(either: dict, name: str) -> None:
    total = either["one"][name]["weights"].numel()
    held = [process[name]["held"] for process in either["two"]]
    assert either["one"][name]["held"] == total
    assert max(held) < 0.6 * total and sum(held) == total


@pytest.mark.dist
def test_gradient_checkpointing_changes_nothing(longer: dict) -> None:
    for process in longer["two"]:
        for ours, theirs in zip(process["gradients"]["gradients"], process["control, full"]["gradients"], strict=True):
            assert apart(ours, theirs) < 1e-12


@pytest.mark.dist
@pytest.mark.parametrize("name", ["on one", "on two"])
def test_a_run_goes_on_with_shared_or_whole_weights(resumed: dict, name: str) -> None:
    """Weights and moving average, from the other's checkpoint; the average is kept in float32."""
    straight = resumed["straight"]
    for process in resumed[name]:
        assert len(process["gradients"]) == 1
        assert apart(process["weights"], straight["weights"], straight["start"]) < 1e-11
        assert apart(process["average"], straight["average"], straight["start"]) < 1e-5


@pytest.mark.dist
def test_checkpoints_hold_whole_tensors(resumed: dict, folder: Path) -> None:
    one, two = (torch.load(newest(folder / name / "checkpoints"), weights_only=True) for name in ("straight", "one"))
    for part in ("state_dict", "optimizer_states", "callbacks"):
        assert shapes(one[part]) == shapes(two[part])


def shapes(value: Any) -> Any:
    """A checkpoint's structure, its tensors as their shapes."""
    if isinstance(value, dict):
        return {key: shapes(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shapes(inner) for inner in value]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value)


@pytest.mark.dist
@pytest.mark.parametrize("suffix", ["", "_ema"])
def test_exports_are_those_of_one_process(resumed: dict, folder: Path, suffix: str) -> None:
    file = Path("export") / f"controlnet{suffix}" / "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(folder / "one" / file), load_file(folder / "straight" / file)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    configs = [(folder / run / file).with_name("config.json").read_text() for run in ("one", "straight")]
    assert configs[0] == configs[1]


FSDP = ["hardware=fsdp", "hardware.devices=2"]
REASONS = {
    f"{group}.{setting}" if setting else f"{group}={option}": reason
    for group in ("tune", "optim", "hardware", "method")
    for option, target in offered(group)
    for setting, reason in (attribute(target, "unsharded") or {}).items()
}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=lpo", "tune=lora"], "tune=lora"),
        (["method=lrm"], "tune=reward"),
        (["method=lpo", "tune=full", "tune.text_encoder=true"], "tune.text_encoder"),
        (["optim=adafactor"], "optim=adafactor"),
        (["optim=adamw8bit"], "optim=adamw8bit"),
        (["hardware.precision=16-mixed"], "hardware.precision=16-mixed"),
        (["hardware.compile=true"], "hardware.compile"),
        (["method=lpo", "tune=full", "method.refresh_reward=5"], "method.refresh_reward"),
    ],
)
def test_what_cannot_be_sharded_is_refused_with_the_reason(overrides: list[str], reason: str) -> None:
    (line,) = diagnose("train", [*overrides, *FSDP])
    assert line.endswith(f" with hardware=fsdp: {REASONS[reason]}") and line.startswith(reason.split("=")[0])
    assert diagnose("train", [*overrides, *FSDP[:1], "hardware.devices=1"]) == []


def test_every_refusal_is_tested_and_what_works_passes() -> None:
    parameters = test_what_cannot_be_sharded_is_refused_with_the_reason.pytestmark[0].args[1]
    assert {reason for _, reason in parameters} == REASONS.keys()
    for overrides in (["method=cpo"], ["method=lpo", "tune=full"], ["method=ddpo"], ["experiment=ddpo_toy"]):
        assert diagnose("train", [*overrides, *FSDP]) == []


def test_prompts_must_divide_where_every_process_has_to_take_part() -> None:
    assert diagnose("train", ["method=lpo", "tune=full", *FSDP, "method.prompts=7"]) == [
        "method.prompts=7 does not divide among 2 processes, which sharded weights need; nearest: 6 or 8"
    ]


@pytest.mark.dist
@pytest.mark.parametrize("tune", ["full", "control"])
def test_a_sharded_run_of_the_command_line_ends_as_a_whole_one(tmp_path: Path, tune: str) -> None:
    """The embedded model, in two processes each: exports, and what is measured of them.

    With a large epsilon a weight moves in proportion to its gradient, so that rounding stays as small as it is; Adam
    makes a whole step of a gradient that is nothing but rounding.
    """
    branch = ["task=canny"] if tune == "control" else ["control=none", "task=none", "tune=full"]
    more = ["callbacks.every=1", "callbacks.samples=2", "hardware.accelerator=cpu", "hardware.devices=2"]
    more += ["optim.eps=1", "optim.lr=1", "optim.weight_decay=0"]
    command = [sys.executable, str(Path(__file__).parents[2] / "launchers" / "train.py"), "method=control", *branch]
    found = []
    for hardware in ("ddp", "fsdp"):
        run = [*command, "debug=smoke", f"hardware={hardware}", *more, f"hydra.run.dir={hardware}"]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        file = Path("export") / FILES[tune] / "diffusion_pytorch_model.safetensors"
        metrics = json.loads((tmp_path / hardware / "result.json").read_text())["metrics"]
        found.append((load_file(tmp_path / hardware / file), {name: m["after"] for name, m in metrics.items()}))
    (whole, expected), (sharded, measured) = found
    assert sharded.keys() == whole.keys()
    start = load_file(ASSETS / "tiny" / STARTS[tune] / "diffusion_pytorch_model.safetensors")
    assert max((value - start[name]).abs().max() for name, value in whole.items()) > 1e-3
    for name, value in whole.items():
        torch.testing.assert_close(sharded[name], value, rtol=0, atol=1e-6)
    assert measured == pytest.approx(expected, rel=0.02, abs=0.01)
