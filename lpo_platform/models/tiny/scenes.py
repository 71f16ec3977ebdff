"""Procedural captioned scenes with every ground truth known: two shapes in relation, or a cartoon person.

A scene is drawn once, as a map of part numbers at four times the resolution; its picture, masks and depth are
read from that map, so they agree by construction. Everything follows from (seed, split, index).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

COLOURS = {
    "red": (214, 44, 44),
    "green": (46, 160, 67),
    "blue": (46, 84, 214),
    "yellow": (248, 214, 50),
    "purple": (156, 54, 184),
    "cyan": (40, 180, 196),
}

BACKGROUNDS = {"white": (246, 246, 246), "gray": (168, 168, 168), "black": (28, 28, 28)}
SKIN, DARK = (240, 188, 156), (70, 46, 34)
COLOUR_NAMES = (*COLOURS, *BACKGROUNDS, "other")
SHAPES = ("circle", "square", "triangle")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
POSES = ("standing", "waving", "cheering", "stretching")
CLASSES = ("background", *SHAPES, "person")
PARTS = ("background", *SHAPES, "shirt", "trousers", "skin", "dark")
CLASS_OF_PART = (0, 1, 2, 3, 4, 4, 4, 4)

KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip

VERSION = 1  # in the fingerprint: raise it when scenes are drawn differently (test_toy pins the pixels)
OVERSAMPLING = 4
PEOPLE = 0.4
HELD_OUT = 0.1


@dataclass(frozen=True)
class ShapePair:
    """Content of a two-shape scene; each thing is (colour, shape) and the two shapes differ."""

    first: tuple[str, str]
    relation: str
    second: tuple[str, str]
    background: str

    def caption(self) -> str:
        first, second = (" ".join(thing) for thing in (self.first, self.second))
        return f"a {first} {self.relation} a {second} on a {self.background} background"

    def canonical(self) -> str:
        """The same text for "A left of B" and "B right of A": paraphrases fall into the same split."""
        opposite = {"right of": "left of", "below": "above"}
        if self.relation not in opposite:
            return self.caption()
        turned = replace(self, first=self.second, second=self.first, relation=opposite[self.relation])
        return turned.caption()


@dataclass(frozen=True)
class Person:
    """Content of a scene with a cartoon person."""

    shirt: str
    trousers: str
    pose: str
    background: str

    def caption(self) -> str:
        clothes = f"a {self.shirt} shirt and {self.trousers} trousers"
        return f"a person in {clothes} {self.pose} on a {self.background} background"

    def canonical(self) -> str:
        return self.caption()


Content = ShapePair | Person


@dataclass(frozen=True)
class Scene:
    """One drawn scene; maps are (H, W), `keypoints` (17, 3): x, y in pixels and COCO visibility (0 or 2)."""

    content: Content
    image: Tensor  # (3, H, W) uint8
    parts: Tensor  # int64, index into PARTS
    colours: Tensor  # int64, index into COLOUR_NAMES
    depth: Tensor  # float32 in [0, 1], 1 is near
    keypoints: Tensor

    @property
    def caption(self) -> str:
        return self.content.caption()

    @property
    def classes(self) -> Tensor:
        """(H, W) int64, index into CLASSES."""
        return torch.tensor(CLASS_OF_PART)[self.parts]


def _one_of(*words: str) -> str:
    return "(" + "|".join(words) + ")"


_BACKGROUND = rf"on a {_one_of(*BACKGROUNDS)} background"
_COLOUR, _SHAPE = _one_of(*COLOURS), _one_of(*SHAPES)
_PAIR = re.compile(rf"a {_COLOUR} {_SHAPE} {_one_of(*RELATIONS)} a {_COLOUR} {_SHAPE} {_BACKGROUND}")
_PERSON = re.compile(rf"a person in a {_COLOUR} shirt and {_COLOUR} trousers {_one_of(*POSES)} {_BACKGROUND}")


def parse(caption: str) -> Content:
    """The content that a caption of this grammar names; raises ValueError for any other text."""
    text = " ".join(caption.lower().split()).rstrip(".")
    if match := _PAIR.fullmatch(text):
        colour, shape, relation, other_colour, other_shape, background = match.groups()
        return ShapePair((colour, shape), relation, (other_colour, other_shape), background)
    if match := _PERSON.fullmatch(text):
        return Person(*match.groups())
    examples = f"{_EXAMPLES[0].caption()!r} or {_EXAMPLES[1].caption()!r}"
    raise ValueError(f"no toy caption: {caption!r}; expected a sentence like {examples}")


_EXAMPLES = (
    ShapePair(("red", "circle"), "left of", ("blue", "square"), "gray"),
    Person("green", "blue", "waving", "white"),
)


def all_contents() -> list[Content]:
    """Every content of the grammar, in a fixed order."""
    pairs: list[Content] = [
        ShapePair((colour, shape), relation, (other_colour, other_shape), background)
        for colour in COLOURS
        for shape in SHAPES
        for relation in RELATIONS
        for other_colour in COLOURS
        for other_shape in SHAPES
        if other_shape != shape
        for background in BACKGROUNDS
    ]
    people = [Person(s, t, p, b) for s in COLOURS for t in COLOURS for p in POSES for b in BACKGROUNDS]
    return pairs + people


def held_out(content: Content) -> bool:
    """Whether this content belongs to the test split; decided by a hash of the caption, whatever the seed."""
    digest = hashlib.sha256(content.canonical().encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def draw_content(rng: np.random.Generator, *, people: float = PEOPLE) -> Content:
    """A random content: a person with probability `people`, two different shapes otherwise."""
    colours = tuple(COLOURS)
    background = _pick(rng, tuple(BACKGROUNDS))
    if rng.random() < people:
        return Person(_pick(rng, colours), _pick(rng, colours), _pick(rng, POSES), background)
    first, second = (SHAPES[i] for i in rng.permutation(len(SHAPES))[:2])
    relation = _pick(rng, tuple(RELATIONS))
    return ShapePair((_pick(rng, colours), first), relation, (_pick(rng, colours), second), background)


class _Canvas:
    """A map of part numbers, drawn in unit coordinates at OVERSAMPLING times the resolution."""

    def __init__(self, resolution: int) -> None:
        self.size = resolution * OVERSAMPLING
        self.map = Image.new("L", (self.size, self.size), 0)
        self.pen = ImageDraw.Draw(self.map)

    def polygon(self, points: np.ndarray, part: str) -> None:
        self.pen.polygon([tuple(p) for p in (points * self.size).tolist()], fill=PARTS.index(part))

    def disc(self, centre: np.ndarray, radius: float, part: str) -> None:
        low, high = (centre - radius) * self.size, (centre + radius) * self.size
        self.pen.ellipse([*low.tolist(), *high.tolist()], fill=PARTS.index(part))

    def limb(self, points: list[np.ndarray], width: float, part: str) -> None:
        """A line through `points` with round joints and ends."""
        flat = [tuple((p * self.size).tolist()) for p in points]
        self.pen.line(flat, fill=PARTS.index(part), width=max(1, round(width * self.size)))
        for point in points:
            self.disc(point, width / 2, part)


def _draw_shape(canvas: _Canvas, shape: str, centre: np.ndarray, radius: float) -> None:
    if shape == "circle":
        canvas.disc(centre, radius, shape)
    elif shape == "square":
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.88
        canvas.polygon(centre + radius * corners, shape)
    else:
        corners = np.array([(0, -1), (1, 0.85), (-1, 0.85)]) * 1.05
        canvas.polygon(centre + radius * corners, shape)


def _draw_pair(canvas: _Canvas, content: ShapePair, rng: np.random.Generator) -> dict[str, float]:
    """Draws the shapes apart along the axis of their relation; returns each one's depth, larger is nearer."""
    radii = rng.uniform(0.115, 0.20, 2)
    gap = rng.uniform(0.03, 0.03 + max(0.0, 0.9 - 2 * radii.sum()))
    extent = 2 * radii.sum() + gap
    start = rng.uniform(0.03, 0.97 - extent)
    along = np.array([start + radii[0], start + extent - radii[1]])
    across = rng.uniform(0.24, 0.76) + rng.uniform(-0.11, 0.11, 2)
    across = np.clip(across, radii + 0.03, 0.97 - radii)
    offset = RELATIONS[content.relation]
    things, sizes = [content.first, content.second], radii
    if sum(offset) > 0:  # the first thing is the one further right or below
        along, across, sizes = along[::-1], across[::-1], radii[::-1]
    for (_, shape), a, b, radius in zip(things, along, across, sizes, strict=True):
        _draw_shape(canvas, shape, np.array((a, b) if offset[0] else (b, a)), radius)
    return {shape: 0.4 + 0.6 * (r - 0.115) / 0.085 for (_, shape), r in zip(things, sizes, strict=True)}


_ARMS = {  # ranges of the upper arm and the forearm in degrees; 0 hangs down, 90 points outwards, 180 up
    "down": ((12, 28), (0, 20)),
    "raised": ((100, 125), (155, 190)),
    "up": ((140, 160), (150, 178)),
    "out": ((80, 98), (78, 100)),
}

_POSE_ARMS = {
    "standing": ("down", "down"),
    "waving": ("raised", "down"),
    "cheering": ("up", "up"),
    "stretching": ("out", "out"),
}


def _arm_angles(pose: str, rng: np.random.Generator) -> np.ndarray:
    """(2, 2) radians: [left, right] x [upper arm, forearm]; either hand may wave."""
    ranges = np.array([_ARMS[arm] for arm in _POSE_ARMS[pose]])
    angles = np.radians(rng.uniform(ranges[..., 0], ranges[..., 1]))
    return angles[::-1] if rng.random() < 0.5 else angles


def _skeleton(pose: str, rng: np.random.Generator) -> np.ndarray:
    """(17, 2) keypoints of a person facing the viewer: height 1, head tops at y = 0, the middle is x = 0."""
    points = np.zeros((17, 2))
    points[0] = 0, 0.13
    tilt = rng.uniform(-0.015, 0.015)
    for side, sign in ((0, 1), (1, -1)):  # the person's left is the viewer's right
        points[1 + side] = sign * 0.042 + tilt, 0.105
        points[3 + side] = sign * 0.105 + tilt, 0.12
        points[5 + side] = sign * 0.125, 0.285
        points[11 + side] = sign * 0.075, 0.58
        spread = rng.uniform(0.005, 0.08)
        points[13 + side] = sign * (0.085 + spread * 0.5), 0.765
        points[15 + side] = sign * (0.085 + spread), 0.95
    points[0, 0] = tilt
    for side, (upper, lower) in enumerate(_arm_angles(pose, rng)):
        sign = 1 - 2 * side
        points[7 + side] = points[5 + side] + 0.17 * np.array((sign * math.sin(upper), math.cos(upper)))
        points[9 + side] = points[7 + side] + 0.16 * np.array((sign * math.sin(lower), math.cos(lower)))
    return points


def _draw_person(canvas: _Canvas, content: Person, rng: np.random.Generator) -> tuple[dict[str, float], np.ndarray]:
    """Draws the person somewhere inside the picture; returns the depths and the (17, 2) unit keypoints."""
    points = _skeleton(content.pose, rng)
    low, high = points.min(0) - 0.05, points.max(0) + 0.05
    low[1] = min(low[1], 0.0)  # the head tops above every keypoint unless a hand is raised
    height = min(rng.uniform(0.7, 0.95), *(0.96 / (high - low)))
    corner = np.array([rng.uniform(0.02, max(0.02, 0.98 - e)) for e in (high - low) * height])
    points = (points - low) * height + corner
    nose = points[0]
    head = nose + np.array((0, -0.025)) * height
    for side in (0, 1):
        canvas.limb([points[i + side] for i in (11, 13, 15)], 0.1 * height, "trousers")
        toe = points[15 + side] + np.array((0.03 - 0.06 * side, 0.01)) * height
        canvas.limb([points[15 + side], toe], 0.065 * height, "dark")
    pad = np.array(((-0.02, -0.035), (0.02, -0.035), (0.03, 0.03), (-0.03, 0.03))) * height
    canvas.polygon(points[[6, 5, 11, 12]] + pad, "shirt")
    for side in (0, 1):
        canvas.limb([points[i + side] for i in (5, 7, 9)], 0.085 * height, "shirt")
        canvas.disc(points[9 + side], 0.052 * height, "skin")
    canvas.disc(head, 0.12 * height, "dark")
    canvas.disc(nose + np.array((0, 0.005)) * height, 0.105 * height, "skin")
    for side in (0, 1):
        canvas.disc(points[1 + side] + np.array((0, 0.01)) * height, 0.018 * height, "dark")
    near = 0.4 + 0.6 * (height - 0.55) / 0.4
    return dict.fromkeys(("shirt", "trousers", "skin", "dark"), min(1.0, max(0.4, near))), points


def _part_colours(content: Content) -> dict[str, str]:
    """Part name -> colour name."""
    if isinstance(content, Person):
        names = {"shirt": content.shirt, "trousers": content.trousers}
    else:
        names = {shape: colour for colour, shape in (content.first, content.second)}
    return {"background": content.background, **names}


def draw_scene(content: Content, rng: np.random.Generator, *, resolution: int = 64) -> Scene:
    """Draws `content` at random positions, sizes and slightly varied colours."""
    canvas, keypoints = _Canvas(resolution), torch.zeros(17, 3)
    if isinstance(content, Person):
        near, points = _draw_person(canvas, content, rng)
        keypoints = torch.cat([torch.from_numpy(points * resolution).float(), torch.full((17, 1), 2.0)], 1)
    else:
        near = _draw_pair(canvas, content, rng)
    names = _part_colours(content)
    rgb = {"skin": SKIN, "dark": DARK} | {part: (COLOURS | BACKGROUNDS)[name] for part, name in names.items()}
    palette = np.zeros((len(PARTS), 3))
    for part, value in rgb.items():
        palette[PARTS.index(part)] = np.clip(np.array(value) + rng.uniform(-8, 8, 3), 0, 255)
    middle = OVERSAMPLING // 2
    drawn = np.asarray(canvas.map)[middle::OVERSAMPLING, middle::OVERSAMPLING]
    parts = torch.from_numpy(drawn.astype(np.int64))
    canvas.map.putpalette(palette.round().astype(np.uint8).tobytes())
    image = np.asarray(canvas.map.convert("RGB").reduce(OVERSAMPLING))
    colours = torch.tensor([COLOUR_NAMES.index(names.get(part, "other")) for part in PARTS])[parts]
    floor = torch.linspace(0, 0.3, resolution)[:, None].expand(resolution, resolution)
    depth = torch.tensor([near.get(part, 0.0) for part in PARTS])[parts]
    return Scene(
        content=content,
        image=torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous(),
        parts=parts,
        colours=colours,
        depth=torch.where(parts == 0, floor, depth.float()),
        keypoints=keypoints,
    )


class ToySplit:
    """One split of the toy scenes: `scene(i)` has all ground truths."""

    def __init__(self, split: str, num: int, seed: int, *, resolution: int, people: float = PEOPLE) -> None:
        self.split, self.num, self.seed, self.resolution, self.people = split, num, seed, resolution, people
        recipe = ["toy", VERSION, split, num, seed, resolution, *([people] if people != PEOPLE else [])]
        self.fingerprint = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()

    def __len__(self) -> int:
        return self.num

    def scene(self, i: int) -> Scene:
        """The i-th scene with all ground truths; IndexError past the end."""
        content, rng = self._content(i)
        return draw_scene(content, rng, resolution=self.resolution)

    def _content(self, i: int) -> tuple[Content, np.random.Generator]:
        if not 0 <= i < self.num:
            raise IndexError(f"toy {self.split} split has {self.num} scenes, index {i} asked for")
        rng = np.random.default_rng([self.seed, ("train", "test").index(self.split), i])
        content = draw_content(rng, people=self.people)
        while held_out(content) != (self.split == "test"):
            content = draw_content(rng, people=self.people)
        return content, rng

    def caption(self, i: int) -> str:
        """The i-th scene's caption; its content is decided before anything is drawn."""
        return self._content(i)[0].caption()
