"""Label maps by semantic segmentation; the tasks seg_ade20k and seg_coco differ in classes, colours and network."""

import json
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    ConvNextConfig,
    PretrainedConfig,
    UperNetConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING

from lpo_platform.config.errors import UserError
from lpo_platform.models.tiny.scenes import PARTS
from lpo_platform.tasks.detector import (
    SETTING,
    Choice,
    Detector,
    Embedded,
    Preprocessing,
    from_transformers,
    identity_of,
    wants_toy,
)
from lpo_platform.tasks.palette import colours, paint, read_labels
from lpo_platform.tasks.task import Task

IGNORED = -100


class SegmentationNetwork(nn.Module):
    """(B, 3, H, W) in [0, 1] -> logits of `classes` classes, (B, classes, H, W).

    UperNet and its like give logits; Mask2Former and MaskFormer sum their masks by class, whose logarithm is taken.
    """

    def __init__(self, weights: str, pretrained: bool, classes: int) -> None:
        super().__init__()
        self.model = from_transformers(_auto, weights, pretrained, lambda: small(classes))
        if self.model.config.num_labels != classes:
            raise UserError(
                f"{SETTING}={weights}: names {self.model.config.num_labels} classes, but this task has {classes}"
            )
        self.preprocessing = Preprocessing(weights, pretrained=pretrained)

    def forward(self, images: Tensor) -> Tensor:
        found = self.model(pixel_values=self.preprocessing(images))
        if "logits" in found:
            return F.interpolate(found.logits, images.shape[-2:], mode="bilinear")
        classes = found.class_queries_logits.softmax(2)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, found.masks_queries_logits.sigmoid())
        return F.interpolate(scores, images.shape[-2:], mode="bilinear").clamp_min(1e-8).log()


def _auto(config: PretrainedConfig) -> type:
    universal = type(config) in MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    return AutoModelForUniversalSegmentation if universal else AutoModelForSemanticSegmentation


def small(classes: int) -> UperNetConfig:
    """An UperNet of 0.1 million weights on a ConvNext of two stages."""
    backbone = ConvNextConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    return UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=classes, use_auxiliary_head=False
    )


class Segmentation(Task):
    """Label maps, (B, 1, H, W) float32 whole numbers: 0 is "no label", k is class k - 1.

    The labels of the toy detector stand for the parts of toy scenes: the eight numbers 2, 2 + toy_stride, ..., whose
    colours lie far apart.

    Args:
        detector: `published`, `toy` (of the embedded world), or `auto`, which is toy where model or data are embedded.
        weights: folder or hub id of a semantic or universal segmenter of transformers with this task's classes.
        pretrained: false draws the weights at random.
    """

    categorical: ClassVar[bool] = True
    annotated: ClassVar[Literal["classes"]] = "classes"
    nearest: ClassVar[bool] = True
    differentiable: ClassVar[bool] = True
    palette: ClassVar[str]
    toy_stride: ClassVar[int]

    def __init__(self, detector: Choice, weights: str, pretrained: bool, *, toy: bool) -> None:
        self.toy, self.classes = wants_toy(detector, toy), len(colours(self.palette)) - 1
        if self.toy:
            self.detector = Embedded()
            self.labels = 2 + self.toy_stride * torch.arange(len(PARTS))
        else:
            network = SegmentationNetwork(weights, pretrained, self.classes)
            self.detector = Detector(network, identity_of(weights, pretrained))
            self.labels = 1 + torch.arange(self.classes)

    @property
    def fingerprint(self) -> str:
        return json.dumps([self.name, self.detector.identity])

    def logits(self, images: Tensor) -> Tensor:
        """(B, K, H, W), channel k for the label self.labels[k]."""
        found = self.detector(images)
        return found.parts if self.toy else found

    @torch.no_grad()
    def detect(self, images: Tensor) -> Tensor:
        """The likeliest label of every pixel. It has no gradient; loss() has."""
        return self.labels.to(images.device)[self.logits(images).argmax(1, keepdim=True)].float()

    def render(self, maps: Tensor) -> Tensor:
        return paint(maps, self.palette)

    def worse(self, images: Tensor, control: Tensor) -> Tensor:
        """The losing condition is black where `control` is, as in train/reward_CPO_DINO.py of ZonglinL/CPO."""
        return super().worse(images, control) * (control > 0).any(1, keepdim=True)

    def agreement(self, control: Tensor, maps: Tensor) -> Tensor:
        """The share of the labelled pixels that have the colour of their label.

        Road and skyscraper, which have one grey in published pictures, are one level apart here.
        """
        labelled = maps[:, 0] > 0
        agree = ((self.render(maps) - control).abs().amax(1) < 2 / 255) & labelled
        return agree.flatten(1).sum(1) / labelled.flatten(1).sum(1)

    def parse(self, control: Tensor) -> Tensor:
        return read_labels(control, self.palette)

    def distance(self, maps: Tensor, target: Tensor) -> Tensor:
        """The share of the labelled pixels whose label differs."""
        labelled = target > 0
        return ((maps != target) & labelled).flatten(1).sum(1) / labelled.flatten(1).sum(1).clamp_min(1)

    def loss(self, images: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, the mean over the labelled pixels of each item."""
        channel = torch.full((self.classes + 1,), IGNORED)
        channel[self.labels] = torch.arange(len(self.labels))
        wanted = channel.to(target.device)[target[:, 0].long()]
        losses = F.cross_entropy(self.logits(images), wanted, ignore_index=IGNORED, reduction="none")
        return losses.flatten(1).sum(1) / (wanted != IGNORED).flatten(1).sum(1).clamp_min(1)

    def counts(self, maps: Tensor, target: Tensor) -> Tensor:
        """Pixels in the intersection and in the union of each class, (B, 2, classes); unlabelled pixels are left out.

        Their sum over a set gives the published mIoU: one confusion matrix over all pictures.
        """
        batch, labelled = len(maps), target > 0
        offset = torch.arange(batch, device=maps.device).view(-1, 1, 1, 1) * (self.classes + 1)

        def areas(labels: Tensor, where: Tensor) -> Tensor:
            hits = (labels.long() + offset)[where]
            return torch.bincount(hits, minlength=batch * (self.classes + 1)).view(batch, -1)[:, 1:]

        both = areas(maps, (maps == target) & labelled)
        union = areas(maps, labelled) + areas(target, labelled) - both
        return torch.stack([both, union], 1)

    def pool(self, counts: Tensor) -> dict[str, Tensor]:
        """mIoU of (..., 2, classes): the mean over the classes that occur, nan where none does."""
        return {f"{self.name}/miou": _mean_iou(counts)}

    def score(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """mIoU of each picture alone, for paired intervals; the published one is that of pool()."""
        return {f"{self.name}/image_miou": _mean_iou(self.counts(maps, target))}


def _mean_iou(counts: Tensor) -> Tensor:
    both, union = counts.double().unbind(-2)
    present = union > 0
    return torch.where(present, both / union.clamp_min(1), 0).sum(-1) / present.sum(-1)
