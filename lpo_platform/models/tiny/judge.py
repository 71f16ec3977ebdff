"""The independent judge of toy pictures: a small U-Net that names part and colour of every pixel, and a caption check.

No method optimises it. It sees sharp, blurred, noisy and recoloured scenes while it learns, so that it also reads
generated pictures. Presence, colour shares, directions and purity do not reward larger objects.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import trange

from lpo_platform.models.tiny.scenes import COLOUR_NAMES, PARTS, POSES, RELATIONS, Person, ShapePair, ToySplit, parse

FOLDER = Path(__file__).parents[2] / "assets" / "tiny" / "judge"
RESOLUTION = 64
SHAPE_AREA = 0.012  # of the picture: half of the smallest shape that the toy data draws
CLOTHES_AREA, SKIN_AREA = 0.01, 0.004
KINDS = {
    "shapes": {
        "objects": ("first", "second"),
        "colours": ("first_colour", "second_colour"),
        "relation": ("relation",),
    },
    "person": {"body": ("person",), "clothes": ("shirt", "trousers"), "pose": ("pose",)},
}


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (channels_in, channels_out):
        layers += [nn.Conv2d(channels, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


class Judge(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] -> logits of part (B, 8, ...), colour (B, 10, ...) and pose (B, 4, ...)."""

    def __init__(self, widths: tuple[int, ...] = (32, 48, 64)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((12, *widths[:-1]), widths, strict=True))
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(_block(narrow + wide, narrow) for narrow, wide in pairs)
        self.pooled = nn.Linear(widths[-1], widths[-1])
        self.head = nn.Conv2d(widths[0], 4 * (len(PARTS) + len(COLOUR_NAMES) + len(POSES)), 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, kept = F.pixel_unshuffle(images * 2 - 1, 2), []  # half the side: a third of the time
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        x = x + self.pooled(x.mean((2, 3)))[..., None, None]
        for block, skip in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        maps = F.pixel_shuffle(self.head(x), 2)
        parts, colours, poses = maps.split([len(PARTS), len(COLOUR_NAMES), len(POSES)], 1)
        return parts, colours, poses

    @torch.no_grad()
    def maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) in [0, 1] -> part, colour and pose number of every pixel, each (B, 64, 64) int64 on the CPU."""
        device, found = self.head.weight.device, []
        for part in images.split(64):
            part = part.to(device, torch.float32).clamp(0, 1)
            if part.shape[-2:] != (RESOLUTION, RESOLUTION):
                part = F.interpolate(part, (RESOLUTION, RESOLUTION), mode="area")
            found.append(torch.stack([logits.argmax(1) for logits in self(part)]).cpu())
        parts, colours, poses = torch.cat(found, 1)
        return parts, colours, poses

    def attributes(self, images: Tensor, captions: list[str]) -> list[dict[str, float]]:
        """For every picture the attributes that its caption names, each graded in [0, 1].

        Raises ValueError for a caption that is no toy caption or another number of captions than pictures.
        """
        contents = [parse(caption) for caption in captions]
        score = lambda c, *maps: (_person if isinstance(c, Person) else _shape_pair)(c, *maps)  # noqa: E731
        return [score(*item) for item in zip(contents, *self.maps(images), strict=True)]

    def alignment(self, images: Tensor, captions: list[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B captions -> (B,) float32 in [0, 1]: the mean over each caption's attributes."""
        scores = [sum(found.values()) / len(found) for found in self.attributes(images, captions)]
        return torch.tensor(scores, dtype=torch.float32)

    def guards(self, images: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """guard/area, the share of the picture that is not background, and "attributes/<kind of prompt>/<kind>": each
        (B,), nan for captions of the other kind of prompt."""
        found = self.attributes(images, captions)
        area = (self.maps(images)[0] > 0).float().mean((1, 2))
        grouped = {
            f"attributes/{kind}/{name}": torch.tensor([_mean_of(row, names) for row in found])
            for kind, groups in KINDS.items()
            for name, names in groups.items()
        }
        return {"guard/area": area} | grouped

    def save(self, folder: Path = FOLDER) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
        config = {"widths": self.widths, "parts": PARTS, "colours": COLOUR_NAMES, "poses": POSES}
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path = FOLDER) -> Judge:
        """The trained judge in evaluation mode; `make tiny` makes its weights again."""
        judge = cls(tuple(json.loads((folder / "config.json").read_text(encoding="utf-8"))["widths"]))
        judge.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return judge.eval().requires_grad_(False)


def _mean_of(attributes: dict[str, float], names: tuple[str, ...]) -> float:
    return sum(attributes[name] for name in names) / len(names) if names[0] in attributes else math.nan


def _share(hits: Tensor, of: Tensor) -> float:
    """Share of the pixels `of` that are hits; 0 where there are none."""
    return (hits & of).sum().item() / max(1, of.sum().item())


def _painted(colours: Tensor, name: str, of: Tensor) -> float:
    """Share of a mask's inner pixels that have the named colour; where it has no inside, of all its pixels.

    Along an edge a pixel mixes two colours, and thin parts would be blamed for that.
    """
    inner = ~F.max_pool2d((~of)[None, None].float(), 3, 1, 1)[0, 0].bool()
    return _share(colours == COLOUR_NAMES.index(name), of=inner if inner.any() else of)


def _present(mask: Tensor, area: float) -> float:
    """1 from `area` (a share of the picture) on, proportional below."""
    return min(1.0, mask.float().mean().item() / area)


def _centroid(mask: Tensor) -> tuple[float, float]:
    rows, columns = mask.nonzero().float().mean(0).tolist()
    return columns, rows


def _direction(first: Tensor, second: Tensor, relation: str) -> float:
    """1 within 45 degrees of the named direction, falling to 0 at 90, between the centroids of two masks."""
    if not (first.any() and second.any()):
        return 0.0
    (x1, y1), (x2, y2) = _centroid(first), _centroid(second)
    dx, dy = RELATIONS[relation]
    cosine = ((x1 - x2) * dx + (y1 - y2) * dy) / max(1e-6, math.hypot(x1 - x2, y1 - y2))
    return min(1.0, max(0.0, cosine * math.sqrt(2)))


def _scene(content: ShapePair | Person, parts: Tensor, colours: Tensor, wanted: Tensor) -> dict[str, float]:
    background = _painted(colours, content.background, of=parts == 0)
    return {"background": background, "purity": _share(wanted, of=parts > 0)}


def _shape_pair(content: ShapePair, parts: Tensor, colours: Tensor, _: Tensor) -> dict[str, float]:
    found, masks = {}, []
    for name, (colour, shape) in (("first", content.first), ("second", content.second)):
        mask = parts == PARTS.index(shape)
        found[name] = _present(mask, SHAPE_AREA)
        found[f"{name}_colour"] = found[name] * _painted(colours, colour, of=mask)
        masks.append(mask)
    found["relation"] = min(found["first"], found["second"]) * _direction(*masks, content.relation)
    return found | _scene(content, parts, colours, masks[0] | masks[1])


def _person(content: Person, parts: Tensor, colours: Tensor, poses: Tensor) -> dict[str, float]:
    shirt, trousers, skin, dark = (parts == PARTS.index(part) for part in ("shirt", "trousers", "skin", "dark"))
    body = shirt | trousers | skin | dark
    present = [_present(shirt, CLOTHES_AREA), _present(trousers, CLOTHES_AREA), _present(skin, SKIN_AREA)]
    whole = sum(present) / len(present)
    return {
        "person": whole,
        "shirt": present[0] * _painted(colours, content.shirt, of=shirt),
        "trousers": present[1] * _painted(colours, content.trousers, of=trousers),
        "pose": whole * _share(poses == POSES.index(content.pose), of=body),
    } | _scene(content, parts, colours, body)


def disturb(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs, recolours and adds noise to (B, 3, H, W) pictures, each more or less."""
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    num = len(images)
    small = F.interpolate(images, scale_factor=1 / (1 + 2 * draw(()).item()), mode="bilinear", antialias=True)
    blurred = F.interpolate(small, images.shape[-2:], mode="bilinear")
    images = torch.lerp(images, blurred, draw(num, 1, 1, 1).round() * draw(num, 1, 1, 1).sqrt())
    images = images * (1 + 0.24 * (draw(num, 3, 1, 1) - 0.5)) + 0.12 * (draw(num, 1, 1, 1) - 0.5)
    strength = 0.12 * draw(num, 1, 1, 1) * draw(num, 1, 1, 1).round()
    coarse = torch.randn(num, 3, 16, 16, generator=generator)
    noise = torch.randn(images.shape, generator=generator) + F.interpolate(coarse, images.shape[-2:], mode="bilinear")
    return (images + strength * noise).clamp(0, 1)


def judge_loss(judge: Judge, images: Tensor, parts: Tensor, colours: Tensor, poses: Tensor) -> Tensor:
    """Cross entropies of part and colour, and of the pose inside people; targets (B, H, W), poses -100 elsewhere."""
    part_logits, colour_logits, pose_logits = judge(images)
    weight = torch.ones(len(PARTS), device=images.device).index_fill_(0, torch.tensor([0]), 0.4)
    loss = F.cross_entropy(part_logits, parts, weight) + F.cross_entropy(colour_logits, colours)
    return loss + 0.5 * F.cross_entropy(pose_logits, poses)


def train_judge(
    judge: Judge, *, steps: int = 1500, batch: int = 16, num_scenes: int = 4096, seed: int = 11
) -> list[float]:
    """Teaches `judge` in place and returns the losses; training captions, but other scenes than a method's data."""
    torch.manual_seed(seed)
    split, generator = ToySplit("train", num_scenes, seed, resolution=RESOLUTION), torch.Generator().manual_seed(seed)
    scenes = [split.scene(i) for i in range(num_scenes)]
    images, parts, colours = (torch.stack([getattr(s, k) for s in scenes]) for k in ("image", "parts", "colours"))
    pose = torch.tensor([POSES.index(s.content.pose) if isinstance(s.content, Person) else -100 for s in scenes])
    poses = torch.where(parts >= PARTS.index("shirt"), pose[:, None, None], -100)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.15)
    judge.train()
    losses = []
    for _ in (bar := trange(steps, desc="judge", mininterval=5)):
        index = torch.randint(num_scenes, (batch,), generator=generator)
        mirrored = torch.rand((), generator=generator) < 0.5
        chosen = [x[index].flip(-1) if mirrored else x[index] for x in (images, parts, colours, poses)]
        loss = judge_loss(judge, disturb(chosen[0].float() / 255, generator), *chosen[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    judge.eval().requires_grad_(False)
    return losses
