"""Folders of pictures that somebody else has made: what cannot be compared is left out by name, with its reason."""

import io
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from toys import rewards as toy_rewards
from toys.rows import scene

from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import HUGE, SPECIAL, TINY, UNREADABLE, WORDY
from lpo_platform.evaluation.what.clip_lpips import NO_TEXT, SEVERAL, ClipScore, pairs_of
from lpo_platform.evaluation.what.controllability import OTHER_SIZE, Controllability
from lpo_platform.runs.given_files import BAD_NAME
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.pose import Pose

CPU = torch.device("cpu")


def wordy(file: Path) -> None:
    words = PngInfo()
    words.add_itxt("workflow", "x" * 2_000_000, zip=True)
    scene(0, 64, 64).save(file, pnginfo=words)


def huge(file: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(file)


def truncated(file: Path) -> None:
    data = io.BytesIO()
    scene(0, 64, 64).save(data, "PNG")
    file.write_bytes(data.getvalue()[:200])


BAD = {
    "wordy.png": (wordy, WORDY),
    "huge.png": (huge, HUGE),
    "tiny.png": (lambda file: scene(0, 64, 8).save(file), TINY),
    "truncated.png": (truncated, UNREADABLE),
    "zero.png": (lambda file: file.symlink_to("/dev/zero"), SPECIAL),
    "pipe.png": (os.mkfifo, SPECIAL),
    "other.png": (lambda file: scene(0, 32, 32).save(file), OTHER_SIZE),
}


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scene(len(name), 64, 64).save(folder / name)
    return folder


def compared(first: Path, second: Path, **options: object) -> dict:
    return Controllability(str(first), str(second), task=lambda side: Canny(), **options)(first.parent, CPU)


def left_out(result: dict) -> dict[str, list[str]]:
    return {reason: names for reason, names in result["left_out"].items() if names}


def test_pictures_that_cannot_be_compared_are_left_out_with_their_reason(tmp_path: Path) -> None:
    originals = filled(tmp_path / "a", "good.png", *BAD)
    generated = filled(tmp_path / "b", "good.png")
    for name, (make, _) in BAD.items():
        make(generated / name)
    result = compared(originals, generated)
    assert [item["name"] for item in result["items"]] == ["good"]
    assert left_out(result) == {
        reason: sorted(Path(name).stem for name, (_, why) in BAD.items() if why == reason) for _, reason in BAD.values()
    }
    (generated / "good.png").unlink()
    with pytest.raises(UserError, match=r"nothing to measure: .*1 more than 1 MB of text"):
        compared(originals, generated)


def test_equal_names_are_told_apart_by_their_folders_or_left_out(tmp_path: Path) -> None:
    names = ("train/0001.png", "val/0001.png", "scene.v1.png", "scene.v2.png", "1.png")
    originals, generated = filled(tmp_path / "a", *names), filled(tmp_path / "b", *names, "1.jpg")
    os.rename(filled(tmp_path / "b", "x.png") / "x.png", os.fsencode(generated) + b"/caf\xe9.png")
    result = compared(originals, generated)
    assert [item["name"] for item in result["items"]] == ["scene.v1", "scene.v2", "train/0001", "val/0001"]
    assert left_out(result) == {
        "missing in generated": ["1"],
        f"{SEVERAL} in generated": ["1.jpg", "1.png"],
        f"{BAD_NAME} in generated": ["caf\\udce9.png"],
    }


def test_a_flat_folder_is_paired_with_a_nested_one(tmp_path: Path) -> None:
    pairs, _ = pairs_of(
        "a", str(filled(tmp_path / "a", "train/1.png", "val/2.png")), "b", str(filled(tmp_path / "b", "1.jpg", "2.png"))
    )
    assert set(pairs) == {"1", "2"}


def test_pictures_lie_upright(tmp_path: Path) -> None:
    """A picture turned by its EXIF block is what the same picture without one is."""
    originals, generated = tmp_path / "a", tmp_path / "b"
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in (originals, generated):
        folder.mkdir()
    scene(1, 80, 64).save(originals / "x.png")
    scene(1, 80, 64).transpose(Image.Transpose.ROTATE_90).save(generated / "x.png", exif=exif)
    assert compared(originals, generated)["metrics"]["canny/f1"]["mean"] == 1


def test_a_drawing_that_cannot_be_read_back_is_left_out(tmp_path: Path) -> None:
    """Of two people, whom the colours do not tell apart."""
    task = Pose(pretrained=False, people=None, resolution=64)
    people = torch.zeros(2, 17, 3)  # of whom the noses are seen
    people[:, 0] = torch.tensor([[20.5, 20.5, 1], [40.5, 40.5, 1]])
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for name, rows in (("one", people[:1]), ("two", people)):
            levels = task.render(rows[None])[0].mul(255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(levels).save(tmp_path / folder / f"{name}.png")
    make = lambda side: task  # noqa: E731
    result = Controllability(str(tmp_path / "a"), str(tmp_path / "b"), are="conditions", task=make)(tmp_path, CPU)
    assert [item["name"] for item in result["items"]] == ["one"]
    assert [names for reason, names in left_out(result).items() if "several people" in reason] == [["two"]]


def test_texts_that_are_none_are_left_out(tmp_path: Path) -> None:
    weights = toy_rewards.clip(tmp_path / "clip")
    images, texts = filled(tmp_path / "images", "0.png", "1.png", "2.png"), tmp_path / "texts"
    texts.mkdir()
    (texts / "0.TXT").write_bytes("\ufeffcafé".encode())
    (texts / "1.txt").write_bytes("café".encode("latin-1"))
    (texts / "2.txt").symlink_to("/dev/zero")
    result = ClipScore(str(images), str(texts), str(weights))(tmp_path, CPU)
    assert [item["name"] for item in result["items"]] == ["0"]
    assert left_out(result) == {"missing in texts": ["1", "2"], f"{NO_TEXT} in texts": ["1", "2"]}
    for file in (texts / "1.txt", texts / "2.txt"):
        with pytest.raises(UserError, match=r"what.texts=.*: no readable text"):
            ClipScore(str(images), str(file), str(weights))(tmp_path, CPU)
