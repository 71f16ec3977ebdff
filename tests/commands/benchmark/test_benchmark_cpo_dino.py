"""The benchmark of CPO with DINO compares like with like: its losers and its step are ours."""

import pytest
import torch
from parity.cpo import Draws, plain_losses
from parity.cpo_dino import plain_losers
from toys.benchmark import gradient, step_flops
from toys.shapes import TOY

from lpo_platform.commands.benchmark.cpo import SETTINGS
from lpo_platform.commands.benchmark.cpo_dino import GUIDANCE, CPODinoStep
from lpo_platform.commands.benchmark.measure import part_flops
from lpo_platform.models.adapter import Condition
from lpo_platform.models.sampling import Sampling, sample_latents


@pytest.fixture(scope="module")
def bench() -> CPODinoStep:
    """Its policy has left the reference."""
    made = CPODinoStep.build(TOY, batch=2, steps=3)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.plain.control.parameters():
            weight += 0.03 * torch.randn(weight.shape)
    return made


def test_losers_are_drawn_as_ours_are(bench: CPODinoStep) -> None:
    """Before the detector, whose thresholds would turn a rounding into an edge."""
    policy, batch = bench.method.policy, bench.batch
    pictures = batch["tokens"], policy.adapter.tokenize([""]), batch["control"], bench.method.normal(batch, "loser")
    plain = plain_losers(bench.plain, *pictures, lambda images: images, steps=3, guidance=GUIDANCE)
    condition, ids = Condition(batch["text"], batch["control"]), batch["position"].tolist()
    with policy.reference():
        latents = sample_latents(policy, condition, ids, Sampling(3, GUIDANCE), seed=bench.method.seed, stream="loser")
    torch.testing.assert_close(policy.adapter.decode(latents), plain, atol=1e-3, rtol=0)
    assert plain.std() > 0.01


@pytest.mark.parametrize("variant", ["exact", "cached", "shared"])
def test_the_plain_step_and_ours_are_one(bench: CPODinoStep, variant: str) -> None:
    method, batch = bench.method, bench.batch
    own = "pair" if variant == "shared" else "pretrain"
    pair, pretrain = ((method.normal(batch, name), method.times(batch, name)) for name in ("pair", own))
    pictures = (batch[name] for name in ("pixels", "tokens", "control", "loser"))
    losses = plain_losses(
        bench.plain, *pictures, Draws(method.normal(batch, "vae"), *pair, *pretrain), form="hard", **SETTINGS
    )
    plain, (loss,) = gradient(bench, *losses), bench._ours(variant)
    torch.testing.assert_close(loss, sum(losses), rtol=2e-3, atol=0)
    assert (gradient(bench, loss) - plain).norm() < 5e-3 * plain.norm()


@pytest.mark.slow
def test_what_is_saved_is_the_loser_and_repeated_looks() -> None:
    meta = CPODinoStep.build(TOY, batch=1, device="meta", steps=2)
    count, parts = step_flops(meta, CPODinoStep.variants), part_flops(meta)
    assert count["plain"] > parts["loser"] + count["exact"] + 4 * parts["DINOv2"]
    assert count["exact"] - count["cached"] > 2 * parts["DINOv2"]
    assert count["cached"] > count["shared"] and count["exact"] < count["online"] < count["plain"]
