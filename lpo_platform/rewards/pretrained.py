"""What the rewards by a published model share: they are frozen, batched, and read 8-bit pictures."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.rewards.reward import Asked, checked


class Pretrained(nn.Module):
    """A `Reward` by a network. Subclasses set `name` and write `score`. It never enters training mode.

    Args:
        batch: pictures of one forward.
    """

    name: ClassVar[str]
    input: ClassVar[str] = "pictures"

    def __init__(self, batch: int) -> None:
        super().__init__()
        if batch < 1:
            raise UserError(f"reward {self.name}: batch={batch}: must be at least 1 picture")
        self.batch = batch

    def encode(self, prompts: list[str]) -> Tensor:
        """What is the same for all pictures of a prompt, (P, ...). By default it is empty."""
        return torch.zeros(len(prompts), 0, device=self.device)

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        """Grades (b, 3, H, W) uint8 on this reward's device, with b <= `batch` prompts and their encode(): (b,)."""
        raise NotImplementedError

    def encoded(self, prompts: list[str]) -> Tensor:
        """encode() of B prompts, each different one computed once: (B, ...)."""
        place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        return self.encode(list(place))[[place[prompt] for prompt in prompts]]

    def train(self, mode: bool = True) -> "Pretrained":
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts -> (B,) float32 on the device of the pictures.

        The precision is that of the weights, whatever autocast the caller is in. Raises ValueError for another number
        of prompts than pictures, UserError for pictures or scores that are not finite.
        """
        if len(prompts) != len(images):
            raise ValueError(f"reward {self.name}: {len(images)} pictures, but {len(prompts)} prompts")
        if len(images) == 0:
            return images.new_zeros(0)
        scores = []
        with torch.autocast(self.device.type, enabled=False):
            text = self.encoded(prompts)
            for start in range(0, len(images), self.batch):
                part = slice(start, start + self.batch)
                pictures = eight_bit(images[part].to(self.device), self.name)
                scores.append(checked(self.name, self.score(pictures, prompts[part], text[part]), len(pictures)))
        return torch.cat(scores).to(images.device)


def eight_bit(images: Tensor, name: str) -> Tensor:
    """[0, 1] -> uint8, rounded, because the published models were trained on picture files.

    Raises UserError where a number is not finite, which uint8 would hide.
    """
    if not torch.isfinite(images).all():
        raise UserError(f"reward {name}: the pictures hold NaN or infinity; the model that drew them has diverged")
    return images.float().clamp(0, 1).mul(255).round().to(torch.uint8)
