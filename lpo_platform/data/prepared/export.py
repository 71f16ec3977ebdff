"""Prepared pairs as a dataset that others can read: parquet files with PNG pictures."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import to_pil
from lpo_platform.data.prepared.rows import Chosen
from lpo_platform.data.source import Source
from lpo_platform.data.tables.parquet import SUFFIXES
from lpo_platform.hardware.distributed import deal, everywhere, wait
from lpo_platform.runs.files import write_atomically

NAMES = {"control": "winner", "loser": "loser"}  # prepared columns -> those of the files
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CACHE = b"lpo_platform"
ROWS = 128  # of a file


def export_pairs(source: Source, rows: Chosen, folder: Path) -> None:
    """Writes `train-<number>-of-<count>.parquet` with the columns image, prompt, winner, loser, as far as there are.

    `datasets` and data=cpo_pairs read them. Files that are there already are kept, so an interrupted export goes on;
    several processes share the files. Raises UserError where the folder holds another dataset.
    """
    shards = [range(i, min(i + ROWS, len(rows))) for i in range(0, len(rows), ROWS)]
    files = [folder / f"train-{number:05d}-of-{len(shards):05d}.parquet" for number in range(len(shards))]
    identity = rows.rows.what.key.encode()
    there = {path for path in folder.glob("*") if path.suffix in SUFFIXES}
    others = sorted(path.name for path in there if path not in files or _identity(path) != identity)
    if others:
        raise UserError(f"export={folder}: holds another dataset ({others[0]}); what works: an empty folder")
    missing = deal([number for number, file in enumerate(files) if file not in there])
    with tqdm(total=len(files), desc="export", unit="file", initial=len(there)) as bar:
        for number in missing:
            table = _table(source, rows, shards[number])
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({CACHE: identity, **_features(table)}), buffer)
            write_atomically(files[number], buffer.getvalue())
            bar.update(everywhere(1, bar.total - bar.n))
    wait()


def _table(source: Source, rows: Chosen, places: range) -> pa.Table:
    columns: dict[str, list[object]] = {}
    for place in places:
        sample, row = source[rows.chosen[place]], rows[place]
        cells = {"image": _png(to_pil(sample.image)), "prompt": list(sample.captions) or sample.caption}
        cells |= {NAMES[name]: _png(_pil(row[name])) for name in NAMES if name in row}
        for name, cell in cells.items():
            columns.setdefault(name, []).append(cell)
    types = {name: PICTURE for name in columns if name != "prompt"}
    return pa.table({name: pa.array(column, types.get(name)) for name, column in columns.items()})


def _features(table: pa.Table) -> dict[bytes, bytes]:
    """What makes `datasets` show pictures."""
    text = {"dtype": "string", "_type": "Value"}
    text = {"feature": text, "_type": "List"} if pa.types.is_list(table.schema.field("prompt").type) else text
    features = {name: text if name == "prompt" else {"_type": "Image"} for name in table.column_names}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def _pil(control: Tensor) -> Image.Image:
    """(1 or 3, H, W) uint8, one channel as grey. UserError for others, which no PNG can hold."""
    if control.dtype != torch.uint8:
        raise UserError("export: these control images exceed what a PNG holds; what works: task.train_form=null")
    levels = control.permute(1, 2, 0).numpy()
    return Image.fromarray(levels[:, :, 0] if control.shape[0] == 1 else levels)


def _png(image: Image.Image) -> dict[str, object]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def _identity(file: Path) -> bytes | None:
    try:
        return (pq.read_schema(file).metadata or {}).get(CACHE)
    except (OSError, pa.ArrowException):
        return None
