"""The optimiser: tiny rates in float32, the decay of the average, and the schedules of the released trainings."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lpo_platform.methods.method import Method
from lpo_platform.methods.optim import Adafactor, AdamW, Optim
from lpo_platform.tracking.callbacks.ema import EMA, decay_at


def displacement(weight: float, *, lr: float, gradient: float = 1e-2) -> float:
    """How far the first step moves a weight, in units of lr."""
    parameter = nn.Parameter(torch.tensor([weight]))
    optimizer, _ = AdamW(lr=lr, weight_decay=0.01).build([parameter], steps=1)
    parameter.grad = torch.tensor([gradient])
    optimizer.step()
    return (parameter.item() - torch.tensor([weight]).item()) / lr


@pytest.mark.parametrize(
    ("lr", "weight", "expected"),
    [
        (1e-8, 0.01, -1.024),
        (1e-8, 0.1, -0.745),
        (1e-8, 0.2, -1.490),
        (1e-8, 0.3, 0.0),
        (3e-9, 0.05, -1.242),
        (3e-9, 0.07, 0.0),
    ],
)
def test_float32_loses_tiny_steps(lr: float, weight: float, expected: float) -> None:
    assert displacement(weight, lr=lr) == pytest.approx(expected, abs=1e-3)


def test_weight_decay_is_a_no_op_at_lr_1e_8() -> None:
    weights = nn.Parameter(torch.randn(10_000, generator=torch.Generator().manual_seed(0)))
    before = weights.detach().clone()
    optimizer, _ = AdamW(lr=1e-8, weight_decay=0.01).build([weights], steps=1)
    weights.grad = torch.zeros_like(weights)
    optimizer.step()
    assert torch.equal(weights, before)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_schedule_warms_up_in_optimiser_steps(schedule: str, expected: list[float]) -> None:
    chosen = AdamW(warmup_steps=2, schedule=schedule)
    assert [chosen.factor(step, 6) for step in range(6)] == pytest.approx(expected, abs=1e-4)


LRM_15, LRM_XL = (500, 4000), (1000, 8000)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (
            LRM_15,
            {0: 0, 1: 1.115e-6, 9: 3.705e-6, 99: 7.410e-6, 249: 8.885e-6, 500: 1e-5, 2250: 5e-6, 3999: 2.857e-9},
        ),
        (LRM_XL, {0: 0, 1: 1.003e-6, 99: 6.667e-6, 499: 8.997e-6, 1000: 1e-5, 4500: 5e-6}),
    ],
)
def test_rates_of_lrm_training(run: tuple[int, int], expected: dict[int, float]) -> None:
    """The rates of DeepSpeed's WarmupDecayLR, through the optimiser that a run gets."""
    warmup, steps = run
    optim = AdamW(lr=1e-5, warmup_steps=warmup, warmup="log", schedule="linear")
    optimizer, schedule = optim.build([nn.Parameter(torch.zeros(1))], steps)
    found = {}
    for step in range(steps):
        found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    assert {step: found[step] for step in expected} == pytest.approx(expected, rel=5e-4, abs=1e-20)
    assert max(found.values()) == found[warmup] == 1e-5
    assert optimizer.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("warmup", [1, 3, 200])
def test_a_warmup_from_zero_is_diffusers_constant_with_warmup(warmup: int) -> None:
    from diffusers.optimization import get_scheduler

    optimizer, schedule = AdamW(lr=1e-5, warmup_steps=warmup, warmup="from_zero").build(
        [nn.Parameter(torch.zeros(1))], 300
    )
    theirs = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-5)
    reference = get_scheduler("constant_with_warmup", theirs, num_warmup_steps=warmup)
    for step in range(300):
        assert optimizer.param_groups[0]["lr"] == theirs.param_groups[0]["lr"], step
        assert step > 0 or optimizer.param_groups[0]["lr"] == 0
        for part in (optimizer, theirs, schedule, reference):
            part.step()


def test_warmup_of_a_single_step_has_a_rate() -> None:
    assert AdamW(warmup_steps=1, warmup="log").factor(0, 10) == 0
    assert AdamW(warmup_steps=1, warmup="linear").factor(0, 10) == 1


def test_ema_decay() -> None:
    expected = {1: 0, 2: 0.181818, 3: 0.25, 10: 0.526316, 100: 0.917431, 1000: 0.991080, 4000: 0.997755}
    expected[10000] = 0.999101
    assert {n: decay_at(n) for n in expected} == pytest.approx(expected, abs=1e-6)


def test_ema_is_diffusers_ema() -> None:
    from diffusers.training_utils import EMAModel

    weight = nn.Parameter(torch.zeros(3))
    ours, theirs = EMA(0.9999), EMAModel([weight], decay=0.9999)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 50):
        weight.data += torch.randn(3, generator=generator)
        ours.update({"w": weight}, step)
        theirs.step([weight])
    torch.testing.assert_close(ours.shadow["w"], theirs.shadow_params[0])
    trained = weight.detach().clone()
    with ours.averaged({"w": weight}):
        torch.testing.assert_close(weight.data, theirs.shadow_params[0])
    assert torch.equal(weight.data, trained)


def test_averages_stand_in_the_order_of_the_weights() -> None:
    """Processes gather sharded averages one after the other, so the order must not depend on the hash of a name."""
    weights, ema = {f"weight {n}": nn.Parameter(torch.zeros(())) for n in range(50)}, EMA()
    ema.update(weights, 1)
    assert list(ema.state_dict()["shadow"]) == list(weights)


def test_ema_of_a_ramp_is_its_last_tenth() -> None:
    weight, ema = nn.Parameter(torch.zeros(())), EMA()
    for step in range(1, 2001):
        weight.data.fill_(step / 2000)
        ema.update({"w": weight}, step)
    assert ema.shadow["w"].item() == pytest.approx(0.9, abs=2e-3)


def test_adafactor_by_hand() -> None:
    """Two steps of arXiv:1804.04235 with a factored second moment, no first one, no scaling by the weights."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 5, generator=generator)
    gradients = [torch.randn(3, 5, generator=generator) for _ in range(2)]
    weight = nn.Parameter(start.clone())
    optimizer, schedule = Adafactor(lr=0.1, weight_decay=0.01, warmup_steps=2).build([weight], steps=10)
    expected, rows, columns = start.double(), torch.zeros(3, dtype=torch.double), torch.zeros(5, dtype=torch.double)
    for step, gradient in enumerate(gradients, 1):
        weight.grad = gradient.clone()
        optimizer.step()
        schedule.step()
        squares, decay = gradient.double() ** 2 + 1e-30, 1 - step**-0.8
        rows = decay * rows + (1 - decay) * squares.mean(1)
        columns = decay * columns + (1 - decay) * squares.mean(0)
        update = gradient.double() / (rows[:, None] * columns / rows.mean()).sqrt()
        update = update / max(1.0, update.pow(2).mean().sqrt().item())
        rate = 0.1 * step / 2
        expected = expected * (1 - 0.01 * rate) - rate * update
    torch.testing.assert_close(weight.double(), expected, rtol=1e-5, atol=1e-6)


class Slope(Method):
    """A loss whose gradient is (3, 4)."""

    needs = ()

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return (self.policy.weight[0] * torch.tensor([3.0, 4.0])).sum(), {}


class Line(nn.Linear):
    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())


@pytest.mark.parametrize(("clip", "scale"), [(None, 1.0), (1.0, 0.2), (10.0, 1.0)])
def test_a_clip_of_null_leaves_gradients_as_they_are(clip: float | None, scale: float, tmp_path: Path) -> None:
    """As in the released LPO, whose clip is never applied; the norm is logged all the same."""
    method = Slope(policy=Line(2, 1, bias=False), optim=AdamW(clip=clip), seed=0, steps=1, batch=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=1, accelerator="cpu", enable_model_summary=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(method, DataLoader([{"position": torch.zeros(1)}], batch_size=None))
    gradient = method.policy.weight.grad[0]
    torch.testing.assert_close(gradient, scale * torch.tensor([3.0, 4.0]), rtol=1e-5, atol=0)
    assert torch.equal(gradient, torch.tensor([3.0, 4.0])) == (scale == 1.0)
    assert float(trainer.logged_metrics["train/grad_norm"]) == pytest.approx(5.0)


@pytest.mark.parametrize("kind", [AdamW, Adafactor])
def test_the_state_has_the_stated_bytes(kind: type[Optim]) -> None:
    weights = [nn.Parameter(torch.randn(size)) for size in [(6, 5), (7,), (4, 3, 3, 3)]]
    optim = kind()
    optimizer, _ = optim.build(weights, steps=10)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    assert optim.state_bytes(weights) == sum(value.nbytes for value in kept if value.ndim)  # steps are counted, too
