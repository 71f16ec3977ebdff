"""Pick-a-Pic in miniature, in every layout that datasets has."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

R = 16


SPLITS = ("train", "validation_unique", "test_unique")


LABELS = ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5))


def pixels(seed: int, width: int = 40, height: int = 24) -> np.ndarray:
    """A smooth (height, width, 3) uint8 picture, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(seed: int, kind: str = "JPEG", **size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed, **size)).save(file, kind)
    return file.getvalue()


def row(i: int, **changes: object) -> dict[str, object]:
    """Row i of a dataset in Pick-a-Pic's columns."""
    return {
        "caption": f"prompt {i // 2}",
        "image_0_uid": f"uid {i}",
        "jpg_0": encoded(2 * i),
        "jpg_1": encoded(2 * i + 1),
        "label_0": LABELS[i % 3][0],
        "label_1": LABELS[i % 3][1],
        "has_label": True,
        "num_example_per_prompt": 1 + i % 4,
        **changes,
    }


def table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows)


def parquet_files(folder: Path, name: str, rows: list[dict[str, object]], files: int = 1, group: int = 4) -> None:
    """The layout of a hub download."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        path = folder / "data" / f"{name}-{k:05d}-of-{files:05d}-0123456789abcdef.parquet"
        pq.write_table(table([rows[i] for i in part]), path, row_group_size=group)


def saved(folder: Path, name: str, rows: list[dict[str, object]], files: int = 1, group: int = 4) -> None:
    """The layout of `datasets`' save_to_disk: streams in a folder of each split."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "state.json").write_text("{}")
    for k, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        content = table([rows[i] for i in part])
        with pa.ipc.new_stream(folder / name / f"data-{k:05d}-of-{files:05d}.arrow", content.schema) as writer:
            writer.write_table(content, max_chunksize=group)


def cached(folder: Path, name: str, rows: list[dict[str, object]], files: int = 1, group: int = 4) -> None:
    """Arrow files named after their dataset, in the file format."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, part in enumerate(np.array_split(np.arange(len(rows)), files)):
        content = table([rows[i] for i in part])
        with pa.ipc.new_file(folder / f"pickapic-{name}-{k:05d}-of-{files:05d}.arrow", content.schema) as writer:
            writer.write_table(content, max_chunksize=group)


LAYOUTS = {"parquet": parquet_files, "saved": saved, "cached": cached}


def fill(folder: Path, rows: list[dict[str, object]], layout: str = "parquet", **options: int) -> Path:
    """A dataset with these train rows, and two rows in each of the other splits."""
    LAYOUTS[layout](folder, "train", rows, **options)
    for name, start in (("validation_unique", 100), ("test_unique", 200)):
        LAYOUTS[layout](folder, name, [row(start), row(start + 1)])
    return folder
