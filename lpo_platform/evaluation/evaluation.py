"""The results of an evaluation, item by item: kept in one file, and in parts until it is finished."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lpo_platform.runs.files import write_atomically

TENSORS = ("features", "real", "images", "control", "detected", "counts", "numbers")
PICTURES = ("images", "control", "detected")
GROUPS = ("scores", "rows", "real_rows", "real_scores")


@dataclass
class Evaluation:
    """What one model drew for N items, K pictures of each.

    scores: per metric (N,), what is said of an item, or (N, K), of each of its pictures; nan where it is undefined.
    rows, real_rows: what measures make set statistics of, (N, K, F) and (N, F) of the data's own pictures.
    real_scores: what the guards among the scores are of these, (N,).
    features, real: (N, F) latent statistics of the first drawn and of the true picture. counts: what a task pools over
    the set, with a first axis N. numbers: (N,) places of the items in the split, None for 0 to N - 1. control, images,
    detected: of the first items, the condition, the first picture and what the detector finds in it, (n, 3, H, W) in
    [0, 1].
    """

    scores: dict[str, Tensor]
    features: Tensor | None = None
    real: Tensor | None = None
    images: Tensor | None = None
    control: Tensor | None = None
    detected: Tensor | None = None
    counts: Tensor | None = None
    rows: dict[str, Tensor] = field(default_factory=dict)
    real_rows: dict[str, Tensor] = field(default_factory=dict)
    real_scores: dict[str, Tensor] = field(default_factory=dict)
    numbers: Tensor | None = None

    def of_items(self) -> dict[str, Tensor]:
        """Each metric as (N,): of several pictures the mean."""
        return {name: value if value.ndim == 1 else value.mean(1) for name, value in self.scores.items()}

    def of(self, numbers: list[int], count: int) -> "Evaluation":
        """The first rows, which are these items of the split, with the pictures of its first `count` items only."""
        keep = [row for row, number in enumerate(numbers) if number < count]
        tensors = {
            name: value[keep].clone() if name in PICTURES else value[: len(numbers)]
            for name in TENSORS
            if (value := getattr(self, name)) is not None
        }
        groups = {group: {name: v[: len(numbers)] for name, v in getattr(self, group).items()} for group in GROUPS}
        return Evaluation(**groups, **tensors | {"numbers": torch.tensor(numbers)})

    def save(self, file: Path, key: str = "") -> None:
        """key: what the numbers depend on; see kept()."""
        tensors = {name: value for name in TENSORS if (value := getattr(self, name)) is not None}
        tensors |= {f"{group}:{name}": value for group in GROUPS for name, value in getattr(self, group).items()}
        content = save({name: value.contiguous() for name, value in tensors.items()}, {"key": key})
        write_atomically(file, content)

    @classmethod
    def load(cls, file: Path) -> "Evaluation":
        with safe_open(file, "pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        for name in [name for name in tensors if ":" in name]:
            group, _, metric = name.partition(":")
            groups[group][metric] = tensors.pop(name)
        return cls(**groups, **tensors)

    @classmethod
    def kept(cls, file: Path, key: str) -> "Evaluation | None":
        """Reads the evaluation with this key from a file; None where there is none, it is damaged, or it has another
        key."""
        try:
            with safe_open(file, "pt") as stored:
                known = (stored.metadata() or {}).get("key")
            return cls.load(file) if known == key else None
        except (OSError, SafetensorError):
            return None


def parts_in(folder: Path) -> list[Evaluation]:
    """The parts of an unfinished evaluation, in a folder whose name is the key of the evaluation."""
    found = (Evaluation.kept(file, folder.name) for file in sorted(folder.glob("*.safetensors")))
    return [part for part in found if part is not None]


def joined(parts: Iterable[Evaluation], count: int) -> Evaluation:
    """The whole, in the order of the items, from parts that are in any and show their pictures of the first `count`."""
    parts = list(parts)
    numbers = torch.cat([part.numbers for part in parts])
    order, pictures = numbers.argsort(), numbers[numbers < count].argsort()

    def whole(name: str) -> Tensor | None:
        values = [value for part in parts if (value := getattr(part, name)) is not None]
        return torch.cat(values)[pictures if name in PICTURES else order] if values else None

    def merged(group: str) -> dict[str, Tensor]:
        return {name: torch.cat([getattr(p, group)[name] for p in parts])[order] for name in getattr(parts[0], group)}

    tensors = {name: whole(name) for name in TENSORS if name != "numbers"}
    return Evaluation(**{group: merged(group) for group in GROUPS}, **tensors)
