"""Streamed data: the order is a function of the seed, any row can be begun at, and only what is read is asked for."""

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys.hub import Hub, serving

from lpo_platform.config.errors import UserError
from lpo_platform.data.hf import Streamed, StreamedRows
from lpo_platform.data.tables.decode import Unusable

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
pytest.importorskip("datasets")
REPO = Path(__file__).resolve().parents[2]


def parquet(numbers: range) -> bytes:
    """Grey pictures whose level, and whose caption, is the number of the row, as a hub stores them."""

    def cell(number: int) -> dict:
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (number,) * 3).save(file, "png")
        return {"bytes": file.getvalue() if number != 7 else b"broken", "path": f"{number}.png"}

    kinds = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"}}
    columns = {"image": list(map(cell, numbers)), "text": [f"number {n}" if n != 9 else "" for n in numbers]}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=5)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rows in two files."""
    place = tmp_path_factory.mktemp("pictures")
    for number, rows in enumerate((range(25), range(25, 40))):
        (place / f"train-{number:05d}-of-00002.parquet").write_bytes(parquet(rows))
    return place


def opened(folder: Path, **settings: object) -> Streamed:
    return Streamed(str(folder), **{"num_train": 30, "num_test": 6, "buffer": 8, "resolution": 16} | settings)


def number(rows: StreamedRows, i: int) -> int:
    return round(float(rows[i].image.mean()) * 255)


def test_rows_are_those_of_the_files_in_any_order(folder: Path) -> None:
    data = opened(folder)
    assert (len(data.train), len(data.test)) == (30, 6)
    assert [data.test.caption(i) for i in range(6)] == [f"number {i}" for i in range(6)]
    for i in (0, 2, 29, 11, 28, 12, 0):
        assert (number(data.train, i), data.train.caption(i)) == (i + 6, f"number {i + 6}")
    later = pickle.loads(pickle.dumps(data.train))  # as a worker gets it: it begins where it is asked
    assert number(later, 21) == 27 and later.fingerprint == opened(folder).train.fingerprint
    assert opened(folder, resolution=8).train.fingerprint != data.train.fingerprint
    for row, reason in ((1, "picture"), (3, "row without a caption")):
        with pytest.raises(Unusable) as error:
            data.train[row]
        assert reason in error.value.reason


def test_pictures_of_a_folder_of_files_are_read_where_they_lie(tmp_path: Path) -> None:
    """Of such a folder `datasets` gives the place of each picture, and not what is in it."""
    for level in range(8):
        Image.new("RGB", (20, 20), (10 * level,) * 3).save(tmp_path / f"{level}.png")
    lines = ["file_name,text", *(f"{level}.png,number {level}" for level in range(8))]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = opened(tmp_path, num_train=6, num_test=2)
    shown = [(number(data.train, i), data.train.caption(i)) for i in range(6)]
    assert shown == [(10 * level, f"number {level}") for level in range(2, 8)]


def test_a_pass_has_every_row_once_and_its_order_follows_from_the_seed(folder: Path) -> None:
    rows = opened(folder).train
    first = rows.order(0, seed=3)
    assert sorted(first.tolist()) == list(range(30)) and torch.equal(first, opened(folder).train.order(0, seed=3))
    assert not torch.equal(first, rows.order(1, seed=3)) and not torch.equal(first, rows.order(0, seed=4))
    windows = [set(first[start : start + 8].tolist()) for start in range(0, 30, 8)]
    assert windows == [set(range(start, min(start + 8, 30))) for start in range(0, 30, 8)]


def test_a_pass_opens_the_stream_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, starts = opened(folder).train, []
    read = rows.stream.rows
    monkeypatch.setattr(rows.stream, "rows", lambda start: starts.append(start) or read(start))
    found = [rows._row(int(i)) for i in rows.order(0, seed=0)]
    assert len(found) == 30 and starts == [6] and len(rows._kept) <= 16


def test_a_process_that_was_forked_reads_by_itself(folder: Path) -> None:
    rows = opened(folder).train
    assert number(rows, 0) == 6
    rows._process += 1  # as a fork finds it
    assert (number(rows, 20), rows._process, Streamed.count({"num_train": 5})) == (26, os.getpid(), 5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"caption": "txt"}, "its split train has no column txt; there are image, text"),
        ({"split": "validation"}, "`datasets` cannot read it"),
        ({"buffer": 0}, "data.buffer=0; what works: 1 or more"),
        ({"num_train": None}, "nobody says how many rows"),
        ({"path": "/nowhere"}, "data.path=/nowhere: no such folder or file, and no hub id"),
    ],
)
def test_what_is_missing_is_named(folder: Path, settings: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        opened(folder, **settings) if "path" not in settings else Streamed(**settings, resolution=16)


FROM_A_HUB = """
import lpo_platform as lpo
data = lpo.dataset("hf", path="me/pictures", num_train=20, num_test=6, buffer=8, resolution=16)
print(data.train.stream.revision, [data.train.caption(i) for i in (4, 1, 12)])
"""


@pytest.mark.slow
def test_a_hub_is_asked_for_what_is_read(folder: Path, tmp_path: Path) -> None:
    """The commit is found once; a later one on the same branch changes nothing in a run that has begun."""
    with serving() as hub:
        files = {f"data/{file.name}": file.read_bytes() for file in folder.glob("*.parquet")}
        sha = hub.add("me/pictures", files, kind="datasets")
        environment = os.environ | hub.environment(str(tmp_path)) | {"PYTHONPATH": str(REPO)}
        words = [sys.executable, "-c", FROM_A_HUB]
        done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{sha} ['number 10', 'number 7', 'number 18']\n", done.stderr[-3000:]
    assert not any("train-00001" in request for request in gets(hub))


def gets(hub: Hub) -> list[str]:
    return [request for request in hub.asked if request.startswith("GET") and "/resolve/" in request]
