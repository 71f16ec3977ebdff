"""Segmentation into the 133 panoptic classes of COCO."""

from typing import ClassVar

from lpo_platform.tasks.detector import Choice
from lpo_platform.tasks.segmentation import Segmentation

PUBLISHED = "facebook/mask2former-swin-large-coco-panoptic"


class SegCoco(Segmentation):
    """Label k is row k - 1 of the published 133-row palette; 0 is black for "no label"."""

    name: ClassVar[str] = "seg_coco"
    scores: ClassVar[dict[str, bool]] = {"seg_coco/image_miou": True}
    pooled: ClassVar[dict[str, bool]] = {"seg_coco/miou": True}
    palette: ClassVar[str] = "coco"
    toy_stride: ClassVar[int] = 3

    def __init__(
        self, detector: Choice = "auto", weights: str = PUBLISHED, pretrained: bool = True, *, toy: bool = False
    ) -> None:
        super().__init__(detector, weights, pretrained, toy=toy)
