"""Whole jobs on the pretended GPU, a few of those of the grid (tests/long/pretended); the longer ones run with it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from toys.grid import PRECISIONS, Cell
from toys.instances import first
from toys.pretended_cuda import pretended_cuda
from toys.whole_runs import configured, train, whole

from lpo_platform.commands.doctor.doctor import examine
from lpo_platform.commands.job import assemble
from lpo_platform.commands.plan.bytes import frozen
from lpo_platform.methods.reward_refresh import Refresh
from lpo_platform.tasks import toy_detector


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with a pretended GPU, and a current folder for the run's caches."""
    monkeypatch.chdir(tmp_path)
    with pretended_cuda():
        yield tmp_path
    toy_detector.toy_detector.cache_clear()  # its weights stay on the device that it was used on


JOBS = [
    Cell("tiny", ("method=cpo",), "16-mixed"),
    pytest.param(Cell("tiny", ("method=lpo", "tune=lora"), "bf16-mixed"), marks=pytest.mark.pretended),
    pytest.param(
        Cell("tiny_flux", ("method=control", "hardware.gradient_checkpointing=true"), "bf16-mixed"),
        marks=pytest.mark.pretended,
    ),
    pytest.param(
        Cell("sdxl", ("method=diffusion_dpo", "tune.text_encoder=true"), "16-mixed"), marks=pytest.mark.pretended
    ),
]


@pytest.mark.parametrize("cell", JOBS, ids=str)
def test_a_job_runs_resumes_and_is_evaluated(cell: Cell, gpu: Path) -> None:
    metrics = whole(configured("hardware=gpu", *cell.line(gpu)), gpu / "run")
    assert all(metric["before"] == metric["before"] for metric in metrics.values())


@pytest.mark.pretended
def test_a_round_without_a_pair_changes_nothing(gpu: Path) -> None:
    """And the gradient scaler is as it was: the next round trains."""
    line = ("hardware=gpu", "hardware.precision=16-mixed", "method=lpo", "tune=lora", "callbacks.ema_decay=null")
    cfg = configured(*line, "method.threshold=[1e9,1e9]")
    train(cfg, gpu / "run")
    job = assemble(cfg)
    checkpoint = torch.load(sorted((gpu / "run" / "checkpoints").iterdir())[-1], weights_only=True)
    weights = {name.removeprefix("policy."): weight.cpu() for name, weight in checkpoint["state_dict"].items()}
    assert all(torch.equal(weight.cpu(), weights[name]) for name, weight in job.policy.trainable().items())


OTHERS = [pytest.param(precision, marks=pytest.mark.pretended) for precision in ("32-true", "bf16-mixed")]


@pytest.mark.parametrize("precision", ["16-mixed", *OTHERS])
@pytest.mark.parametrize(
    "words",
    first(
        [
            ["method=cpo"],
            ["method=lpo"],
            ["method=lpo", "tune=lora"],
            ["method=lpo", "tune=lora", "tune.merged=true"],
            ["method=diffusion_dpo", "tune.text_encoder=true"],
            ["model=sdxl", "method=diffusion_dpo", "tune.text_encoder=true"],
            ["method=lrm"],
        ],
        keep=4,
    ),
)
def test_frozen_weights_take_the_bytes_that_the_plan_counts(words: list[str], precision: str, gpu: Path) -> None:
    xl = Cell("sdxl", words[1:], precision).line(gpu) if words[0] == "model=sdxl" else words
    policy = assemble(configured("hardware=gpu", *xl, f"hardware.precision={precision}")).policy
    parts = {id(part): part for part in (*policy.adapter.parts, *policy.learning.values())}.values()
    weights = {id(weight): weight for part in parts for weight in part.parameters()}.values()
    still = [weight for weight in weights if not weight.requires_grad]
    dtype = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}[precision]
    assert sum(w.numel() * w.element_size() for w in still) == frozen(policy, dtype)
    assert all(weight.is_cuda for weight in weights)
    assert all(weight.dtype == torch.float32 for weight in policy.trainable().values())


class Area(nn.Module):
    """A labeller with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images: torch.Tensor, prompts: list[str], condition: None = None) -> torch.Tensor:
        return (images.mean((2, 3)) * self.weight).sum(1)


def test_a_labeller_with_weights_is_where_the_pictures_are(gpu: Path) -> None:
    """Of pairs that the policy draws as data, and of those that refresh a reward model."""
    job = assemble(configured("hardware=gpu", "hardware.precision=bf16-mixed", "method=lrm"))
    job.data.labeller = Area()
    rows = job.preferences("train")
    assert len(rows) > 0 and job.data.labeller.weight.is_cuda
    lpo = assemble(configured("hardware=gpu", "hardware.precision=bf16-mixed", "method=lpo"))
    refresh = Refresh(Area, num_images=2, steps=1, batch=2)
    with lpo.hardware.autocast():
        found = refresh(lpo.reward, lpo.policy, ["a red circle", "a blue square"], lpo.sampling, key="0")
    assert all(value.isfinite() for value in found.values())


def test_what_one_precision_has_computed_another_does_not_read(gpu: Path) -> None:
    words = ("hardware=gpu", "method=control")
    jobs = [assemble(configured(*words, f"hardware.precision={precision}")) for precision in PRECISIONS]
    folders = {str(job.rows().store.folder) for job in jobs}
    assert len(folders) == len(PRECISIONS)


def test_mixed_precision_on_a_cpu_reads_what_is_kept_in_another_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    metrics = train(configured("hardware=cpu", "hardware.precision=bf16-mixed", "method=lrm"), tmp_path / "run")
    assert "lrm/pair_accuracy" in metrics


@pytest.mark.pretended
def test_the_doctor_finds_nothing(gpu: Path) -> None:
    cfg = configured("hardware=gpu", "hardware.precision=16-mixed", "method=cpo")
    found = list(examine(cfg, gpu / "doctor"))
    assert len(found) > 8 and [finding for finding in found if finding.state == "FAILED"] == []
