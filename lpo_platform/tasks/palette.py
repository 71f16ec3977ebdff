"""The colours of label maps: published tables (palettes.json), made reversible."""

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def published(name: str) -> Tensor:
    """(K, 3) uint8: "ade20k" has 151 rows, row 0 is black for "no label"; "coco" the 133 panoptic classes."""
    rows = json.loads(Path(__file__).with_name("palettes.json").read_text())[name]
    return torch.tensor([list(bytes.fromhex(row)) for row in rows], dtype=torch.uint8)


@cache
def colours(name: str) -> Tensor:
    """(1 + classes, 3) int64, all different, row 0 is black for "no label".

    ADE20K gives road (7) and skyscraper (49) the same grey. The later row is one level bluer here, too little for a
    model to see, so that a label map can be read back.
    """
    rows = published(name).long().tolist()
    if rows[0] != [0, 0, 0]:
        rows = [[0, 0, 0], *rows]
    for number, row in enumerate(rows):
        while row in rows[:number]:
            row[2] += 1
    return torch.tensor(rows)


def paint(labels: Tensor, name: str) -> Tensor:
    """(B, 1, H, W) label numbers -> (B, 3, H, W) in [0, 1]."""
    table = colours(name).to(labels.device)
    return table[labels[:, 0].long()].permute(0, 3, 1, 2).float() / 255


def read_labels(control: Tensor, name: str) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 1, H, W) float32 label numbers: the nearest colour, the first of equally near ones.

    A published picture has road and skyscraper in one grey, which reads as road, as its own evaluation does.
    """
    levels = control.mul(255).round().long().permute(0, 2, 3, 1)
    shape, table = levels.shape[:3], colours(name).to(levels.device)
    seen, index = torch.unique(levels.reshape(-1, 3), dim=0, return_inverse=True)
    nearest = [_nearest(part, table) for part in seen.split(4096)]
    return torch.cat(nearest)[index].view(shape)[:, None].float()


def _nearest(seen: Tensor, table: Tensor) -> Tensor:
    """(U, 3) and (K, 3) levels -> (U,) rows of the table; the row number breaks ties."""
    squared = (seen[:, None] - table).square().sum(2)
    return (squared * len(table) + torch.arange(len(table), device=table.device)).argmin(1)
