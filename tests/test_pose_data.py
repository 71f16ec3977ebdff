"""Photographs to data of pose control: keypoints in their pixels, skeletons, lines in the seed's form, split 30:1."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config import UserError, diagnose
from lpo_platform.data import pose_extraction
from lpo_platform.data.captioned import Captioned
from lpo_platform.data.conditions import truth_of
from lpo_platform.data.keypoint_files import read
from lpo_platform.data.pose_extraction import NOBODY, extract
from lpo_platform.data.source import first
from lpo_platform.data.toy import ToySplit
from lpo_platform.tasks.oks import oks
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.skeleton import draw

CPU = torch.device("cpu")
PEOPLE = 6


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """Toy scenes with a person, enlarged to pictures that are no squares, with captions, and one without a person."""
    folder, truth = tmp_path_factory.mktemp("photographs"), {}
    split = ToySplit("train", PEOPLE, 0, resolution=64, people=1.0)
    lines = []
    for i in range(PEOPLE):
        scene, name = split.scene(i), f"{i}.png"
        picture = Image.fromarray(scene.image.permute(1, 2, 0).numpy()).resize((128, 96), Image.Resampling.BICUBIC)
        picture.save(folder / name)
        truth[name] = scene.keypoints * torch.tensor([2.0, 1.5, 1.0])
        lines.append({"file_name": name, "text": scene.caption})
    Image.new("RGB", (128, 96), (90, 160, 90)).save(folder / "meadow.png")
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder, truth


@pytest.fixture(scope="module")
def extracted(photographs: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("poses")
    findings = extract(str(photographs[0]), out, Pose("toy"), CPU)
    assert findings.report()["skipped"] == {NOBODY: {"count": 1, "examples": ["meadow.png"]}}
    return out


def lines(out: Path) -> dict[str, dict]:
    text = "".join((out / f"{split}.jsonl").read_text() for split in ("train", "test"))
    return {Path(line["image"]).name: line for line in map(json.loads, text.splitlines())}


def test_lines_have_the_seeds_keys_and_relative_paths(
    photographs: tuple[Path, dict[str, Tensor]], extracted: Path
) -> None:
    found = lines(extracted)
    assert set(found) == {f"{i}.png" for i in range(PEOPLE)}
    for name, line in found.items():
        assert {"image", "condition_image", "text"} < set(line) and not os.path.isabs(line["image"])
        assert (extracted / line["image"]).resolve() == (photographs[0] / name).resolve()
        assert (extracted / line["condition_image"]).is_file() and len(line["text"].split()) > 3


def test_keypoints_are_those_of_the_scenes_in_their_pixels(
    photographs: tuple[Path, dict[str, Tensor]], extracted: Path
) -> None:
    likeness = []
    for name, truth in photographs[1].items():
        people = read(extracted / "keypoints" / f"{name}.json")[name]
        assert people.size == (128, 96) and people.scores[0] > 0.3
        likeness.append(oks(torch.from_numpy(people.keypoints), truth[None].double()).max())
    assert np.mean(likeness) > 0.8, likeness


def test_skeletons_are_the_drawing_of_the_keypoints(extracted: Path) -> None:
    for name, line in lines(extracted).items():
        with Image.open(extracted / line["condition_image"]) as picture:
            shown = np.asarray(picture)
        wanted = draw(torch.tensor(line["pose"]), 128)[:, :96].mul(255).round().permute(1, 2, 0).numpy()
        assert shown.shape == (96, 128, 3), name
        # keypoints are stored to hundredths of a pixel, which moves a pixel of a border now and then
        assert (shown != wanted).any(2).mean() < 0.01 and shown.any()


def test_the_lines_are_data_with_their_labels(extracted: Path) -> None:
    task = Pose("toy", resolution=64)
    data = Captioned(
        str(extracted), condition="condition_image", labels="pose", test={"split": "test"}, cache_folder=None,
        resolution=64, task=task,
    )  # fmt: skip
    samples = [*first(data.train, 99), *first(data.test, 99)]
    assert len(samples) == PEOPLE and len(data.test) <= 1
    maps, control = truth_of(samples[:2], task, torch.stack([s.image for s in samples[:2]]))
    for sample, people in zip(samples[:2], maps, strict=True):
        (line,) = [line for line in lines(extracted).values() if line["text"] == sample.caption]
        wanted = torch.tensor(line["pose"]) * torch.tensor([64 / 128, 64 / 96, 1])
        assert torch.allclose(people[..., :2], wanted[..., :2] * (wanted[..., 2:] > 0), atol=1e-4)
    assert control.shape == (2, 3, 64, 64)


def test_what_is_there_is_not_looked_at_again_unless_its_picture_changed(
    photographs: tuple[Path, dict[str, Tensor]], extracted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    look = pose_extraction._extract
    monkeypatch.setattr(
        pose_extraction, "_extract", lambda picture, *rest: (seen.append(picture.id), look(picture, *rest))
    )
    before = {split: (extracted / f"{split}.jsonl").read_text() for split in ("train", "test")}
    extract(str(photographs[0]), extracted, Pose("toy"), CPU)
    assert seen == [] and before == {split: (extracted / f"{split}.jsonl").read_text() for split in before}
    (extracted / "keypoints" / "3.png.json").write_text("cut sho")
    extract(str(photographs[0]), extracted, Pose("toy"), CPU)
    assert seen == ["3.png"] and before == {split: (extracted / f"{split}.jsonl").read_text() for split in before}
    with pytest.raises(UserError, match="holds poses of another detector"):
        extract(str(photographs[0]), extracted, Pose("toy", joint_threshold=0.4), CPU)


def test_one_in_thirty_one_is_held_out(tmp_path: Path) -> None:
    for i in range(31):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    task = Pose("toy", joint_threshold=-1.0)  # everybody is seen everywhere
    extract(str(tmp_path), tmp_path / "out", task, CPU)
    counts = [len((tmp_path / "out" / f"{split}.jsonl").read_text().splitlines()) for split in ("train", "test")]
    assert counts == [30, 1]


def test_a_published_detector_reads_pictures_of_any_size(tmp_path: Path) -> None:
    """The class of ViTPose at random: two sizes, whole pictures, every joint within its picture."""
    for i, size in enumerate([(80, 60), (60, 100)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    extract(str(tmp_path), tmp_path / "out", Pose("published", pretrained=False, joint_threshold=-9.0), CPU)
    for i, (width, height) in enumerate([(80, 60), (60, 100)]):
        (found,) = read(tmp_path / "out" / "keypoints" / f"{i}.png.json").values()
        assert found.size == (width, height) and found.keypoints.shape == (1, 17, 3)


def test_the_command_line_asks_for_what_it_needs(tmp_path: Path) -> None:
    (problem,) = diagnose("prepare", [f"pose={tmp_path}"])
    assert problem == f"pose={tmp_path}: add task=pose export=<the folder that gets keypoints, skeletons and lines>"
    assert diagnose("prepare", [f"pose={tmp_path}/none", "task=pose", "export=x"]) == [
        f"pose={tmp_path}/none: no such folder"
    ]
    assert diagnose("prepare", [f"pose={tmp_path}", "task=pose", "export=x"]) == []
