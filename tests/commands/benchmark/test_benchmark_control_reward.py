"""The benchmark of ControlNet++ compares like with like: plain step and ours give one loss and one gradient."""

import pytest
import torch
from toys.benchmark import step_flops
from toys.shapes import TOY

from lpo_platform.commands.benchmark.control_reward import SETTINGS, ControlRewardStep
from lpo_platform.commands.benchmark.measure import part_flops


def gradient(bench: ControlRewardStep) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in bench.plain.control.parameters()])


def test_the_plain_step_and_ours_are_one() -> None:
    """Two of ten pictures are rewarded, of which 2.01 are expected: the original divides by the one, ours by the other.
    The targets in half precision leave a difference of their rounding."""
    bench = ControlRewardStep.build(TOY, batch=2)
    rewarded = (bench.method.times(bench.batch, "pretrain") <= 200).sum().item()
    assert (bench.units, rewarded) == (10, 2)
    bench.method.reward_weight = SETTINGS["reward_weight"] * bench.method.expected(10) / 2
    losses, gradients = [], []
    for variant in ControlRewardStep.variants:
        losses.append(bench.step(variant))
        gradients.append(gradient(bench))
        assert all(weight.grad is None for weight in bench.plain.unet.parameters())
    assert bench.method.loss(bench.batch)[1]["control_reward/reward"] > 0.05 * losses[0]
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=2e-3, atol=0)
        assert (found - gradients[0]).norm() < 5e-3 * gradients[0].norm() > 0


@pytest.mark.slow
def test_what_is_saved_is_encoding_and_four_in_five_decoded_pictures() -> None:
    meta = ControlRewardStep.build(TOY, batch=1, device="meta")
    count, parts = step_flops(meta, ControlRewardStep.variants), part_flops(meta)
    encodings = 5 * (parts["VAE encoder"] + parts["text encoder"])
    decoded = count["plain"] - count["exact"] - encodings
    assert decoded > 4 * 2 * parts["VAE decoder"]  # its backward costs more than its forward
    assert decoded < 4 * 2.5 * parts["VAE decoder"]
    assert count["exact"] < count["exact-ckpt"] < count["plain-ckpt"] and count["plain"] < count["plain-ckpt"]
