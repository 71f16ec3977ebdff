"""What a reward of pictures says of them, as a metric: PickScore, ImageReward, HPS, aesthetic, or any other."""

import torch
from torch import Tensor, nn

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfItems
from lpo_platform.rewards.reward import Asked, Reward, StepReward, parts


class Preference(OfItems):
    """Measures preference/<name>, the score of a reward. The share of items that win against the base stands beside it.

    Args:
        name: what the result is called.
        reward: an option of the group `reward` that is built from its settings alone.
    """

    def __init__(self, name: str, reward: Reward) -> None:
        if isinstance(reward, StepReward):
            raise UserError("reward: reads latents; a measure is of rewards that read pictures")
        self.name, self.reward = f"preference/{name}", reward

    @torch.no_grad()
    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        device, asked = pictures.images.device, None
        if isinstance(self.reward, nn.Module):
            self.reward.to(device)
        if pictures.control is not None:
            asked = Asked(pictures.target, pictures.control, torch.arange(len(pictures.ids), device=device))
        return {self.name: parts(self.reward, pictures.images, pictures.captions, asked)["score"]}

    def directions(self) -> dict[str, bool | None]:
        return {self.name: True}
