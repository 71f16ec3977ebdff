"""The OpenPose drawing of people, and its reading, with OpenPose's own colours and widths."""

import colorsys
import math
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lpo_platform.tasks import opencv_shapes
from lpo_platform.tasks.keypoint_files import OF_WHOLE

Shade = tuple[float, ...]
Drawing = Literal["smooth", "opencv"]

# Joint k of the drawing is keypoint COCO_OF[k]; NECK is the middle of the shoulders.
NECK = 1
COCO_OF = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
SHOULDERS = (5, 6)
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
THICKNESS = 4 / 512  # of the picture's side: radius of a joint and half the width of a limb
DISCS, LIMB = 0.4, 0.6  # shares of the joints alone, and of joints with limbs over them
BONES = tuple((0 if k % 4 == 1 else k - 1, k) for k in range(1, 21))  # of a hand, along each finger from the wrist
BONE_COLOURS = tuple(colorsys.hsv_to_rgb(k / len(BONES), 1, 1) for k in range(len(BONES)))
KNUCKLE, FACE = (0, 0, 1), (1, 1, 1)
BONE, DOT = 1 / 4, 3 / 4  # half the width of a bone and the radius of a point of the face, by the radius of a joint


def radius_at(resolution: int) -> float:
    """In pixels, at least 1."""
    return max(1.0, THICKNESS * resolution)


def draw(people: Tensor, resolution: int, drawing: Drawing = "smooth") -> Tensor:
    """(P, 17, 3) x, y in pixels and visibility of COCO's keypoints -> (3, R, R) in [0, 1] on black.

    Of COCO-WholeBody's, (P, 133, 3), also hands and face, which lie over all bodies, in the colours and proportions of
    OpenPose's and DWPose's pictures. A pixel belongs to a joint or limb that its middle lies in; where several do, the
    last one drawn. People follow each other in every layer.

    drawing: `smooth`, or `opencv`, whose bodies have the pixels of the originals: discs about whole pixels, and limbs
    that are one pixel wider, since the outline of a polygon is coloured, too.
    """
    radius, middle = radius_at(resolution), torch.arange(resolution, device=people.device) + 0.5
    x, y = middle[None, :], middle[:, None]
    colours = torch.tensor(COLOURS, device=people.device, dtype=torch.float32)[..., None, None] / 255
    discs = people.new_zeros(3, resolution, resolution)
    joints = [_joints(person) for person in people]

    def joint_at(a: float, b: float) -> Tensor:
        if drawing == "opencv":
            return opencv_shapes.disc(a, b, int(radius), resolution).to(people.device)
        return (x - a).square() + (y - b).square() <= radius**2

    def limb_between(start: list[float], end: list[float]) -> Tensor:
        if drawing == "opencv":
            return opencv_shapes.limb(start, end, int(radius), resolution).to(people.device)
        return _ellipse(x, y, start, end, radius)

    for person in joints:
        for colour, (a, b, visible) in zip(colours, person, strict=True):
            if visible:
                discs = torch.where(joint_at(a, b), colour, discs)
    limbs = discs
    for colour, (start, end) in zip(colours, LIMBS, strict=False):
        for person in joints:
            if person[start][2] and person[end][2]:
                limbs = torch.where(limb_between(person[start], person[end]), colour, limbs)
    picture = DISCS * discs + LIMB * limbs
    for person in people if people.shape[1] > 17 else ():
        for hand in ("hand_left", "hand_right"):
            picture = _hand(picture, x, y, person[OF_WHOLE[hand]].tolist(), radius)
        picture = _dots(picture, x, y, person[OF_WHOLE["face"]].tolist(), DOT * radius, FACE)
    return picture


def _hand(picture: Tensor, x: Tensor, y: Tensor, points: list[list[float]], radius: float) -> Tensor:
    for (start, end), colour in zip(BONES, BONE_COLOURS, strict=True):
        (xa, ya, seen), (xb, yb, too) = points[start], points[end]
        if seen and too:
            dx, dy = xb - xa, yb - ya
            along = (((x - xa) * dx + (y - ya) * dy) / max(dx * dx + dy * dy, 1e-9)).clamp(0, 1)
            near = (x - xa - along * dx).square() + (y - ya - along * dy).square() <= (BONE * radius) ** 2
            picture = torch.where(near, picture.new_tensor(colour)[:, None, None], picture)
    return _dots(picture, x, y, points, radius, KNUCKLE)


def _dots(
    picture: Tensor, x: Tensor, y: Tensor, points: list[list[float]], radius: float, colour: tuple[int, int, int]
) -> Tensor:
    hit = torch.zeros_like(picture[0], dtype=torch.bool)
    for a, b, seen in points:
        if seen:
            hit |= (x - a).square() + (y - b).square() <= radius**2
    return torch.where(hit, picture.new_tensor(colour)[:, None, None], picture)


def _joints(person: Tensor) -> list[list[float]]:
    """The 18 joints of (17, 3) keypoints, each x, y and whether it is seen."""
    left, right = person[list(SHOULDERS)].tolist()
    neck = [(a + b) / 2 for a, b in zip(left[:2], right[:2], strict=True)] + [left[2] > 0 and right[2] > 0]
    return [neck if number is None else person[number].tolist() for number in COCO_OF]


def _ellipse(x: Tensor, y: Tensor, start: list[float], end: list[float], half_width: float) -> Tensor:
    """Pixels of a filled ellipse between two joints."""
    (xa, ya, _), (xb, yb, _) = start, end
    length = math.hypot(xb - xa, yb - ya)
    if length == 0:
        return torch.zeros_like(x + y, dtype=torch.bool)
    cos, sin = (xb - xa) / length, (yb - ya) / length
    dx, dy = x - (xa + xb) / 2, y - (ya + yb) / 2
    along, across = dx * cos + dy * sin, dy * cos - dx * sin
    return (along / (length / 2)).square() + (across / half_width).square() <= 1


def read_person(control: Tensor) -> Tensor:
    """The person that draw() drew: (3, R, R) in [0, 1] -> (1, 17, 3), visibility 0 where no disc is left.

    A joint is where a disc holds all pixels of its own colours and most of those that could also be a limb's. Exact for
    one person whose joints are pixel middles, whose discs do not touch and on whose joints no other limb lies; a disc
    that is partly hidden is found to about its radius. Raises ValueError for several people, whom the drawing does not
    tell apart.
    """
    radius, levels = radius_at(control.shape[-1]), control.mul(255).round()
    reach = torch.arange(-int(radius), int(radius) + 1, device=control.device)
    disc = (reach.square() + reach[:, None].square() <= radius**2).float()[None, None]
    person = torch.zeros(17, 3, device=control.device)
    for joint, number in enumerate(COCO_OF):
        own, shared = ([_matching(levels, shade) for shade in shades] for shades in _shades(joint))
        sure = torch.stack(own).any(0)
        if number is None or not sure.any():
            continue
        seen = torch.stack([sure, torch.stack([*own, *shared]).any(0)]).float()[:, None]
        held, filled = F.conv2d(seen, disc, padding=int(radius))[:, 0]
        if held.max() < sure.sum():
            raise ValueError("a drawing of several people, or of crossing limbs, cannot be read back")
        rows, columns = (filled == filled[held == held.max()].max()).logical_and(held == held.max()).nonzero().T
        middle = torch.stack([columns.float().mean(), rows.float().mean()]) + 0.5
        person[number] = torch.cat([middle, middle.new_ones(1)])
    return person[None]


def _matching(levels: Tensor, shade: Shade) -> Tensor:
    """Pixels of that shade; the drawing was rounded to 8 bits on the way, hence two levels of tolerance."""
    return (levels - levels.new_tensor(shade)[:, None, None]).abs().amax(0) <= 2


@cache
def _shades(joint: int) -> tuple[tuple[Shade, ...], tuple[Shade, ...]]:
    """The colours of a joint's disc, bare and under each limb that ends there: its own, and those that a limb has."""
    own = COLOURS[joint]
    over = [COLOURS[number] for number, ends in enumerate(LIMBS) if joint in ends]
    shades = [own] + [tuple(DISCS * a + LIMB * b for a, b in zip(own, c, strict=True)) for c in over]
    limbs = [tuple(LIMB * level for level in colour) for colour in COLOURS[: len(LIMBS)]]

    def shared(shade: Shade) -> bool:
        return any(max(abs(a - b) for a, b in zip(shade, limb, strict=True)) <= 2 for limb in limbs)

    return tuple(s for s in shades if not shared(s)), tuple(s for s in shades if shared(s))
