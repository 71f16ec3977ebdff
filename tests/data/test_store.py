"""Stored rows: what was written comes back, whatever was cut, altered or foreign does not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.store import Store

KEY = "a" * 64


def columns(rows: list[int]) -> dict[str, torch.Tensor]:
    items = torch.tensor(rows)
    return {
        "map": (items[:, None, None] % 256).to(torch.uint8).expand(-1, 4, 4),
        "latents": items[:, None].float() * torch.ones(1, 3),
        "half": items[:, None].to(torch.bfloat16),
        "flag": items % 2 == 0,
    }


def filled(folder: Path, *parts: list[int]) -> Store:
    store = Store(folder, KEY, 20)
    for rows in parts:
        store.write(rows, columns(rows), {})
    store.close()
    return store


def is_right(store: Store, row: int) -> bool:
    found = store.read(row)
    return found is not None and all(torch.equal(found[n], c[0]) for n, c in columns([row]).items())


def test_rows_come_back_at_once_and_later(tmp_path: Path) -> None:
    store = Store(tmp_path, KEY, 20)
    store.write([3, 17, 4], columns([3, 17, 4]), {5: ("broken", "row 5")})
    assert all(is_right(store, row) for row in (3, 4, 17)) and store.read(0) is None and 0 not in store
    store.close()
    for reader in (store, Store(tmp_path, KEY, 20)):
        assert [row for row in range(20) if row in reader] == [3, 4, 17]
        assert all(is_right(reader, row) for row in (3, 4, 17)) and reader.problems == {5: ("broken", "row 5")}
        assert reader.size == sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    other = Store(tmp_path, "b" * 64, 20)
    assert 3 not in other and other.problems == {}


def test_what_another_process_adds_is_found(tmp_path: Path) -> None:
    here, there = Store(tmp_path, KEY, 20), Store(tmp_path, KEY, 20)
    there.write([2], columns([2]), {1: ("gone", "1")})
    there.flush()
    assert 2 not in here
    here.refresh()
    assert is_right(here, 2) and here.problems == {1: ("gone", "1")}
    here.refresh()
    assert here.size == there.size


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def nonsense(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


def from_another_store(path: Path) -> None:
    other = Store(path.parent / "other", "b" * 64, 20)
    other.write([3, 4], columns([3, 4]), {})
    other.close()
    path.write_bytes(next(other.folder.iterdir()).read_bytes())


def without_description(path: Path) -> None:
    save_file(load_file(path), path)


@pytest.mark.parametrize("damage", [flip_a_byte, cut, empty, nonsense, from_another_store, without_description])
def test_a_damaged_or_foreign_file_counts_as_missing_and_is_made_again(tmp_path: Path, damage) -> None:
    filled(tmp_path, [0, 1], [3, 4])
    (path,) = Store(tmp_path, KEY, 20).folder.glob("00000003-*")
    damage(path)
    store = Store(tmp_path, KEY, 20)
    assert not (is_right(store, 3) and is_right(store, 4)) and is_right(store, 0)
    store.write([3, 4], columns([3, 4]), {})
    store.close()
    again = Store(tmp_path, KEY, 20)
    assert all(is_right(again, row) for row in (0, 1, 3, 4))


def test_a_large_store_opens_without_being_read(tmp_path: Path) -> None:
    """100 GB in files of 50 MB, which have holes where the tensors are."""
    folder, rows, size = Store(tmp_path, KEY, 1).folder, 64, 800_000
    folder.mkdir()
    for first in range(0, 2000 * rows, rows):
        numbers = list(range(first, first + rows))
        described = {"format": "2", "key": KEY, "rows": json.dumps(numbers), "problems": "{}"}
        described["digests"] = json.dumps(["0" * 32] * rows)
        entry = {"dtype": "U8", "shape": [rows, size], "data_offsets": [0, rows * size]}
        header = json.dumps({"__metadata__": described, "x": entry}).encode()
        with open(folder / f"{first:08d}-x.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + rows * size)
    started = time.monotonic()
    store = Store(tmp_path, KEY, 2000 * rows)
    assert time.monotonic() - started < 5
    assert store.size > 100e9 and 2000 * rows - 1 in store
    assert store.read(77) is None and 77 not in store and 78 in store  # holes are not what the digest says


WRITER = """
    import sys, torch
    from lpo_platform.data.prepared.store import Store
    store = Store(sys.argv[1], "a" * 64, 4)
    print("ready", flush=True)
    while True:
        for first in (0, 2):
            store.write([first, first + 1], {"x": torch.full((2, 2_000_000), float(first))}, {})
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_writer_killed_at_any_moment_leaves_whole_files_or_none(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
    torn = 0
    for attempt in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
            until = time.monotonic() + 60
            while time.monotonic() < until and not list(tmp_path.glob("*/.*.tmp")):
                time.sleep(0.001)
            time.sleep(0.003 * attempt)
            writer.send_signal(signal.SIGKILL)
        torn += len(list(tmp_path.glob("*/.*.tmp")))
        store = Store(tmp_path, KEY, 4)
        for row in filter(store.__contains__, range(4)):
            assert torch.equal(store.read(row)["x"], torch.full((2_000_000,), float(row // 2 * 2)))
    assert torn, "no kill fell into a write: the test says nothing"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file", KEY, 1)
    store.write([0], {"x": torch.zeros(1, 1)}, {})
    with pytest.raises(UserError, match=r"00000000-\w+\.safetensors: cannot write .*data.cache=none"):
        store.flush()


def test_two_processes_add_at_once(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from lpo_platform.data.prepared.store import Store
        store = Store(sys.argv[1], "a" * 64, 40)
        for first in range(2 * int(sys.argv[2]), 40, 4):
            store.write([first, first + 1], {"x": torch.arange(first, first + 2)}, {})
        store.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    writers = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [writer.wait(180) for writer in writers] == [0, 0]
    store = Store(tmp_path, KEY, 40)
    assert [int(store.read(i)["x"]) for i in range(40)] == list(range(40))


def test_tensors_that_share_storage_or_are_views_are_stored(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    store = Store(tmp_path, KEY, 3)
    store.write([0, 1, 2], {"a": base, "b": base, "c": base[:, ::2], "d": base.t()[:3]}, {})
    store.close()
    found = Store(tmp_path, KEY, 3).read(1)
    assert found["a"].equal(base[1]) and found["c"].equal(base[1, ::2]) and found["d"].equal(base[:, 1])
