"""The feature reward of pose RL (IITP-CARTE-LGE/cnrl2): DINOv2 on the drawings of two skeletons."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel

from lpo_platform.models.weights import Dtype, load, whole
from lpo_platform.rewards.of_condition import OfCondition
from lpo_platform.rewards.oks import people_of
from lpo_platform.rewards.pretrained import eight_bit
from lpo_platform.rewards.reward import Asked

NOBODY = -1.0  # the score of a picture in which nobody is found
LEAST, SPAN = 0.9, 0.1  # two skeletons of any kind look alike to DINO: the cosine is rarely below 0.9


class SkeletonDino(OfCondition):
    """The cosine s between the mean tokens of two skeleton images, as (s - 0.9) / 0.1; -1 where nobody is found.

    Args:
        weights: folder or hub id of a DINOv2 of transformers.
        scaled: false returns s itself, as the released code did before 2024-09-10.
        dtype: of the network.
        shared: batch and task, see OfCondition.
    """

    name: ClassVar[str] = "skeleton_dino"
    maps: ClassVar[str | None] = "people"

    def __init__(
        self, weights: str = "facebook/dinov2-base", scaled: bool = True, dtype: Dtype = "float32", **shared: object
    ) -> None:
        super().__init__(**shared)
        self.model = whole(AutoModel.from_pretrained, weights, setting="weights", dtype=dtype)
        self.processor = load(AutoImageProcessor.from_pretrained, weights, setting="weights")
        self.scaled = scaled

    def reference(self, asked: Asked) -> Tensor:
        return torch.cat([self.features(part) for part in asked.control.split(self.batch)])

    def compare(self, maps: Tensor, reference: Tensor) -> Tensor:
        cosine = F.cosine_similarity(self.features(self.task.render(maps)), reference)
        there = torch.tensor([len(people) > 0 for people in people_of(maps)], device=cosine.device)
        return torch.where(there, (cosine - LEAST) / SPAN if self.scaled else cosine, NOBODY)

    def features(self, drawings: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, d) float32: the mean of all tokens, the class token among them."""
        pictures = list(eight_bit(drawings, self.name))
        pixels = self.processor(images=pictures, return_tensors="pt").pixel_values
        model = self.model.to(drawings.device)
        return model(pixels.to(drawings.device, model.dtype)).last_hidden_state.float().mean(1)
