"""LPO at toy size: a random UNet, captions embedded as noise, and a reward of latents that can be written down."""

from types import SimpleNamespace

import torch
from torch import Tensor
from toys import size as toy_size

from lpo_platform.diffusion import noise
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.lpo import LPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Lora, Tune

SHAPE = (4, 8, 8)


def adapter(*, prediction: str = "epsilon", dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """The parts of an adapter that LPO touches; "tokens" are the captions themselves."""
    return SimpleNamespace(
        folders={"unet": "unet", "text_encoder": "text_encoder"},
        unet=toy_size.unet().requires_grad_(False).to(dtype),
        process=DDIM(prediction=prediction),
        latent_shape=SHAPE,
        tokenize=list,
        embed=lambda captions: noise.normal(captions, (6, 32), seed=0, stream="text"),
        empty_text=lambda: noise.normal([""], (6, 32), seed=0, stream="text"),
        device=torch.device("cpu"),
    )


class Brightness:
    """`scale` times the mean of the first channel, plus a number of the prompt; remembers at which t it was asked."""

    def __init__(self, scale: float = 100.0, timestep: str = "current") -> None:
        self.scale, self.timestep = scale, timestep
        self.calls, self.asked = 0, torch.empty(0)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return {"offset": torch.tensor([float(len(prompt)) for prompt in prompts])}

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor:
        self.calls, self.asked = self.calls + 1, t
        return self.scale * latents[:, 0].mean((1, 2)) + text["offset"][prompt]


def method(
    tune: Tune | None = None,
    reward: object | None = None,
    *,
    prediction: str = "epsilon",
    dtype: torch.dtype = torch.float32,
    optim: AdamW | None = None,
    moved: float = 0.0,
    **options: object,
) -> LPO:
    """moved: how far the policy has left its reference, the standard deviation added to every weight."""
    policy = Policy(adapter(prediction=prediction, dtype=dtype), tune or Lora(rank=2))
    settings = {"candidates": 3, "num_steps": 4, "guidance": 5.0, "rounds": 3, "prompts": 3, "batch": 4}
    made = LPO(policy=policy, reward=reward or Brightness(), optim=optim or AdamW(), seed=0, **settings | options)
    move(policy, moved)
    return made


@torch.no_grad()
def move(policy: Policy, by: float, *, seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for weight in policy.trainable().values():
        weight += by * torch.randn(weight.shape, generator=generator)


def captions(number: int) -> list[str]:
    return [f"caption {'x' * i}" for i in range(number)]
