"""DDPO on FLUX: Flow-GRPO's Gaussians row by row through stock forwards, and the sliding window of MixGRPO."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor
from toys import flux as toy_flux
from toys import lpo as toy_lpo
from toys.ddpo import Pictures, Red
from toys.flow_grpo import flow_grpo

from lpo_platform.config.errors import UserError
from lpo_platform.data.source import Sample
from lpo_platform.diffusion import noise
from lpo_platform.methods.ddpo import DDPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.methods.ratio_statistics import Ratios
from lpo_platform.methods.rollouts import Items
from lpo_platform.models.flux_transformer import picture
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion_xl import unpack
from lpo_platform.models.tuning import Control, Full, Tune
from lpo_platform.tasks.canny import Canny

SMALL = {"group": 2, "num_steps": 4, "eta": 0.7, "guidance": 1.0, "rounds": 4, "prompts": 2, "batch": 8, "clip": 2e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_flux.folder(tmp_path_factory.mktemp("flux"))


class Large(Pictures):
    """Of the toy FLUX's size."""

    def __getitem__(self, i: int) -> Sample:
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i))
        return Sample(f"picture {i}", image, self.caption(i))


def method(folder: Path, tune: Tune, **options: object) -> DDPO:
    flux = toy_flux.load(folder)
    branch, task = (flux.load_control("", "unet"), Canny()) if isinstance(tune, Control) else (None, None)
    settings = SMALL | {"reward": Red(), "task": task, "optim": AdamW(), "seed": 0} | options
    return DDPO(policy=Policy(flux, tune, branch), **settings)


def play(step: DDPO, number: int = 0) -> list[dict]:
    items = Items(Large(), (0, 3)) if step.pictures else [Pictures().caption(i) for i in (0, 3)]
    return step.sample_round(number, items, 8)


@torch.no_grad()
def velocity(step: DDPO, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
    """One row through the stock transformer."""
    flux, (sequence, pooled) = step.policy.adapter, unpack(text[None], 20)
    (tokens,) = flux.unet(
        hidden_states=FluxPipeline._pack_latents(x[None], 1, 4, 8, 8),
        encoder_hidden_states=sequence,
        pooled_projections=pooled,
        timestep=t[None] / 1000,
        guidance=torch.tensor([3.5]),
        img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
        txt_ids=torch.zeros(sequence.shape[1], 3),
        return_dict=False,
    )
    return picture(tokens, 8, 8)[0]


def test_a_window_of_noise_has_flow_grpos_probabilities(folder: Path) -> None:
    """Before the window Euler's steps from the keyed noise, inside it Gaussians of the published formula."""
    step = method(folder, Full(), window=(1, 3), noisy="window")
    play(step)
    process, samples = step.policy.adapter.process, step.samples
    times = torch.cat([process.times(4), torch.zeros(1)])
    assert torch.equal(step.t, times[1:3])
    for row in range(4):
        prompt, member = divmod(row, 2)
        text, latents = samples["text"][prompt], samples["latents"][row]
        (x,) = noise.normal([f"{prompt}/{member}"], (4, 8, 8), seed=0, stream="rollout")
        x = x + (times[1] - times[0]) / 1000 * velocity(step, x, times[0], text)
        torch.testing.assert_close(latents[0], x, atol=1e-5, rtol=1e-5)
        for k, (t, ahead) in enumerate(pairwise(times[1:4])):
            v, s = velocity(step, latents[k], t, text), (t / 1000).item()
            (base, std), (slope, _) = (flow_grpo(*given, s, (ahead / 1000).item(), 0.7) for given in ((1, 0), (0, 1)))
            (noise_,) = noise.normal([f"{prompt}/{member}"], (4, 8, 8), seed=0, stream=f"rollout/{k + 1}")
            drawn = base * latents[k] + slope * v + std * noise_
            torch.testing.assert_close(latents[k + 1], drawn, atol=1e-5, rtol=1e-4)
            expected = torch.distributions.Normal(0, std).log_prob(std * noise_).mean()
            torch.testing.assert_close(samples["log_prob"][row, k], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tune", [Full(), Control()])
def test_the_ratio_is_exactly_one_before_the_first_update_while_the_window_slides(folder: Path, tune: Tune) -> None:
    step = method(folder, tune, window=(0, 2), slide=1, noisy="window")
    times = step.policy.adapter.process.times(4)
    for number, start in enumerate((0, 1, 2, 0)):
        batches = play(step, number)
        assert torch.equal(step.t, times[start : start + 2]) and len(batches) == 1
        step.ratios = Ratios(step.t, step.clip)
        step.loss(batches[0])[0].backward()
        report = step.ratios.report()
        assert report["ddpo/ratio"] == report["ddpo/ratio_max"] == 1
        assert report["ddpo/drift"] < 1e-4
        assert f"ddpo/t{round(times[start].item()):03d}/change" in report
        toy_lpo.move(step.policy, 0.002)
    assert all(weight.grad is not None for weight in step.policy.trainable().values())


def test_a_window_stays_for_as_many_rounds_as_asked(folder: Path) -> None:
    step = method(folder, Full(), window=(1, 2), slide=2)
    places = []
    for number in range(7):
        step.place(number)
        places.append(step.window.start)
    assert places == [1, 1, 2, 2, 3, 3, 0]
    with pytest.raises(UserError, match=r"^method\.slide=0: what works"):
        method(folder, Full(), slide=0)
