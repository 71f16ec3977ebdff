"""evaluation/items.parquet: one row for each picture of each held-out item, with every metric on every side."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike


def write(
    file: Path, ids: Sequence[str], captions: Sequence[str], sides: Mapping[str, Mapping[str, ArrayLike]]
) -> None:
    """Columns id, caption, picture and `<metric>/<side>`.

    sides: `before` and `after`, or one of them; of each metric (N,), what is said of an item, which stands in all of
    its rows, or (N, K), what is said of each of its K pictures.
    """
    from lpo_platform.runs.files import write_atomically  # it needs torch, which reading does without

    values = {f"{name}/{side}": np.asarray(v) for side, scores in sides.items() for name, v in scores.items()}
    count = max((value.shape[1] for value in values.values() if value.ndim == 2), default=1)
    columns = {"id": np.repeat(ids, count), "caption": np.repeat(captions, count)}
    columns["picture"] = np.tile(np.arange(count), len(ids))
    for name, value in values.items():
        columns[name] = np.broadcast_to(value.reshape(len(ids), -1), (len(ids), count)).flatten()
    content = BytesIO()
    pq.write_table(pa.table({name: pa.array(column) for name, column in columns.items()}), content)
    write_atomically(file, content.getvalue())


def read(file: Path) -> list[dict[str, Any]]:
    """One mapping for each item, its metrics the means over its pictures, None where one is nan; [] without a file."""
    try:
        rows = pq.read_table(file).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return []
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return [_item(pictures) for pictures in found.values()]


def _item(pictures: list[dict[str, Any]]) -> dict[str, Any]:
    means = {name: sum(row[name] for row in pictures) / len(pictures) for name in pictures[0] if "/" in name}
    return {
        "id": pictures[0]["id"],
        "caption": pictures[0]["caption"],
        **{name: mean if math.isfinite(mean) else None for name, mean in means.items()},
    }
