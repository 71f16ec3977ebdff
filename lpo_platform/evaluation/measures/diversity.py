"""A measure of how different the pictures of one prompt are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lpo_platform.config.numbers import Count
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfSets
from lpo_platform.evaluation.statistics import compare
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.clip import Clip

NAME, FEATURES = "quality/diversity", "clip"


class Diversity(OfSets):
    """Measures quality/diversity, 0 to 2: 1 - the cosine of two pictures' CLIP embeddings, the mean over pairs.

    Args:
        weights: folder or hub id of a CLIP of transformers.
        images_per_item: how many pictures every item has. With one there is no diversity to measure.
        batch: how many pictures the network reads at once.
        dtype: the precision of the network.
    """

    def __init__(
        self,
        weights: str = "openai/clip-vit-base-patch16",
        images_per_item: Count = 1,
        batch: Count = 32,
        dtype: Dtype = "float32",
    ) -> None:
        self.clip, self.images_per_item = Clip(weights, batch=batch, dtype=dtype), images_per_item

    def features(self, pictures: Pictures) -> dict[str, Tensor]:
        if self.images_per_item == 1 or not pictures.drawn:
            return {}
        return {FEATURES: F.normalize(self.clip.to(pictures.images.device).embed(pictures.images))}

    def compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], real: dict[str, Tensor]
    ) -> dict[str, dict[str, Any]]:
        if self.images_per_item == 1:
            return {}
        sides = [{NAME: self._of_items(side[FEATURES]).numpy()} for side in (before, after)]
        return compare(*sides, {NAME: True})

    def _of_items(self, embeddings: Tensor) -> Tensor:
        """(N K, F) of length 1, the first picture of every item before the second -> (N,)."""
        groups = embeddings.double().unflatten(0, (self.images_per_item, -1)).transpose(0, 1)
        first, second = torch.triu_indices(self.images_per_item, self.images_per_item, 1)
        return 1 - (groups[:, first] * groups[:, second]).sum(2).mean(1)
