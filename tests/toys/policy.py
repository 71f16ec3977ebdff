"""A toy-size policy with a ControlNet, a batch for it, and the plain CPO schedule."""

from types import SimpleNamespace

import torch
from toys import size as toy_size

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.cpo import CPO
from lpo_platform.methods.losses import cpo, denoising_error
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Control


def adapter() -> SimpleNamespace:
    """The parts of an adapter that a training step on cached samples touches."""
    unet = toy_size.unet().requires_grad_(False)
    return SimpleNamespace(
        folders={"unet": "unet", "text_encoder": "text_encoder"},
        unet=unet,
        process=DDIM(),
        latent_shape=(4, 8, 8),
        sample_latents=lambda moments, noise: moments[:, :4] + moments[:, 4:] * noise,
    )


def control_policy() -> Policy:
    parts = adapter()
    return Policy(parts, Control(), toy_size.controlnet(parts.unet))


def batch(size: int = 3, *, first: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        "position": torch.arange(first, first + size),
        "moments": torch.randn(size, 8, 8, 8, generator=generator),
        "text": torch.randn(size, 6, 32, generator=generator),
        "control": torch.rand(size, 3, 32, 32, generator=generator),
        "loser": torch.rand(size, 3, 32, 32, generator=generator),
    }


def method(policy: Policy, kind: type = CPO, **options: object):
    return kind(policy=policy, optim=AdamW(), seed=0, steps=10, batch=3, **options)


def plain_cpo(policy: Policy, reference: torch.nn.Module, step: CPO, data: dict) -> torch.Tensor:
    """The original's schedule: five ControlNet and five UNet forwards through stock diffusers classes."""
    unet, process = policy.adapter.unet, policy.adapter.process
    z = step.latents(data)

    def error(control: torch.nn.Module, image: torch.Tensor, stream: str) -> torch.Tensor:
        e, t = step.normal(data, stream), step.times(data, stream)
        x = process.add_noise(z, e, t)
        down, middle = control(x, t, data["text"], image, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return denoising_error(unet(x, t, data["text"], **residuals).sample, e)

    pretraining = error(policy.control, data["control"], "pretrain").mean()
    four = [error(c, data[image], "pair") for c in (policy.control, reference) for image in ("control", "loser")]
    preference = cpo(*four, step.times(data, "pair"), beta=step.beta, margin=step.margin, form=step.form)
    return preference + step.pretrain_weight * pretraining
