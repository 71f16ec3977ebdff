"""Pictures as files: single ones for the report, grids for people."""

from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lpo_platform.data.cache import write_atomically
from lpo_platform.evaluation.evaluated import Evaluation


def save_pictures(folder: Path, before: Evaluation | None, after: Evaluation) -> None:
    """condition, before, after, detected_before, detected_after as <i>.png, and all of them as grid.png."""
    columns = {
        "condition": after.control,
        "before": before and before.images,
        "after": after.images,
        "detected_before": before and before.detected,
        "detected_after": after.detected,
    }
    present = {name: images for name, images in columns.items() if images is not None}
    for name, images in present.items():
        for index, image in enumerate(images):
            save_png(image, folder / name / f"{index}.png")
    save_png(grid(list(present.values())), folder / "grid.png")


def grid(rows: list[Tensor], gap: int = 2) -> Tensor:
    """Rows of n pictures each (n, 3, H, W) -> one picture (3, H', W'), white between them."""
    pad = (gap, gap, gap, gap)
    lines = [torch.cat([torch.nn.functional.pad(p, pad, value=1.0) for p in row.cpu()], 2) for row in rows]
    return torch.cat(lines, 1)


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] -> an 8-bit RGB picture."""
    return Image.fromarray(image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy())


def save_png(image: Tensor, file: Path) -> None:
    """Whole or not at all: what resumes takes a picture that is there for done."""
    content = BytesIO()
    to_pil(image).save(content, "PNG")
    write_atomically(file, content.getvalue())
