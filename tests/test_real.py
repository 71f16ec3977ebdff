"""`make real`: the pictures it builds are a folder that the folder option reads without a remark."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lpo_platform.data.folder import Folder

sys.path.insert(0, str(Path(__file__).parents[1]))
from launchers import real


def render() -> Image.Image:
    image = Image.new("RGBA", (64, 64))
    image.paste((255, 0, 0, 255), (16, 16, 48, 48))
    return image


def test_without_npm_the_photographs_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    built = real.scenes(100, 32, 0, tmp_path / "npm")
    assert len(built) == 100
    assert "going on with the photographs" in caplog.text
    real.write(built, tmp_path / "real")
    caplog.clear()
    folder = Folder(tmp_path / "real", cache_folder=None, resolution=32)
    assert folder.report() == {
        "pictures": 100,
        "train": 90,
        "test": 10,
        "captions": {"jsonl": 100},
        "skipped": {},
        "noted": {},
    }


def test_the_mask_is_where_the_render_stands() -> None:
    grounds = {"black": Image.new("RGB", (80, 60))}
    for seed in range(6):
        scene = real.compose("a square", render(), grounds, 48, np.random.default_rng(seed))
        again = real.compose("a square", render(), grounds, 48, np.random.default_rng(seed))
        image, mask = np.asarray(scene.image), np.asarray(scene.mask)
        assert (image[mask == 255] == (255, 0, 0)).all() and (mask == 255).sum() > 48 * 48 * 0.06
        assert scene.caption in ("a square on black", "a square on a soft background")
        if scene.caption == "a square on black":
            assert not image[mask == 0].any()
        assert (np.asarray(again.image) == image).all()


def test_tiles_of_a_photograph_do_not_overlap() -> None:
    count = np.zeros((90, 96), int)
    for i in range(9):
        marked = np.zeros((90, 96, 3), np.uint8)
        marked[i // 3 * 30 : i // 3 * 30 + 30, 3 + i % 3 * 30 : 3 + i % 3 * 30 + 30] = 255
        shown = [np.asarray(s.image).min() for s in real.tiles("x", Image.fromarray(marked), 30)]
        assert [j for j, low in enumerate(shown) if low == 255] == [i]
        count[marked[:, :, 0] == 255] += 1
    assert count.max() == 1 and count.sum() == 90 * 90


def test_a_second_call_removes_its_own_files_only(tmp_path: Path) -> None:
    out = tmp_path / "real"
    scene = real.compose("a square", render(), {}, 32, np.random.default_rng(0))
    real.write([scene, scene], out)
    (out / "mine.png").write_bytes(b"keep")
    real.write([scene], out)
    assert sorted(path.name for path in out.iterdir()) == ["00000-render-a-square.png", "captions.jsonl", "mine.png"]
    assert [path.name for path in (tmp_path / "real-masks").iterdir()] == ["00000-render-a-square.png"]
    (row,) = [json.loads(line) for line in (out / "captions.jsonl").read_text().splitlines()]
    assert row["file_name"] == "00000-render-a-square.png" and row["text"] == "a square on a soft background"


def test_the_commands_are_those_that_a_reader_would_type(tmp_path: Path) -> None:
    prepare, train = real.commands(tmp_path, ["method.steps=3"])
    job = ["method=cpo", "task=canny", "data=folder", f"data.path={tmp_path}", "method.steps=3"]
    assert prepare == ["lpo-prepare", *job] and train == ["lpo-train", *job]
