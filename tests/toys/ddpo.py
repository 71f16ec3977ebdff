"""A toy-size DDPO step: model, prompts and a reward in closed form."""

import torch
from torch import Tensor
from toys import lpo as toy_lpo
from toys import size as toy_size

from lpo_platform.data.source import Sample
from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.ddpo import DDPO
from lpo_platform.methods.optim import AdamW
from lpo_platform.models.policy import Policy
from lpo_platform.models.tuning import Control, Lora, Tune
from lpo_platform.rewards.reward import Asked
from lpo_platform.tasks.canny import Canny

SMALL = {"group": 3, "num_steps": 4, "guidance": 3.0, "rounds": 2, "prompts": 2, "batch": 8, "clip": 2e-3}


class Red:
    """How red pictures are, and how many edges of their condition they have, by name; shorter prompts are better."""

    name = "colours"

    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> dict[str, Tensor]:
        said = {"red": images[:, 0].mean((1, 2)), "prompt": -torch.tensor([float(len(p)) for p in prompts])}
        if condition is None:
            return said
        assert torch.equal(condition.control, Canny().render(condition.maps))
        return said | {"edges": (images * condition.control[condition.row]).mean((1, 2, 3))}


def adapter(**process: object):
    """toy_lpo's, with pictures: the first three channels, four times as large."""
    made = toy_lpo.adapter()
    made.process = DDIM(**process)
    made.decode = lambda z: torch.sigmoid(torch.nn.functional.interpolate(z[:, :3], scale_factor=4))
    return made


def method(tune: Tune | None = None, *, optim: AdamW | None = None, process: dict | None = None, **options) -> DDPO:
    parts, control, task = adapter(**(process or {})), None, None
    if isinstance(tune, Control):
        control, task = toy_size.controlnet(parts.unet), Canny()
    policy = Policy(parts, tune or Lora(rank=2), control)
    settings = SMALL | {"reward": Red(), "task": task, "optim": optim or AdamW(), "seed": 0} | options
    return DDPO(policy=policy, **settings)


class Pictures:
    """Five captions, two of them equal, with pictures of noise."""

    def __len__(self) -> int:
        return 5

    def caption(self, i: int) -> str:
        return "the same" if i < 2 else f"caption {'x' * i}"

    def __getitem__(self, i: int) -> Sample:
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i))
        return Sample(f"picture {i}", image, self.caption(i))
