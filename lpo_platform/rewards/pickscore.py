"""PickScore (arXiv:2305.01569): a CLIP-H that learned which of two pictures people picked."""

from typing import ClassVar

from torch import Tensor

from lpo_platform.config.numbers import Count
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.clip import VIT_H, Clip


class PickScore(Clip):
    """exp(logit_scale) times the cosine, about 15 to 25; differences are log-odds of being picked.

    Args:
        weights: folder or hub id.
        processor: the same. The published weights come without one and use that of CLIP-H.
        batch, dtype: see Clip.
    """

    name: ClassVar[str] = "pickscore"

    def __init__(
        self,
        weights: str = "yuvalkirstain/PickScore_v1",
        processor: str | None = VIT_H,
        batch: Count = 32,
        dtype: Dtype = "float32",
    ) -> None:
        super().__init__(weights, processor, batch, dtype)

    def score(self, images: Tensor, prompts: list[str], text: Tensor) -> Tensor:
        return self.model.logit_scale.float().exp() * super().score(images, prompts, text)
