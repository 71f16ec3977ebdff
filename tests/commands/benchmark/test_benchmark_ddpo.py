"""The benchmark compares like with like: DDPO's original update and ours give one gradient."""

import pytest
import torch
from toys.benchmark import step_flops
from toys.benchmark_lpo import SHAPES, gradient, perturb
from toys.shapes import TOY, TOY_XL

from lpo_platform.commands.benchmark.ddpo import Round, Update
from lpo_platform.commands.benchmark.measure import part_flops
from lpo_platform.models.random_weights import SDXL, Shape


@SHAPES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plain_update_and_ours_are_one(shape: Shape, checkpointing: bool) -> None:
    """On the trajectories of a policy that has moved since, so far that some ratios are clipped and others are not."""
    bench = Round.build(shape, batch=3, steps=4, micro=5, train_batch=2)
    with torch.no_grad():
        rows = bench.method.collect(bench.items, range(3))
        flat = {name: rows[name].flatten(0, 1) for name in ("latents", "log_prob")}
        bench.method.samples = rows | flat | {"advantage": bench.samples.advantage}
    for name, column in flat.items():
        getattr(bench.samples, name).copy_(column)
    torch.manual_seed(1)
    perturb(bench.plain.control, 0.002)
    mine = torch.stack([gradient(loss, bench.plain.control) for loss in bench.our_losses()]).sum(0)
    bench.plain.checkpoint(checkpointing)
    theirs = torch.stack([gradient(loss, bench.plain.control) for loss in bench.original_losses(bench.samples)]).sum(0)
    report = bench.method.ratios.report()
    assert 0.1 < report["ddpo/no_gradient"] < 0.9 and theirs.norm() > 0
    assert (mine - theirs).norm() < 1e-2 * theirs.norm()


@pytest.mark.parametrize("kind", [Update, pytest.param(Round, marks=pytest.mark.slow)])
def test_a_step_leaves_a_gradient_on_the_control_branch_alone(kind: type[Update | Round]) -> None:
    bench = kind.build(TOY, batch=2, steps=3, micro=4)
    for variant in kind.variants:
        assert bench.step(variant).isfinite()
        assert sum(p.grad.norm() for p in bench.plain.control.parameters()) > 0
        unused = [p.grad is None for p in bench.plain.unet.parameters()]
        assert all(unused) != (variant == "plain-unfrozen")


@pytest.mark.slow
def test_what_the_update_saves() -> None:
    """Per transition: the condition looked at twice with guidance instead of once in a micro-batch, and what precedes
    the first cross attention; of a UNet whose weights want a gradient, more than a third of the work."""
    bench = Update.build(TOY_XL, batch=1, device="meta", steps=4, micro=4)
    count, parts = step_flops(bench, Update.variants), part_flops(bench)
    once = 3 * parts["condition alone"]  # a forward, and a backward of twice the work less the picture's gradient
    saved = (count["plain"] - count["exact"]) / bench.units
    assert saved > 1.5 * once and count["plain-unfrozen"] > 1.3 * count["plain"]
    assert count["plain"] < count["plain-ckpt"] and count["exact"] < count["exact-ckpt"] < count["plain-ckpt"]


@pytest.mark.slow
def test_sdxls_parts_cost_what_the_specification_says() -> None:
    counted = part_flops(Update.build(SDXL, batch=1, device="meta", steps=2))
    for name in ("ControlNet", "UNet"):
        assert counted[name] / 1e9 == pytest.approx(Update.published["sdxl"][name], rel=0.015), name
    assert counted["condition alone"] / 1e9 == pytest.approx(59, rel=0.02)


def test_a_round_is_counted_without_values() -> None:
    count = step_flops(Round.build(TOY, batch=1, device="meta", steps=2, micro=2), ("plain", "exact"))
    update = step_flops(Update.build(TOY, batch=1, device="meta", steps=2, micro=2), ("plain", "exact"))
    assert all(count[variant] > update[variant] for variant in count) and count["exact"] < count["plain"]
