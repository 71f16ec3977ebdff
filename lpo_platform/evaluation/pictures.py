"""Pictures as files: single ones for the report, grids for people."""

from pathlib import Path

from lpo_platform.data.picture_files import grid, save_png
from lpo_platform.evaluation.evaluation import Evaluation


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
