"""How well toy pictures show what their captions say, by a separate network: the embedded labeller.

Architecture, training scenes and seed differ from the judge's, so that a model which learns from these labels is
measured by another network.
"""

from pathlib import Path
from typing import ClassVar

from torch import Tensor

from lpo_platform.models.tiny.judge import Judge
from lpo_platform.rewards.reward import Asked

FOLDER = Path(__file__).parents[1] / "assets" / "tiny" / "labeller"


class ToyAttributes:
    """The share of the captioned attributes that a picture shows, (B,) in [0, 1].

    Args:
        weights: folder of the network; null for the embedded one.
    """

    name: ClassVar[str] = "toy"
    input: ClassVar[str] = "pictures"

    def __init__(self, weights: str | None = None) -> None:
        self.judge = Judge.load(Path(weights) if weights else FOLDER)

    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        return self.judge.alignment(images.cpu(), prompts).to(images.device)
