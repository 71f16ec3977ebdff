"""CLIP score (arXiv 2104.08718, in the form of torchmetrics): 100 max(cos, 0) of picture and caption."""

from torch import Tensor

from lpo_platform.config.numbers import Count
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfItems
from lpo_platform.models.weights import Dtype
from lpo_platform.rewards.clip import Clip

NAME = "quality/clip_score"


class ClipScore(OfItems):
    """Measures quality/clip_score, how well a picture fits its caption.

    Args:
        weights: folder or hub id of a CLIP of transformers. The tables of CPO use ViT-B/16.
        batch: how many pictures the network reads at once.
        dtype: the precision of the network.
    """

    def __init__(
        self, weights: str = "openai/clip-vit-base-patch16", batch: Count = 32, dtype: Dtype = "float32"
    ) -> None:
        self.clip = Clip(weights, batch=batch, dtype=dtype)

    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        cosine = self.clip.to(pictures.images.device)(pictures.images, pictures.captions)
        return {NAME: 100 * cosine.clamp_min(0)}

    def directions(self) -> dict[str, bool | None]:
        return {NAME: True}
