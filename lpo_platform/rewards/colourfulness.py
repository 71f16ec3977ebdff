"""How colourful a picture is (Hasler and Suesstrunk 2003): a reward that needs no model."""

from typing import ClassVar

import torch
from torch import Tensor

from lpo_platform.rewards.reward import Asked


class Colourfulness:
    """sigma + 0.3 mu of the two opponent colours, in [0, 1]-valued channels; 0 for a grey picture."""

    name: ClassVar[str] = "colourfulness"
    judges: ClassVar[str] = "pictures"

    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        red, green, blue = images.float().flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue], 1)
        spread, mean = opponents.std(2, correction=0), opponents.mean(2)
        return spread.norm(dim=1) + 0.3 * mean.norm(dim=1)
