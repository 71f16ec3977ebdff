"""Several rewards at once."""

from typing import ClassVar

from torch import Tensor

from lpo_platform.config.errors import UserError, hint
from lpo_platform.rewards.reward import Asked, Reward, StepReward, parts


class Blend:
    """The weighted sum of rewards of pictures. Each is reported as a part, without its weight.

    Args:
        rewards: by name.
        weights: by the same names; 1 for those that are not named. Where the parts have different scales,
            method.normalise=parts of DDPO gives each an advantage of its own before they are weighted.
    """

    name: ClassVar[str] = "blend"
    input: ClassVar[str] = "pictures"

    def __init__(self, rewards: dict[str, Reward], weights: dict[str, float]) -> None:
        if not rewards:
            raise UserError("rewards={}: a blend needs one at least; add +reward@reward.rewards.clip=clip for instance")
        for part, reward in rewards.items():
            if isinstance(reward, StepReward):
                raise UserError(f"rewards.{part}: reads latents; a blend is of rewards that read pictures")
        for part in weights:
            if part not in rewards:
                raise UserError(f"weights.{part}: no such part{hint(part, rewards)}")
        self.rewards, self.part_weights = rewards, weights

    def __call__(self, images: Tensor, prompts: list[str], condition: Asked | None = None) -> dict[str, Tensor]:
        return {part: parts(reward, images, prompts, condition)["score"] for part, reward in self.rewards.items()}
