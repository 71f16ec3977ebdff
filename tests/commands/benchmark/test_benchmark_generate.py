"""The benchmark's evaluation pictures: the authors' way and ours draw the same ones."""

import pytest
import torch
from toys.benchmark import step_flops
from toys.shapes import TOY, TOY_XL

from lpo_platform.commands.benchmark.generate import Generation
from lpo_platform.commands.benchmark.measure import part_flops
from lpo_platform.diffusion import noise
from lpo_platform.models.random_weights import Shape


@pytest.mark.parametrize("shape", [TOY, TOY_XL], ids=["sd", "xl"])
def test_the_plain_pictures_and_ours_are_the_same(shape: Shape) -> None:
    bench = Generation.build(shape, batch=3, steps=3)
    starts = noise.normal(bench.captions, bench.method.policy.adapter.latent_shape, seed=0, stream="benchmark")
    with torch.no_grad():
        ours, theirs = bench.ours(), bench.theirs(starts)
    assert ours.std() > 0.01 and (ours[0] - ours[1]).abs().max() > 0.01
    assert (ours - theirs).abs().max() <= 1.01 / 255
    assert ((ours - theirs).abs() > 1e-6).float().mean() < 0.01


def test_pictures_are_counted_as_the_sum_of_their_parts() -> None:
    bench = Generation.build(TOY, batch=1, device="meta", steps=2)
    parts = part_flops(bench)
    half = parts["UNet"] + parts["ControlNet"]
    plain, ours = step_flops(bench, Generation.variants).values()
    assert plain == 2 * 2 * half + parts["VAE decoder"] + 2 * parts["text encoder"]
    assert plain / 2 < ours < plain
