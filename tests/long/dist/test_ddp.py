"""hardware=ddp and fsdp: 1, 2 and 4 processes take the same steps, and one number goes on where another has stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys.processes import Job, together

from lpo_platform.config.batch_size import batch_problem
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.methods.method import Method
from lpo_platform.methods.optim import AdamW, AdamW8bit

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]

JOBS = {
    "lrm": Job("lrm"),
    "lpo": Job("lpo", "lora", options={"moved": 0.0}),
    "cpo": Job("cpo", "control", options={"pretrain_weight": 1.0}),
    # a row at a time on any number of processes: torch rounds DINOv2 otherwise in larger batches
    "cpo, dino": Job("cpo", "dino", micro_batch=1, options={"pretrain_weight": 1.0}),
    # some processes have no sample that is rewarded
    "control_reward": Job("control_reward", "control", options={"max_timestep": 400, "reward_weight": 10.0}),
    "control": Job("control", "full"),
    "control, in micro-batches of 1": Job("control", "lora", micro_batch=1),
    "ddpo": Job("ddpo", "full", options={"guidance": 1.0, "fraction": 0.5}),
    "lpo, flow": Job("lpo", "lora", model="tiny_sd3", options={"threshold": (0.0, 0.0), "beta": 20.0}),
    "nft, flow": Job("nft", "full", model="tiny_sd3", options={"group": 2, "task": None}),
    "nft, flow, sharded": Job("nft", "full", "fsdp", model="tiny_sd3", options={"group": 2, "task": None}),
}
DOUBLE = {
    "lpo": Job("lpo", "lora", double=True),
    "cpo": Job("cpo", "control", double=True),
    "cpo, dino": Job("cpo", "dino", micro_batch=1, double=True, options={"pretrain_weight": 1.0}),
    "control": Job("control", "full", double=True),
    "control, in micro-batches of 1": Job("control", "lora", micro_batch=1, double=True),
    "ddpo": Job("ddpo", "full", double=True),
}
EXACT = {f"{name}, float64": job for name, job in DOUBLE.items()}
# what is logged is that of a micro-batch, so it is compared where that is a process's whole share
LOGGED = {name: job for name, job in JOBS.items() if job.micro_batch is None}
LOGGED["cpo, dino, at once"] = replace(JOBS["cpo, dino"], micro_batch=None)
MICRO = "hardware.micro_batch=4 does not divide"
WITHIN = 3e-3
"""Final weights in float32: the distance between two runs by how far the weights have moved. Adam divides a gradient by
its size, so that rounding decides the direction of a weight whose gradient is nearly 0."""


def apart(ours: Tensor, theirs: Tensor, origin: Tensor | float = 0.0) -> float:
    return ((ours - theirs).norm() / (theirs - origin).norm()).item()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """By number of processes what each of them found. A run of 2 is stopped, and 1 process goes on, and the reverse."""
    folder = tmp_path_factory.mktemp("ddp")
    early = {
        f"{n} stopped": Job("lpo", "full", steps=3, stop=2, double=True, folder=folder / f"run-{n}") for n in (1, 2)
    }
    straight = {"straight": Job("lpo", "full", steps=3, double=True, folder=folder / "straight")}
    first = {
        1: together(JOBS | LOGGED | EXACT | straight | {"stopped": early["1 stopped"]}, 1, folder / "1"),
        2: together(JOBS | LOGGED | EXACT | {"stopped": early["2 stopped"]}, 2, folder / "2"),
        4: together(JOBS | LOGGED | EXACT, 4, folder / "4"),
    }
    on = {n: {"resumed": replace(early[f"{3 - n} stopped"], stop=None)} for n in (1, 2)}
    for n, jobs in on.items():
        later = together(jobs, n, folder / f"on-{n}")
        first[n] = [before | after for before, after in zip(first[n], later, strict=True)]
    return first


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", JOBS)
def test_any_number_of_processes_takes_the_same_steps(found: dict, name: str, size: int) -> None:
    """In float32 the gradients before the first update to 1e-5; what follows depends on weights that Adam has moved."""
    (one,) = found[1]
    one, many = one[name], [process[name] for process in found[size]]
    assert one["gradients"][0].norm() > 0 and not torch.equal(one["weights"], one["start"])
    for process in many:
        assert len(process["gradients"]) == len(one["gradients"]) >= 2
        assert torch.equal(process["start"], one["start"])
        assert apart(process["gradients"][0], one["gradients"][0]) < 1e-5
        assert apart(process["weights"], one["weights"], one["start"]) < WITHIN
        assert torch.equal(process["weights"], many[0]["weights"])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", EXACT)
def test_nothing_but_rounding_tells_the_numbers_of_processes_apart(found: dict, name: str, size: int) -> None:
    (one,) = found[1]
    one = one[name]
    for process in (process[name] for process in found[size]):
        for ours, theirs in zip(process["gradients"], one["gradients"], strict=True):
            assert apart(ours, theirs) < 1e-12
        assert apart(process["weights"], one["weights"], one["start"]) < 1e-11


@pytest.mark.parametrize("name", LOGGED)
def test_what_is_logged_is_the_mean_over_all_samples(found: dict, name: str) -> None:
    one, *several = (found[size][0][name]["logged"][0] for size in (1, 2, 4))
    for logged in (one, *several):
        logged.pop("cpo/implicit_accuracy", None)  # policy and reference are equal yet, so that rounding decides it
    assert {"train/loss", "train/grad_norm"} <= one.keys()
    for logged in several:
        assert logged == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("size", [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(found: dict, size: int) -> None:
    """Weights and moving average, after two rounds on the other number and one more on this."""
    (one,) = found[1]
    straight, limits = one["straight"], {"weights": 1e-11, "average": 1e-5}  # the average is kept in float32
    for process in found[size]:
        resumed = process["resumed"]
        assert len(resumed["gradients"]) == len(straight["gradients"]) / 3
        for part in ("weights", "average"):
            assert apart(resumed[part], straight[part], straight["start"]) < limits[part]


def test_a_step_is_cut_into_equal_parts() -> None:
    eight = Hardware("cpu", micro_batch=4, strategy="ddp", devices=4, num_nodes=2)
    assert eight.split(64) == (4, 2)
    assert eight.arithmetic(64) == "64 samples a step = 8 processes x 2 micro-batches of 4"
    assert Hardware("cpu").arithmetic(16) == "16 samples a step = 1 process x 1 micro-batch of 16"
    with pytest.raises(UserError, match=r"method.batch=60 does not divide among 8 processes; nearest: 56 or 64"):
        eight.split(60)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "problem"),
    [
        (16, None, 4, None),
        (16, 2, 4, None),
        (16, 8, 4, None),
        (3, None, 4, "method.batch=3 does not divide among 4 processes; nearest: 4"),
        (10, None, 4, "method.batch=10 does not divide among 4 processes; nearest: 8 or 12"),
        (24, 4, 4, f"{MICRO} the 6 of method.batch=24 on each process; these do: 1, 2, 3, 6"),
        (6, 4, 1, f"{MICRO} method.batch=6; these do: 1, 2, 3, 6"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused_with_sizes_that_do(
    batch: int, micro: int | None, processes: int, problem: str | None
) -> None:
    assert batch_problem(batch, micro, processes) == problem


def test_the_check_knows_the_processes() -> None:
    ddp = ["hardware=ddp", "hardware.devices=3"]
    assert diagnose("train", [*ddp, "method.batch=16"]) == [
        "method.batch=16 does not divide among 3 processes; nearest: 15 or 18"
    ]
    assert diagnose("train", ["method=lpo", *ddp, "method.batch=12", "method.prompts=2"]) == [
        "method.prompts=2: a round needs at least one for each of 3 processes"
    ]
    assert diagnose("train", ["hardware=cpu", "hardware.devices=2"]) == [
        "hardware=cpu is one process, not 2 on 1 nodes; add hardware=ddp hardware.devices=2"
    ]
    assert diagnose("train", ["hardware=ddp", "hardware.devices=0"]) == ["hardware.devices=0: must be at least 1"]


def test_processes_that_nobody_has_started_are_not_waited_for() -> None:
    with pytest.raises(UserError, match="2 processes, but 1 started"):
        Hardware("cpu", strategy="ddp", devices=2).join()


class Steep(Method):
    """A loss whose gradient is (300, 400)."""

    needs = ()

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.policy.weight[0] * torch.tensor([300.0, 400.0])).sum(), {}


class Line(nn.Linear):
    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


@pytest.mark.parametrize("fused", [False, True])
def test_half_precision_clips_what_has_been_unscaled(fused: bool, tmp_path: Path) -> None:
    """With a real scaler, on the CPU: the weights are those of a run without, also where the optimiser is fused."""
    import lightning as L
    from lightning.pytorch.plugins import MixedPrecision

    class Fused(AdamW):
        def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, lr=0.1, fused=fused)

    weights = []
    for scaled in (False, True):
        torch.manual_seed(0)
        step = Steep(policy=Line(2, 1, bias=False), optim=Fused(clip=1.0), seed=0, steps=2, batch=1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if scaled else []
        trainer = L.Trainer(
            accelerator="cpu", max_epochs=2, plugins=plugins, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(step, torch.utils.data.DataLoader([{"position": torch.zeros(1)}], batch_size=None))
        weights.append(step.policy.weight.detach()[0])
    start = weights[0] + 2 * 0.1 * torch.tensor([0.6, 0.8])  # two steps of length 0.1 along (3, 4) / 5
    torch.manual_seed(0)
    torch.testing.assert_close(Line(2, 1, bias=False).weight.detach()[0], start, atol=1e-4, rtol=0)
    torch.testing.assert_close(weights[1], weights[0], atol=1e-4, rtol=0)


def test_half_precision_is_for_gpus() -> None:
    with pytest.raises(UserError, match=r"hardware.precision=16-mixed: for GPUs only"):
        Hardware("cpu", "16-mixed")
