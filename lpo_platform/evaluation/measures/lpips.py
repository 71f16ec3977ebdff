"""LPIPS (arXiv 1801.03924) of a drawn picture and the data's own."""

import torch
from torch import Tensor

from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures.bases import OfItems
from lpo_platform.evaluation.what.clip_lpips import lpips
from lpo_platform.tasks.task import unmixed

NAME = "quality/lpips"


class Lpips(OfItems):
    """Measures quality/lpips, v0.1 on AlexNet. It measures nothing where the data have captions only.

    Args:
        weights: a file with torchvision's AlexNet.
    """

    def __init__(self, weights: str) -> None:
        self.network = lpips(weights)

    @torch.no_grad()
    def score(self, pictures: Pictures) -> dict[str, Tensor]:
        if pictures.real is None:
            return {}
        with unmixed(pictures.images):
            network = self.network.to(pictures.images.device)
            return {NAME: network(*(side.float() * 2 - 1 for side in (pictures.images, pictures.real))).flatten()}

    def directions(self) -> dict[str, bool | None]:
        return {NAME: False}
