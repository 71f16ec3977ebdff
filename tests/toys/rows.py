"""Rows of captioned pictures, written in every layout that data=captioned reads."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

Row = dict[str, Any]
LAYOUTS = ("parquet", "arrow", "tar", "jsonl")


def scene(i: int, width: int = 40, height: int = 30) -> Image.Image:
    small = np.random.default_rng(i).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write(folder: Path, rows: list[Row], layout: str, split: str = "train") -> Path:
    """The folder, with the rows in two files."""
    halves = [rows[: len(rows) // 2], rows[len(rows) // 2 :]] if len(rows) > 1 else [rows]
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(halves):
        stem = f"{split}-{number:05d}-of-{len(halves):05d}"
        if layout in ("parquet", "arrow"):
            wrapped = [
                {k: {"bytes": v, "path": None} if isinstance(v, bytes) else v for k, v in r.items()} for r in part
            ]
            table = pa.Table.from_pylist(wrapped)
            if layout == "parquet":
                pq.write_table(table, folder / f"{stem}.parquet")
            else:
                with pa.ipc.new_stream(folder / f"{stem}.arrow", table.schema) as stream:
                    stream.write_table(table)
        elif layout == "tar":
            tar(folder / f"{split}-{number:06d}.tar", [shard_row(r, f"{number}{i}") for i, r in enumerate(part)])
        else:
            lines = [json.dumps(line_row(folder, r, f"{number}{i}")) + "\n" for i, r in enumerate(part)]
            (folder / f"{stem}.jsonl").write_text("".join(lines))
    return folder


def shard_row(values: Row, name: str) -> dict[str, bytes]:
    """Members of a WebDataset row: pictures by their suffix, all else in a .json."""
    pictures = {f"{name}.{'' if k == 'image' else f'{k}.'}png": v for k, v in values.items() if isinstance(v, bytes)}
    rest = {k: v for k, v in values.items() if not isinstance(v, bytes)}
    return pictures | {f"{name}.json": json.dumps(rest).encode()}


def tar(file: Path, rows: list[dict[str, bytes]]) -> None:
    with tarfile.open(file, "w") as archive:
        for name, data in (item for members in rows for item in members.items()):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def line_row(folder: Path, values: Row, name: str) -> Row:
    """A line, with pictures as files beside it."""
    (folder / "pictures").mkdir(exist_ok=True)
    for key, value in values.items():
        if isinstance(value, bytes):
            (folder / "pictures" / f"{name}-{key}.png").write_bytes(value)
    return {k: f"pictures/{name}-{k}.png" if isinstance(v, bytes) else v for k, v in values.items()}
