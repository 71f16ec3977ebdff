"""BlazePose (arXiv 2006.10204) without a hub: a person detector, and the joints in a turned square about each person.

The networks are those of the PyPI wheel of mediapipe 0.10.14 (Apache-2.0; later ones carry none) and run by
ai-edge-litert on the CPU; around them is what mediapipe's graphs pose_detection and pose_landmark compute.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from lpo_platform.config.errors import UserError
from lpo_platform.tasks.detector import SETTING, Detector

WHEEL = "mediapipe-0.10.14-*.whl"
FILES = ("pose_detection.tflite", "pose_landmark_full.tflite")
# COCO's 17 keypoints among BlazePose's 33
OF_BLAZEPOSE = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
CELLS = ((28, 2), (14, 2), (7, 6))  # the detector's grids, and how many boxes each cell has
OVERLAP = 0.3  # of boxes from which they show one person
MARGIN = 1.25  # of the square over the circle about a person
SURE = 0.5  # that there is a person, and of a place in a heat map
WINDOW = 3  # places of a heat map about a joint that it is refined by, to each side


@dataclass(frozen=True)
class Square:
    """A turned square in a picture: middle (2,) and side in pixels, angle in radians, clockwise."""

    middle: Tensor
    side: float
    angle: float = 0.0

    def placed(self, points: Tensor) -> Tensor:
        """(..., 2) in the square, its corners 0, 0 and 1, 1 -> x, y in pixels of the picture."""
        x, y = (points - 0.5).unbind(-1)
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        return self.middle + self.side * torch.stack([cos * x - sin * y, sin * x + cos * y], -1)

    def view(self, image: Tensor, size: int, padding: str) -> Tensor:
        """What (3, H, W) shows in the square, bilinear: (3, size, size).

        As in mediapipe its corner is the middle of the first pixel there and here; were it the corner of both, the
        joints of a picture of 512 pixels would move by 5.
        """
        places = self.placed(lattice(size) / size) + 0.5
        grid = 2 * places / torch.tensor(image.shape[:0:-1]) - 1
        return F.grid_sample(image[None], grid[None], padding_mode=padding, align_corners=False)[0]


class BlazePose(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, P, 17, 3): x, y in pixels and score; rows of people who are not there are 0.

    A joint's score is the probability that it is in the square and can be seen; 0 where it lies outside the picture.
    """

    def __init__(self, models: tuple[bytes, bytes], threshold: float) -> None:
        super().__init__()
        self.people, self.joints = (_Network(model) for model in models)
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        found = [list(self._poses(image)) for image in images.cpu()]
        poses = torch.zeros(len(images), max(1, *map(len, found)), 17, 3)
        for row, people in zip(poses, found, strict=True):
            for place, person in zip(row, people, strict=False):
                place.copy_(person)
        return poses.to(images.device)

    def _poses(self, image: Tensor) -> Iterator[Tensor]:
        for square in self._squares(image):
            points, sure, _, heat, _ = self.joints(square.view(image, 256, "border"))
            if sure.item() < SURE:
                continue
            points = points.view(39, 5)
            places = square.placed(refined(points[:, :2] / 256, heat[0].permute(2, 0, 1).sigmoid()))
            inside = ((places >= 0) & (places < torch.tensor(image.shape[:0:-1]))).all(1)
            score = points[:, 3:].sigmoid().prod(1) * inside
            yield torch.cat([places, score[:, None]], 1)[list(OF_BLAZEPOSE)]

    def _squares(self, image: Tensor) -> Iterator[Square]:
        """About the people of a picture, the surest first, with the line from hips to head upright."""
        size = torch.tensor(image.shape[:0:-1])
        whole = Square(size / 2, float(size.max()))
        boxes, scores = self.people(whole.view(image, 224, "zeros") * 2 - 1)
        for hips, rim in persons(boxes[0], scores[0, :, 0].clamp(-100, 100).sigmoid(), self.threshold):
            (x, y), hips = (whole.placed(rim) - whole.placed(hips)).tolist(), whole.placed(hips)
            yield Square(hips, 2 * MARGIN * math.hypot(x, y), math.pi / 2 - math.atan2(-y, x))


def persons(boxes: Tensor, scores: Tensor, threshold: float) -> list[Tensor]:
    """What the detector says, (A, 12) and (A,), -> of each person the middle of the hips and a point of the circle
    about the person, (2, 2) with the picture's square as the unit. Overlapping boxes are averaged by their scores.
    """
    sure = scores >= threshold
    places = boxes[sure].view(-1, 6, 2) / 224  # middle, extent, then four points
    places[:, [0, 2, 3, 4, 5]] += anchors()[sure, None]
    scores = scores[sure]
    corners, found = box_convert(places[:, :2].flatten(1), "cxcywh", "xyxy"), []
    while len(scores):
        same = box_iou(corners[scores.argmax()][None], corners)[0] > OVERLAP
        found.append((scores[same, None, None] * places[same, 2:4]).sum(0) / scores[same].sum())
        places, corners, scores = places[~same], corners[~same], scores[~same]
    return found


def anchors() -> Tensor:
    """The middles of the cells that the detector's boxes are relative to, (2254, 2)."""
    grids = []
    for side, boxes in CELLS:
        grids.append(((lattice(side) + 0.5) / side).flatten(0, 1).repeat_interleave(boxes, 0))
    return torch.cat(grids)


def lattice(side: int) -> Tensor:
    """Column and row of the places of a grid, (side, side, 2)."""
    return torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1)


def refined(points: Tensor, heat: Tensor) -> Tensor:
    """(K, 2) in the unit square, moved to the mean of their heat maps (K, s, s) within WINDOW, where those are sure."""
    size = torch.tensor(heat.shape[:0:-1])
    middle, places = (points * size).long(), lattice(heat.shape[-1])
    held = heat * ((places - middle[:, None, None]).abs() <= WINDOW).all(-1)
    mean = (held[..., None] * places).sum((1, 2)) / held.sum((1, 2)).clamp_min(1e-9)[:, None]
    moves = (held.amax((1, 2)) >= SURE) & ((middle >= 0) & (middle < size)).all(1)
    return torch.where(moves[:, None], mean / size, points)


class _Network:
    """A .tflite of one picture (3, H, W) -> its outputs in their order; it has one state, so callers take turns."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter, self.turn = Interpreter(model_content=model, num_threads=torch.get_num_threads()), Lock()
        self.interpreter.allocate_tensors()

    def __call__(self, picture: Tensor) -> list[Tensor]:
        (given,) = self.interpreter.get_input_details()
        pixels: NDArray[np.float32] = picture.permute(1, 2, 0)[None].contiguous().numpy()
        with self.turn:
            self.interpreter.set_tensor(given["index"], pixels)
            self.interpreter.invoke()
            names = sorted(self.interpreter.get_output_details(), key=lambda output: output["name"])
            return [torch.from_numpy(self.interpreter.get_tensor(output["index"])) for output in names]


def blazepose(weights: str, threshold: float, *, setting: str = SETTING) -> Detector:
    """weights: the wheel, or a folder that has FILES somewhere. threshold: score from which a person is looked at.

    Raises UserError without them, or without ai-edge-litert.
    """
    models = _models(Path(weights).expanduser())
    if models is None:
        raise UserError(
            f"{setting}={weights}: not BlazePose; what works: {setting}=<{WHEEL}>, from "
            "`pip download --no-deps --python-version 3.11 --only-binary :all: mediapipe==0.10.14`"
        )
    try:
        network = BlazePose(models, threshold)
    except ImportError as error:
        raise UserError(
            f"{setting}={weights}: ai-edge-litert is not installed; what works: pip install 'lpo-platform[pose]'"
        ) from error
    return Detector(network, hashlib.sha256(b"".join(models)).hexdigest())


def _models(place: Path) -> tuple[bytes, ...] | None:
    if place.is_dir():
        found = {file.name: file.read_bytes() for file in place.rglob("*.tflite") if file.name in FILES}
    elif zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as wheel:
            names = {Path(name).name: name for name in wheel.namelist()}
            found = {name: wheel.read(names[name]) for name in FILES if name in names}
    else:
        found = {}
    return tuple(found[name] for name in FILES) if len(found) == len(FILES) else None
