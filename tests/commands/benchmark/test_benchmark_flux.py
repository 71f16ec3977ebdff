"""The benchmark of flow transformers compares like with like: stock steps and ours give one loss and one gradient."""

import pytest
import torch
from parity.cpo import Draws, plain_losses
from toys import flux as toy_flux
from toys import sd3 as toy_sd3
from toys import stable_diffusion as toy_stable_diffusion
from toys.benchmark import step_flops
from toys.shapes import TOY

from lpo_platform.commands.benchmark import cell
from lpo_platform.commands.benchmark.control import ControlStep
from lpo_platform.commands.benchmark.cpo import SETTINGS, CPOStep
from lpo_platform.commands.plan.count import flops
from lpo_platform.config.errors import UserError
from lpo_platform.models.random_flux import FLUX, FluxShape, RandomFlux
from lpo_platform.models.random_sd3 import SD3Shape
from lpo_platform.models.random_weights import Shape
from lpo_platform.models.shared_encoder import encode


def toy() -> FluxShape:
    text = toy_stable_diffusion.text_config(toy_stable_diffusion.tokenizer(), 20)
    plain = lambda config: {name: value for name, value in config.items() if not name.startswith("_")}  # noqa: E731
    return FluxShape(
        "toy", 32, plain(toy_flux.transformer().config), plain(toy_flux.vae().config), text.to_dict(),
        toy_flux.t5().config.to_dict(), max_tokens=toy_flux.TOKENS, control_layers=(1, 2),
    )  # fmt: skip


def gradient(bench: CPOStep | ControlStep) -> torch.Tensor:
    return torch.cat([weight.grad.flatten() for weight in bench.plain.control.parameters() if weight.grad is not None])


def sd3() -> SD3Shape:
    words, clips = toy_stable_diffusion.tokenizer(), ((24, 10), (32, 12))
    texts = (toy_stable_diffusion.text_config(words, width, projection_dim=size).to_dict() for width, size in clips)
    made = toy_sd3.transformer(), toy_sd3.vae()
    configs = ({name: value for name, value in part.config.items() if name[0] != "_"} for part in made)
    t5 = toy_sd3.encoder().config.to_dict()
    return SD3Shape("toy", 32, *configs, *texts, t5, max_tokens=toy_sd3.TOKENS, control_layers=2)


@pytest.mark.parametrize("shape", [TOY, toy(), sd3()], ids=["sd", "flux", "sd3"])
def test_the_plain_supervised_step_and_ours_are_one(shape: Shape) -> None:
    bench, losses, gradients = ControlStep.build(shape, batch=3), [], []
    for variant in ControlStep.variants:
        losses.append(bench.step(variant))
        gradients.append(gradient(bench))
        assert all(weight.grad is None for weight in bench.plain.unet.parameters())
    for loss, found in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-5, atol=0)
        assert (found - gradients[0]).norm() < 1e-4 * gradients[0].norm() > 0


@pytest.mark.parametrize("share_timestep", [False, True])
@pytest.mark.parametrize("shape", [toy(), sd3()], ids=["flux", "sd3"])
def test_the_plain_cpo_step_and_ours_are_one(share_timestep: bool, shape: Shape) -> None:
    bench = CPOStep.build(shape, batch=3, form="soft")
    method, batch, control = bench.method, bench.batch, bench.plain.control
    torch.manual_seed(1)
    with torch.no_grad():
        batch["loser"].zero_()
        for weight in control.parameters():
            weight += 0.02 * torch.randn(weight.shape)
    method.share_timestep = share_timestep
    own = "pair" if share_timestep else "pretrain"
    pair, pretrain = ((method.normal(batch, name), method.times(batch, name)) for name in ("pair", own))
    draws = Draws(method.normal(batch, "vae"), *pair, *pretrain)
    pictures = (batch[name] for name in ("pixels", "text", "control", "loser"))

    loss, report = method.loss(batch)
    loss.backward()
    ours = gradient(bench)
    control.zero_grad()
    plain = sum(plain_losses(bench.plain, *pictures, draws, form="soft", **SETTINGS))
    plain.backward()

    assert abs(report["cpo/weight"].item() - 0.5) > 0.01, "policy and reference must differ"
    torch.testing.assert_close(loss, plain, rtol=2e-3, atol=0)
    assert (ours - gradient(bench)).norm() < 2e-3 * ours.norm() > 0


@pytest.mark.slow
def test_what_is_saved_is_a_block_and_a_picture() -> None:
    """Winner and loser of policy and reference share one pass of what precedes the first residual, of 4, and the
    picture is cached."""
    bench = CPOStep.build(toy(), batch=1, device="meta", form="soft")
    model, columns = bench.method.policy.adapter, bench.batch
    x, t = torch.empty(1, *model.latent_shape, device="meta"), torch.empty(1, device="meta")
    with torch.no_grad():
        picture = flops(lambda: model.encode_moments(columns["pixels"]))
        first = flops(lambda: encode(model.unet, x, t, columns["text"]))
    count = step_flops(bench, ("plain", "exact"))
    assert count["plain"] - count["exact"] == 3 * first + picture


def test_flux_has_the_published_size() -> None:
    """FLUX.1-dev: 11.90 B weights (its model card: 12 billion), T5-XXL's encoder 4.76 B."""
    model = RandomFlux(FLUX, device="meta")
    count = lambda module: sum(weight.numel() for weight in module.parameters())  # noqa: E731
    assert count(model.unet) == 11_901_408_320
    assert count(model.text_encoder) == 4_762_310_656
    assert model.latent_shape == (16, 128, 128)


@pytest.mark.parametrize("what", sorted(set(cell.STEPS) - {"cpo", "control"}))
def test_what_flux_has_no_plain_form_of_says_why(what: str) -> None:
    for model in ("flux", "sd3"):
        with pytest.raises(UserError, match=rf"--model {model}: .*; use "):
            cell.Cell(what, model).build(device="meta")
