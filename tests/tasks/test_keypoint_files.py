"""Keypoint files of other programs, and OKS where people have no extent."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.keypoints import area_of, measure
from lpo_platform.evaluation.what.oks import Oks as WhatOks
from lpo_platform.rewards.oks import similarity
from lpo_platform.tasks.keypoint_files import (
    BROKEN,
    NO_FILE,
    SEVERAL,
    BadKeypoints,
    fitted,
    people,
    read_file,
    read_folder,
)
from lpo_platform.tasks.oks import SIGMAS, oks, shown_extent
from lpo_platform.tasks.pose import Pose

WIDTH, HEIGHT = 400, 600
BODY = np.stack([np.linspace(40, 360, 18), np.linspace(60, 540, 18), np.full(18, 0.9)], 1)
SHARES = BODY / [WIDTH, HEIGHT, 1]


def openpose(points: np.ndarray = BODY, **more: object) -> dict:
    return {"pose_keypoints_2d": points.flatten().tolist(), **more}


def comfy(points: np.ndarray = SHARES, **canvas: int) -> list:
    canvas = canvas or {"canvas_width": WIDTH, "canvas_height": HEIGHT}
    return [{"people": [openpose(points, face_keypoints_2d=None)], **canvas}]


def written(folder: Path, **contents: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "content", [comfy(), comfy(BODY), comfy()[0], {"people": [openpose()]}, "\ufeff" + json.dumps(comfy())]
)
def test_openpose_and_comfyui_give_the_same_people(tmp_path: Path, content: object) -> None:
    found = read_file(written(tmp_path, x=content) / "x.json")[0]["x"]
    wanted = read_file(written(tmp_path, y={"people": [openpose()]}) / "y.json")[0]["y"]
    np.testing.assert_allclose(found.keypoints, wanted.keypoints, atol=1e-9)


def test_hands_of_one_person_stay_beside_a_person_without(tmp_path: Path) -> None:
    hand = np.stack([np.linspace(0.1, 0.2, 21)] * 2 + [np.ones(21)], 1)
    rows = [openpose(SHARES, hand_left_keypoints_2d=hand.flatten().tolist()), openpose(SHARES)]
    content = [{"people": rows, "canvas_width": WIDTH, "canvas_height": HEIGHT}]
    parts = read_file(written(tmp_path, x=content) / "x.json")[0]["x"].parts
    np.testing.assert_allclose(parts["hand_left"], np.stack([hand * [WIDTH, HEIGHT, 1], hand * 0]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"people": [openpose(SHARES)]}], "from 0 to 1 without the size"),
        ({"people": [openpose(SHARES)]}, "from 0 to 1 without the size"),
        (comfy() * 2, "a list of 2 pictures"),
        ([], "a list of 0 pictures"),
        (comfy(canvas_width=0, canvas_height=3), "no size of a picture"),
        ({"people": [{"pose_keypoints_2d": [1.0] * 51}]}, "17 body keypoints, not 18 or 25"),
        ({"people": [{"pose_keypoints_2d": [1.0] * 52}]}, "a person with"),
        ({"people": [{"keypoints": ["a"] * 51}]}, "a person with no numbers"),
        ({"people": [{"keypoints": [[float("nan"), 1, 1]] * 17}]}, "not numbers"),
        ({"people": [{"keypoints": [[1, 1, float("inf")]] * 17}]}, "not a number"),
        ({"people": {}}, "no list of people"),
        ({"annotations": [1], "images": []}, "no lists of objects"),
        ('{"people": [], "people": []}', "'people' twice"),
        ("[" * 100_000, "nested too deeply"),
        ('"text"', "neither an object"),
    ],
)
def test_other_files_are_left_out_with_their_reason(tmp_path: Path, content: object, message: str) -> None:
    file = written(tmp_path, bad=content, good={"people": [openpose()]}) / "bad.json"
    with pytest.raises(BadKeypoints, match=message):
        read_file(file)
    found, left_out = read_folder("what.original", tmp_path)
    assert set(found) == {"good"} and list(left_out) == [NO_FILE] and left_out[NO_FILE][0].startswith("bad.json: ")
    (tmp_path / "good.json").unlink()
    with pytest.raises(UserError, match=r"what.original=.*: no keypoints: no keypoint file \(bad.json: "):
        read_folder("what.original", tmp_path)


def test_a_special_file_is_no_keypoint_file(tmp_path: Path) -> None:
    written(tmp_path, good={"people": [openpose()]})
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    assert set(read_folder("what.original", tmp_path)[0]) == {"good"}
    with pytest.raises(UserError, match="no keypoints"):
        read_folder("what.original", "/dev/zero")


def test_names_are_paths_where_parts_of_them_are_equal(tmp_path: Path) -> None:
    """Two frames of one name in two folders; names with dots; two files for one name, which are nobody's."""
    one = {"people": [openpose()]}
    for folder in ("train", "val"):
        written(tmp_path / folder, **{"0001_keypoints": one})
    written(tmp_path, **{"scene.v1": one, "scene.v2": one})
    assert set(read_folder("s", tmp_path)[0]) == {"train/0001", "val/0001", "scene.v1", "scene.v2"}
    (tmp_path / "val" / "0001_keypoints.json").unlink()
    assert set(read_folder("s", tmp_path)[0]) == {"0001", "scene.v1", "scene.v2"}
    written(tmp_path, **{"scene.v1_keypoints": one, "scene.v2.png": one})
    found, left_out = read_folder("s", tmp_path)
    assert set(found) == {"0001"} and len(left_out[SEVERAL]) == 4
    row = {"keypoints": BODY[:17].flatten().tolist()}
    names = {1: "train/0001.jpg", 2: "val/0001.jpg", 3: "scene.v1", 4: "1.jpg", 5: "1.png"}
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in names.items()],
        "annotations": [row | {"image_id": number} for number in names],
    }
    found, left_out = read_file(written(tmp_path / "coco", all=coco) / "all.json")
    assert set(found) == {"train/0001", "val/0001", "scene.v1"} and left_out == {SEVERAL: ["1.jpg", "1.png"]}


def test_one_broken_person_costs_the_picture_and_not_the_file(tmp_path: Path) -> None:
    row = {"keypoints": BODY[:17].flatten().tolist()}
    rows = [row | {"image_id": 1}, {"keypoints": [1, 2], "image_id": 1}, row | {"image_id": 2}]
    found, left_out = read_file(written(tmp_path, results=rows) / "results.json")
    assert set(found) == {"2"} and [names for reason, names in left_out.items() if reason.startswith(BROKEN)] == [["1"]]


def test_people_are_compared_in_one_size_of_picture(tmp_path: Path) -> None:
    small = {"size": [WIDTH // 2, HEIGHT // 2], "people": [{"keypoints": (BODY[:17] * [0.5, 0.5, 1]).tolist()}]}
    large = {"size": [WIDTH, HEIGHT], "people": [{"keypoints": BODY[:17].tolist()}]}
    other = {"size": [HEIGHT, WIDTH], "people": [{"keypoints": BODY[:17].tolist()}]}
    original = written(tmp_path / "a", x=large, y=large, z=large)
    target = written(tmp_path / "b", x=small, y=other, z="broken")
    result = WhatOks(str(original), str(target))(tmp_path)
    assert [item["name"] for item in result["items"]] == ["x"] and result["metrics"]["oks"]["mean"] == pytest.approx(1)
    left_out = {reason: names for reason, names in result["left_out"].items() if names}
    assert left_out.pop("of pictures with different proportions") == ["y"]
    assert left_out.pop("missing in target") == ["z"]
    ((reason, (name,)),) = left_out.items()
    assert reason == f"{NO_FILE} in target" and name.startswith("z.json: ")
    nobody = people([], (3, 5))
    assert fitted(nobody, (9, 9)) is nobody


# OKS of people whose joints span no area.


def person(*joints: tuple[int, float, float]) -> Tensor:
    found = torch.zeros(1, 17, 3, dtype=torch.float64)
    for number, x, y in joints:
        found[0, number] = torch.tensor([x, y, 1.0])
    return found


ONE = person((5, 200.0, 100.0))
ARM = person((5, 100.0, 100.0), (7, 160.0, 100.0), (9, 220.0, 100.0))
STANDING = person((0, 50.0, 20.0), (15, 30.0, 200.0), (16, 70.0, 200.0))


def by_hand(pixels: float, area: float, joints: list[int]) -> float:
    return sum(math.exp(-(pixels**2) / (2 * area * (2 * SIGMAS[k]) ** 2)) for k in joints) / len(joints)


@pytest.mark.parametrize(
    ("wanted", "area", "joints"),
    [
        (ONE, 32**2, [5]),
        (person((0, 9.0, 9.0)), 32**2, [0]),
        (person((5, 9.0, 9.0), (6, 9.0, 9.0)), 32**2, [5, 6]),
        (person((5, 9.0, 9.0), (6, 9.0, 29.0)), 32**2, [5, 6]),
        (ARM, 32**2, [5, 7, 9]),
        (person((5, 0.0, 100.0), (9, 400.0, 100.0)), 100**2, [5, 9]),
        (STANDING, 40 * 180, [0, 15, 16]),
    ],
)
def test_a_pixel_beside_people_without_an_area_is_near(wanted: Tensor, area: float, joints: list[int]) -> None:
    """The reward, the metric and what=oks have the closed form; a person with an extent keeps its own."""
    assert shown_extent(wanted).item() == area
    for pixels in (0.0, 1.0, 10.0):
        found = wanted + torch.tensor([0, pixels, 0]) * (wanted[..., 2:] > 0)
        expected = by_hand(pixels, area, joints)
        assert oks(found, wanted).item() == pytest.approx(expected, abs=1e-6)
        assert similarity(found, wanted).item() == pytest.approx(expected, abs=1e-6)
        task = Pose(pretrained=False, people=None)
        assert task.score(found[None], wanted[None])["pose/oks"].item() == pytest.approx(expected, abs=1e-6)
        assert task.distance(found[None], wanted[None]).item() == pytest.approx(1 - expected, abs=1e-6)
        rows = [people([{"keypoints": body[0].numpy()}]) for body in (found, wanted)]
        assert measure(*rows, "keypoints")["oks"] == pytest.approx(expected, abs=1e-6)
    assert by_hand(1.0, area, joints) > 0.8


@pytest.mark.parametrize("convention", ["segment", "bbox", "bbox053"])
def test_an_annotated_area_of_nothing_has_the_floor(convention: str) -> None:
    row = {"keypoints": ONE[0].numpy(), "area": 0.0, "bbox": [3, 4, 0, 0]}
    assert area_of(people([row]), convention).tolist() == [32**2]
    given = {"keypoints": ONE[0].numpy(), "area": 50.0, "bbox": [3, 4, 5, 10]}
    assert area_of(people([given]), convention).tolist() == [26.5 if convention == "bbox053" else 50]


@pytest.mark.parametrize("area", [0, -1.0, float("nan"), float("inf")])
def test_a_number_that_is_no_area_is_refused(area: float) -> None:
    with pytest.raises(UserError, match=r"what\.area=.*no area; what works"):
        area_of(people([{"keypoints": ONE[0].numpy()}]), area)


def test_nobody_has_no_area() -> None:
    assert shown_extent(torch.zeros(2, 17, 3)).tolist() == [0, 0]
