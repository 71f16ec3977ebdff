"""Photographs to data of pose control: keypoints in their pixels, skeletons, lines in the seed's form, split 30:1."""

import colorsys
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import VitPoseForPoseEstimation, VitPoseImageProcessor

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.data.captioned import Captioned
from lpo_platform.data.prepared import poses
from lpo_platform.data.prepared.poses import ELSEWHERE, NOBODY, SEVERAL, extract
from lpo_platform.data.source import first
from lpo_platform.data.truth import truth_of
from lpo_platform.models.tiny.scenes import ToySplit
from lpo_platform.tasks.keypoint_files import read_file
from lpo_platform.tasks.oks import oks
from lpo_platform.tasks.pose import Pose, small
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
        people = read_file(extracted / "keypoints" / f"{name}.json")[0][name.removesuffix(".png")]
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
    look = poses._extract
    monkeypatch.setattr(poses, "_extract", lambda picture, *rest: (seen.append(picture.id), look(picture, *rest)))
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
        (found,) = read_file(tmp_path / "out" / "keypoints" / f"{i}.png.json")[0].values()
        assert found.size == (width, height) and found.keypoints.shape == (1, 17, 3)


def test_the_command_line_asks_for_what_it_needs(tmp_path: Path) -> None:
    (problem,) = diagnose("prepare", [f"pose={tmp_path}"])
    assert problem == f"pose={tmp_path}: add task=pose export=<the folder that gets keypoints, skeletons and lines>"
    assert diagnose("prepare", [f"pose={tmp_path}/none", "task=pose", "export=x"]) == [
        f"pose={tmp_path}/none: no such folder"
    ]
    assert diagnose("prepare", [f"pose={tmp_path}", "task=pose", "export=x"]) == []


# Hands and face


@pytest.fixture(scope="module")
def vitpose(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ViTPose of COCO-WholeBody at random."""
    folder = tmp_path_factory.mktemp("vitpose")
    torch.manual_seed(0)
    VitPoseForPoseEstimation(small(133)).save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return str(folder)


def noise_pictures(folder: Path) -> None:
    folder.mkdir()
    for i, size in enumerate([(80, 60), (60, 100)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": "noise"} for i in range(2)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_hands_and_faces_are_stored_drawn_and_read_as_labels(vitpose: str, tmp_path: Path) -> None:
    noise_pictures(tmp_path / "photographs")
    task = Pose("published", vitpose, None, joint_threshold=-9.0, whole_body=True, resolution=64)
    extract(str(tmp_path / "photographs"), tmp_path / "out", task, CPU)
    (found,) = read_file(tmp_path / "out" / "keypoints" / "1.png.json")[0].values()
    pixels = torch.from_numpy(np.array(Image.open(tmp_path / "photographs" / "1.png"))).permute(2, 0, 1)[None] / 255
    (person,) = task.find(pixels)[0].double().numpy()
    person[person[:, 2] <= 0] = 0  # what a file says of a joint that nothing speaks for
    places = {"face": slice(23, 91), "hand_left": slice(91, 112), "hand_right": slice(112, 133)}
    assert set(found.parts) == set(places)
    for name, where in places.items():
        assert np.abs(found.parts[name][0] - person[where]).max() < 0.01, name
    shown = np.asarray(Image.open(tmp_path / "out" / "skeletons" / "1.png.png"))
    wanted, body = (
        draw(torch.from_numpy(person[None, :count]), 100)[:, :, :60].mul(255).round().permute(1, 2, 0).numpy()
        for count in (133, 17)
    )
    assert (shown != wanted).any(2).mean() < 0.02 < 0.1 < (shown != body).any(2).mean()
    for file in (tmp_path / "out").glob("*.jsonl"):  # a random network points beside its picture, which is no label
        line = json.loads(file.read_text())
        line["pose"] = np.clip(line["pose"], 0, [60, 60, 1]).tolist()
        file.write_text(json.dumps(line))
    data = Captioned(
        str(tmp_path / "out"), labels="pose", test={"split": "test"}, cache_folder=None, resolution=64, task=task,
    )  # fmt: skip
    assert {sample.labels.shape for sample in first(data.train, 9)} == {(1, 133, 3)}


def test_without_the_option_a_body_is_all(vitpose: str) -> None:
    images = torch.rand(2, 3, 60, 80, generator=torch.Generator().manual_seed(0))
    body, whole = (Pose("published", vitpose, None, whole_body=hands).find(images) for hands in (False, True))
    assert body.shape == (2, 1, 17, 3) and torch.equal(body, whole[:, :, :17])
    task = Pose("published", vitpose, None, joint_threshold=-9.0, whole_body=True, resolution=64)
    maps = task.detect(images)
    assert maps.shape == (2, 1, 133, 3) and task.score(maps, maps[:, :, :17])["pose/oks"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"task.whole_body=true: task.detector=toy finds no hands and faces"):
        Pose("toy", whole_body=True)
    coco = Path(vitpose, "coco")
    VitPoseForPoseEstimation(small()).save_pretrained(coco)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(coco)
    with pytest.raises(UserError, match=r"names 17 keypoints, not the 133 of COCO-WholeBody"):
        Pose("published", str(coco), None, whole_body=True)


def test_hands_and_face_have_openposes_colours_and_proportions() -> None:
    """At 512 pixels: white discs of radius 3, blue ones of 4, bones 2 wide in 20 hues, finger by finger."""
    person = torch.zeros(1, 133, 3)
    person[0, 23] = torch.tensor([100.5, 100.5, 1])
    person[0, 91:96] = torch.tensor(
        [[200.5, 200.5, 1], [240.5, 200.5, 1], [280.5, 200.5, 1], [0, 0, 0], [300.5, 300.5, 1]]
    )
    person[0, 117] = torch.tensor([200.5, 400.5, 1])  # a lone knuckle of the other hand
    picture = draw(person, 512).permute(1, 2, 0)
    lit = (picture > 0).any(2)
    assert picture[100, 97:104].tolist() == [[1, 1, 1]] * 7 and lit[90:110, 90:110].sum() == disc(3)
    assert (picture[390:410, 190:210] == torch.tensor([0, 0, 1.0])).all(2).sum() == disc(4)
    for x, hue in ((220, 0), (260, 1 / 20)):
        column = picture[190:211, x]
        assert (column > 0).any(1).nonzero().flatten().tolist() == [9, 10, 11]
        assert torch.allclose(column[10], torch.tensor(colorsys.hsv_to_rgb(hue, 1, 1)))
    bones = 2 * (39 + 2 * (39 - 2 * 3))  # pixels between the discs, which are narrower a row off their middle
    assert lit.sum() < disc(3) + 5 * disc(4) + bones, "a bone leads to a point that is missing"


def disc(radius: int) -> int:
    return sum(x * x + y * y <= radius**2 for x in range(-9, 10) for y in range(-9, 10))


def test_what_openpose_has_found_is_drawn(tmp_path: Path) -> None:
    """From its own files; the 70 points of its face end with the pupils, which have no place among 68."""
    noise_pictures(tmp_path / "photographs")
    rng, counts = np.random.default_rng(0), {"pose": 18, "face": 70, "hand_left": 21, "hand_right": 21}
    found = {name: np.c_[rng.uniform(5, 55, (count, 2)), np.full(count, 0.9)] for name, count in counts.items()}
    found["hand_left"][4, 2] = 0.1
    files = tmp_path / "openpose"
    files.mkdir()
    row = {f"{name}_keypoints_2d": values.flatten().tolist() for name, values in found.items()}
    (files / "0_keypoints.json").write_text(json.dumps({"version": 1.3, "people": [row]}))
    task = Pose("openpose", str(files), whole_body=True)
    findings = extract(str(tmp_path / "photographs"), tmp_path / "out", task, CPU)
    assert findings.report()["skipped"][NOBODY] == {"count": 1, "examples": ["1.png"]}
    person = torch.zeros(1, 133, 3)
    for where, name in ((slice(23, 91), "face"), (slice(91, 112), "hand_left"), (slice(112, 133), "hand_right")):
        person[0, where] = torch.from_numpy(found[name][:68])
    person[0, 95] = 0
    person[0, :17] = torch.from_numpy(found["pose"])[[0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]]
    wanted = draw(person.double(), 80)[:, :, :80].mul(255).round().permute(1, 2, 0).numpy()
    shown = np.asarray(Image.open(tmp_path / "out" / "skeletons" / "0.png.png"))
    assert shown.shape == (60, 80, 3) and (shown == wanted[:60]).all()
    with pytest.raises(UserError, match=r"task.detector=openpose: reads files and looks at no picture"):
        task.detect(torch.zeros(1, 3, 8, 8))
    body = Pose("openpose", str(files)).detector
    assert body.of("0").shape == (1, 17, 3) and len(body.of("1")) == 0


def test_keypoints_of_others_are_those_of_their_picture_or_named(tmp_path: Path) -> None:
    """In pictures with equal names, of another size, of other proportions, and for what lies outside the picture."""
    photographs, files = tmp_path / "photographs", tmp_path / "keypoints"
    body = np.stack([np.linspace(5, 75, 18), np.linspace(5, 55, 18), np.full(18, 0.9)], 1)

    def picture(name: str, seed: int) -> None:
        (photographs / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / name)

    def keypoints(name: str, joints: np.ndarray, *canvas: int) -> None:
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        content = {"people": [{"pose_keypoints_2d": joints.flatten().tolist()}]}
        content |= dict(zip(("canvas_width", "canvas_height"), canvas, strict=False))
        (files / f"{name}.json").write_text(json.dumps([content] if canvas else content))

    names = "train/1.png val/1.png a/2.png b/2.png c/3.png 4.png 5.png 6.png 7.png 7.jpg"
    for seed, name in enumerate(names.split()):
        picture(name, seed)
    keypoints("train/1_keypoints", body)
    keypoints("val/1_keypoints", body * [0.5, 0.5, 1])
    keypoints("2_keypoints", body)
    keypoints("3", body / [80, 60, 1], 800, 600)
    keypoints("4", body * [2, 2, 1], 160, 120)
    keypoints("5", body, 60, 80)
    keypoints("6", body + np.array([100, 0, 0]))
    keypoints("7", body)
    found = extract(str(photographs), tmp_path / "out", Pose("openpose", str(files)), CPU)
    files = sorted((tmp_path / "out").glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    noses = {Path(line["image"]).relative_to("../photographs").as_posix(): line["pose"][0][0] for line in lines}
    wanted = {"train/1.png": 1.0, "val/1.png": 0.5, "c/3.png": 1.0, "4.png": 1.0}
    assert noses == {name: pytest.approx([5 * scale, 5 * scale, 0.9]) for name, scale in wanted.items()}
    skipped = {reason: row["examples"] for reason, row in found.report()["skipped"].items()}
    assert skipped.pop(SEVERAL) == ["7.jpg", "7.png", "a/2.png"] and skipped.pop(ELSEWHERE) == ["6.png"]
    assert skipped == {"of a picture of 60x80 pixels, not 80x60": ["5.png"]}
