"""The detector of the embedded world: one small network that finds every task's condition in a toy picture.

Architecture and training scenes differ from the judge's, so that a model which follows these maps is measured by
another network. All outputs are differentiable in the picture.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from lpo_platform.models.tiny.scenes import KEYPOINTS, PARTS, Scene, ToySplit

FOLDER = Path(__file__).parents[1] / "assets" / "tiny" / "detector"
SECOND = FOLDER.with_name("second_detector")  # which judges what the first one has rewarded
RESOLUTION = 64
SPREAD = 1.5  # pixels: standard deviation of a joint's mark in its heat map
HEADS = {"parts": len(PARTS), "depth": 1, "edges": 1, "lines": 1, "joints": len(KEYPOINTS)}


@dataclass(frozen=True)
class Found:
    """What a toy picture shows. All values but the logits `parts` lie in [0, 1].

    Attributes:
        parts: (B, 8, H, W), logits.
        depth: (B, 1, H, W), 1 is near.
        edges: (B, 1, H, W), soft boundaries of the parts.
        lines: (B, 1, H, W), thin boundaries, 1 on a line.
        joints: (B, 17, 64, 64), a peak of 1 where a joint is.
    """

    parts: Tensor
    depth: Tensor
    edges: Tensor
    lines: Tensor
    joints: Tensor


class _Residual(nn.Module):
    """A residual block of two 3 x 3 convolutions, the second one dilated."""

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(self.norm(x))))


class ToyDetector(nn.Module):
    """(B, 3, H, W) in [0, 1], read at 64 px -> Found. Residual blocks at 32, 16 and 8 px, joined by addition."""

    def __init__(self, widths: tuple[int, int, int] = (32, 40, 40)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        fine, middle, coarse = widths
        self.stem = nn.Conv2d(3, fine, 4, stride=2, padding=1)
        self.fine = nn.Sequential(_Residual(fine), _Residual(fine))
        self.to_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle = nn.Sequential(_Residual(middle), _Residual(middle))
        self.to_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(*(_Residual(coarse, dilation) for dilation in (1, 2, 1)))
        self.from_coarse, self.from_middle = nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)
        self.merged = _Residual(middle)
        self.last = nn.Sequential(_Residual(fine), _Residual(fine))
        self.head = nn.Conv2d(fine, 4 * sum(HEADS.values()), 3, padding=1)

    def forward(self, images: Tensor) -> Found:
        maps = dict(zip(HEADS, self.logits(_resized(images)).split(list(HEADS.values()), 1), strict=True))
        joints = maps.pop("joints").sigmoid()
        parts, depth, edges, lines = (_resized(map_, images.shape[-2:]) for map_ in maps.values())
        return Found(parts, depth.sigmoid(), edges.sigmoid(), lines.sigmoid(), joints)

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, 64, 64) -> (B, sum of HEADS, 64, 64)."""
        fine = self.fine(self.stem(images * 2 - 1))
        middle = self.middle(self.to_middle(fine))
        coarse = self.coarse(self.to_coarse(middle))
        middle = self.merged(middle + F.interpolate(self.from_coarse(coarse), scale_factor=2.0, mode="bilinear"))
        fine = self.last(fine + F.interpolate(self.from_middle(middle), scale_factor=2.0, mode="bilinear"))
        return F.pixel_shuffle(self.head(fine), 2)

    def save(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        config = {"widths": self.widths, "heads": HEADS}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path = FOLDER) -> ToyDetector:
        """The trained detector in evaluation mode; `launchers/tiny.py --parts detector` makes its weights again."""
        detector = cls(tuple(json.loads((folder / "config.json").read_text(encoding="utf-8"))["widths"]))
        detector.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return detector.eval().requires_grad_(False)


@cache
def toy_detector(folder: Path = FOLDER) -> ToyDetector:
    """The detector that all tasks of a process share."""
    return ToyDetector.load(folder)


def fingerprint(folder: Path = FOLDER) -> str:
    """Identifies the weights."""
    from lpo_platform.models.weights import digest

    return digest(str(folder))


def _resized(maps: Tensor, size: tuple[int, int] = (RESOLUTION, RESOLUTION)) -> Tensor:
    """The same maps where the size is right; areas are averaged, not sampled, where they shrink."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear", antialias=True)


def lines_of(parts: Tensor) -> Tensor:
    """Boundaries one pixel wide, (..., H, W) bool: pixels whose right or lower neighbour is another part."""
    lines = torch.zeros_like(parts, dtype=torch.bool)
    lines[..., :, :-1] |= parts[..., :, :-1] != parts[..., :, 1:]
    lines[..., :-1, :] |= parts[..., :-1, :] != parts[..., 1:, :]
    return lines


def edges_of(parts: Tensor) -> Tensor:
    """Soft boundaries, (B, H, W) in [0, 1]: those of lines_of from both sides, blurred with 1-2-1."""
    lines = lines_of(parts) | lines_of(parts.flip(-1, -2)).flip(-1, -2)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    blurred = F.conv2d(lines[:, None].float(), (kernel[:, None] * kernel)[None, None], padding=1)
    return blurred[:, 0]


def joints_of(keypoints: Tensor) -> Tensor:
    """(B, 17, 3) x, y in pixels and visibility -> heat maps (B, 17, 64, 64), a Gaussian of height 1 at each joint.

    A pixel's number is the coordinate of its upper left corner, so its middle is half a pixel further.
    """
    middle = torch.arange(RESOLUTION) + 0.5
    x, y, visible = keypoints[..., None, None].unbind(2)
    squared = (middle - x).square() + (middle[:, None] - y).square()
    return torch.exp(-squared / (2 * SPREAD**2)) * (visible > 0)


def targets_of(scenes: list[Scene]) -> dict[str, Tensor]:
    """What the network should find, by head, each with a first axis of scenes."""
    parts = torch.stack([scene.parts for scene in scenes])
    return {
        "parts": parts,
        "depth": torch.stack([scene.depth for scene in scenes]),
        "edges": edges_of(parts),
        "lines": lines_of(parts).float(),
        "joints": joints_of(torch.stack([scene.keypoints for scene in scenes])),
    }


def detector_loss(logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
    """Cross entropy of the parts, L1 of the depth, binary cross entropy of edges, lines and joints.

    The Gaussian of a joint covers few pixels, so its cross entropy counts more there.
    """
    maps = dict(zip(HEADS, logits.split(list(HEADS.values()), 1), strict=True))
    loss = F.cross_entropy(maps["parts"], targets["parts"])
    loss = loss + 2 * (maps["depth"][:, 0].sigmoid() - targets["depth"]).abs().mean()
    for name in ("edges", "lines"):
        loss = loss + F.binary_cross_entropy_with_logits(maps[name][:, 0], targets[name])
    joints = targets["joints"]
    return loss + 5 * F.binary_cross_entropy_with_logits(maps["joints"], joints, 1 + 20 * joints)


def train_detector(
    detector: ToyDetector, *, steps: int = 1600, batch: int = 16, num_scenes: int = 4096, seed: int = 23
) -> list[float]:
    """Trains `detector` in place and returns the losses. No method and no judge sees its scenes."""
    from lpo_platform.models.tiny.judge import disturb

    split, generator = ToySplit("train", num_scenes, seed, resolution=RESOLUTION), torch.Generator().manual_seed(seed)
    scenes = [split.scene(i) for i in range(num_scenes)]
    images = torch.stack([scene.image for scene in scenes])
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    detector.train()
    losses = []
    for _ in (bar := trange(steps, desc="detector", mininterval=5)):
        index = torch.randint(num_scenes, (batch,), generator=generator)
        pictures = disturb(images[index].float() / 255, generator)
        loss = detector_loss(detector.logits(pictures), targets_of([scenes[i] for i in index.tolist()]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    detector.eval().requires_grad_(False)
    return losses
