"""What lpo-plan says of the samples that a run reads, against the order itself and against files of every kind."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from toys.rows import png, scene, write

from lpo_platform.commands.plan.reading import reading_of, rows_of
from lpo_platform.data.captioned import Captioned
from lpo_platform.data.folder import Folder
from lpo_platform.data.prepared.order import Order

TOY = {"_target_": "lpo_platform.data.toy.Toy", "num_test": 2}


def brute(rows: int, reads: int, cache: str, most: int) -> tuple[int, int, int]:
    """(distinct, kept, made) of a run that keeps at most so many rows, the ones that it makes first."""
    order, kept, made = Order(rows, reads, seed=0), set(), 0
    for position in range(reads):
        row = order.row(position)
        if row not in kept:
            made += 1
            if len(kept) < most and (cache == "all" or (cache == "auto" and order.again(position))):
                kept.add(row)
    return len(order.distinct()), len(kept), made


@pytest.mark.parametrize("cache", ["auto", "all", "none"])
@pytest.mark.parametrize(("rows", "reads"), [(50, 20), (50, 50), (50, 70), (50, 100), (50, 330)])
def test_what_is_kept_and_made_is_what_a_run_keeps_and_makes(rows: int, reads: int, cache: str) -> None:
    cfg = OmegaConf.create(
        {"data": TOY | {"num_train": rows, "cache": cache, "cache_gb": 1.0}, "method": {"steps": reads, "batch": 1}}
    )
    found = reading_of(cfg, row=1e6)
    assert (found.distinct, found.kept, found.makes) == brute(rows, reads, cache, most=1000)
    assert found.reads == reads and found.rows == rows


def test_what_the_cache_has_no_room_for_is_made_again() -> None:
    cfg = OmegaConf.create({"data": TOY | {"num_train": 50, "cache_gb": 0.02}, "method": {"steps": 200, "batch": 1}})
    found = reading_of(cfg, row=1e6)
    assert found.kept == 20 and (50, 20, found.makes) == brute(50, 200, "auto", most=20)


@pytest.mark.parametrize("layout", ["parquet", "arrow", "jsonl"])
def test_rows_are_counted_without_being_read(tmp_path: Path, layout: str) -> None:
    folder = write(tmp_path, [{"image": png(scene(i)), "text": f"picture {i}"} for i in range(15)], layout)
    settings = {"_target_": "lpo_platform.data.captioned.Captioned", "path": str(folder), "num_test": 4}
    full = {"split": "train", "image": "image", "caption": "text", "condition": None, "loser": None, "labels": None}
    data = OmegaConf.create(settings | full | {"label_offset": 0, "test": None, "num_train": None})
    assert rows_of(data) == len(Captioned(str(folder), num_test=4, resolution=16, cache_folder=None).train) == 11
    data.path = "limingcv/MultiGen-20M_depth"
    assert rows_of(data) == 2_810_600
    data.path = "somebody/else"
    assert rows_of(data) is None
    data.path = "???"
    assert rows_of(data) is None


def test_pictures_of_a_folder_are_counted(tmp_path: Path) -> None:
    for i in range(20):
        (tmp_path / f"{i}.png").write_bytes(png(scene(i)))
    (tmp_path / "notes.json").write_text(json.dumps([]))
    settings = {"_target_": "lpo_platform.data.folder.Folder", "path": str(tmp_path), "test_fraction": 0.1}
    data = OmegaConf.create(settings | {"num_train": None})
    assert rows_of(data) == len(Folder(tmp_path, resolution=16, cache_folder=None).train) == 18
