"""Segmentation into the 150 classes of ADE20K."""

from typing import ClassVar

from lpo_platform.tasks.detector import Choice
from lpo_platform.tasks.segmentation import Segmentation

PUBLISHED = "openmmlab/upernet-swin-large"


class SegAde20k(Segmentation):
    """Label k is row k of the published palette of 151 rows. Row 0 is black and means "no label"."""

    name: ClassVar[str] = "seg_ade20k"
    scores: ClassVar[dict[str, bool]] = {"seg_ade20k/image_miou": True}
    pooled: ClassVar[dict[str, bool]] = {"seg_ade20k/miou": True}
    palette: ClassVar[str] = "ade20k"
    toy_stride: ClassVar[int] = 15

    def __init__(
        self, detector: Choice = "auto", weights: str = PUBLISHED, pretrained: bool = True, *, toy: bool = False
    ) -> None:
        super().__init__(detector, weights, pretrained, toy=toy)
