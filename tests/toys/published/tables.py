"""The published data sets at toy size, under their names of files, splits and columns."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from toys import image_pairs
from toys.rows import png, scene

from lpo_platform.tasks.palette import paint
from lpo_platform.tasks.skeleton import draw

SIDE, TRAIN, HELD_OUT = 64, 6, 6
Row = dict[str, Any]
Maker = Callable[[Path], None]
JOINTS = ((32, 12), (34, 10), (30, 10), (37, 12), (27, 12), (42, 22), (22, 22), (46, 32), (18, 32), (48, 42), (16, 42),
          (39, 42), (25, 42), (40, 51), (24, 51), (40, 60), (24, 60))  # fmt: skip


def hub(rows: Callable[[int], Row], splits: dict[str, int]) -> Maker:
    """data/<split>-00000-of-00002-<hash>.parquet, as `push_to_hub` writes them."""

    def make(folder: Path) -> None:
        start = 0
        (folder / "data").mkdir(parents=True)
        for split, count in splits.items():
            parts = np.array_split(np.arange(start, start + count), 2)
            for number, part in enumerate(parts):
                table = pa.Table.from_pylist([rows(int(i)) for i in part])
                pq.write_table(table, folder / "data" / f"{split}-{number:05d}-of-00002-0123456789abcdef.parquet")
            start += count

    return make


def captioned(column: str = "text", **more: Callable[[int], object]) -> Callable[[int], Row]:
    def row(i: int) -> Row:
        return {"image": _picture(i), column: _caption(i)} | {name: cell(i) for name, cell in more.items()}

    return row


def segments(palette: str, *, labels: str, offset: int) -> Callable[[int], Row]:
    """offset: what is added to a label for a row of the palette."""
    cells = {"control_seg": lambda i: _cell(paint(_map(i, palette), palette)[0]),
             labels: lambda i: (_map(i, palette)[0, 0].long() - offset).tolist()}  # fmt: skip
    return captioned("prompt", **cells)


def poses(column: str = "prompt") -> Callable[[int], Row]:
    return captioned(column, control_pose=lambda i: _cell(draw(_people(i), SIDE, "opencv")),
                     pose=lambda i: _people(i).tolist())  # fmt: skip


def pairs(*names: str) -> Callable[[int], Row]:
    """names: of the tasks that columns end in; none for plain winner and loser."""
    cells = {}
    for suffix in [f"_{name}" for name in names] or [""]:
        cells |= {f"winner{suffix}": lambda i: _picture(i + 1000), f"loser{suffix}": lambda i: _picture(i + 2000)}
    return captioned("prompt", **cells)


def label_pairs(palette: str) -> Callable[[int], Row]:
    return captioned("prompt", winner=lambda i: _cell(paint(_map(i, palette), palette)[0]),
                     loser=lambda i: _cell(paint(_map(i + 50, palette), palette)[0]))  # fmt: skip


def pose_pairs(i: int) -> Row:
    return captioned("prompt", winner=lambda i: _cell(draw(_people(i), SIDE, "opencv")),
                     loser=lambda i: _cell(draw(_people(i + 50), SIDE, "opencv")))(i)  # fmt: skip


def saved_to_disk(folder: Path, rows: Callable[[int], Row]) -> None:
    """A dictionary of data sets as `datasets` saves it, with one split."""
    split = folder / "train"
    split.mkdir(parents=True)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    (split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (split / "dataset_info.json").write_text("{}")
    table = pa.Table.from_pylist([rows(i) for i in range(TRAIN)])
    with pa.ipc.new_stream(split / "data-00000-of-00001.arrow", table.schema) as stream:
        stream.write_table(table)


def pick_a_pic(folder: Path) -> None:
    image_pairs.fill(folder, [pair(i) for i in range(TRAIN)])


def pair(i: int) -> Row:
    return image_pairs.row(i, are_different=i % 3 != 2, best_image_uid=f"uid {i}", ranking_id=i)


def score_file(file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["different_flag", "aesthetic_gap", "clipscore_gap", "vqascore_gap"])
        writer.writerows([int(i % 3 != 2), 0.1, 0.01, 0.01] for i in range(TRAIN))


def pick_a_pic_captions(folder: Path) -> None:
    """One file of the set without pictures, whose name has a hash."""
    (folder / "data").mkdir(parents=True)
    table = pa.Table.from_pylist([{"caption": _caption(100 + i), "has_label": True} for i in range(HELD_OUT)])
    pq.write_table(table, folder / "data" / "validation_unique-00000-of-00001-847ed34b90bbafc3.parquet")


def prompts(file: Path) -> None:
    file.write_text(json.dumps([{"caption": _caption(i), "trainset_idx": i} for i in range(16)]))


def manifest(file: Path) -> None:
    """Lines of pose RL, as lpo-prepare pose= writes them."""
    folder = file.parent
    folder.mkdir(parents=True)
    lines = []
    for i in range(TRAIN + HELD_OUT):
        names = {"image": f"{i}.png", "condition_image": f"{i}-pose.png"}
        (folder / names["image"]).write_bytes(png(scene(i, SIDE, SIDE)))
        (folder / names["condition_image"]).write_bytes(_cell(draw(_people(i), SIDE))["bytes"])
        lines.append(json.dumps(names | {"text": _caption(i), "pose": _people(i).tolist()}) + "\n")
    file.write_text("".join(lines))


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(TRAIN + HELD_OUT):
        scene(i, SIDE + 8, SIDE).save(folder / f"{_caption(i)} {i}.jpg")


def _caption(i: int) -> str:
    return " ".join([("a red", "a blue", "a green")[i % 3], ("circle", "square")[i // 3 % 2], f"number {i}"])


def _picture(i: int) -> Row:
    return {"bytes": png(scene(i, SIDE + 16, SIDE)), "path": None}


def _cell(pixels: torch.Tensor) -> Row:
    """(3, H, W) in [0, 1] as a picture of a table."""
    levels = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    return {"bytes": png(Image.fromarray(levels)), "path": None}


def _map(i: int, palette: str) -> torch.Tensor:
    """(1, 1, H, W) of four classes in quarters, of the picture's size."""
    most = {"ade20k": 150, "coco": 133}[palette]
    classes = torch.tensor(list(_classes(i, most))).view(2, 2).float()
    return classes.repeat_interleave(SIDE // 2, 0).repeat_interleave((SIDE + 16) // 2, 1)[None, None]


def _classes(i: int, most: int) -> Iterator[int]:
    return (1 + (7 * i + 31 * k) % most for k in range(4))


def _people(i: int) -> torch.Tensor:
    """(1, 17, 3): somebody who stands a little elsewhere in each picture, in the pixels of a square of side SIDE."""
    people = torch.tensor([[(x, y, 2.0) for x, y in JOINTS]])
    people[..., 0] += i % 7 - 3
    return people
