"""BlazePose around its networks in closed form; with the wheel, on photographs, against mediapipe itself."""

import math
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.tasks.blazepose import FILES, Square, anchors, blazepose, persons, refined
from lpo_platform.tasks.oks import oks
from lpo_platform.tasks.pose import Pose

MIRRORED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
NOSE, LEFT_EYE, RIGHT_EYE, LEFT_EAR, RIGHT_EAR, LEFT_SHOULDER, RIGHT_SHOULDER = range(7)
# mediapipe.solutions.pose of 0.10.14, model_complexity=1, x and y of the joints it is sure of in skimage's astronaut
MEDIAPIPE = torch.tensor(
    [[219.36, 129.70], [246.12, 115.09], [202.39, 104.52], [266.10, 124.29], [190.41, 107.92], [304.67, 257.39],
     [110.14, 239.06]]
)  # fmt: skip


def test_a_turned_square_reads_what_lies_in_it() -> None:
    """Of a picture whose colours are its coordinates; upright what points right where the angle is a quarter."""
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(50.0), indexing="ij")
    square = Square(torch.tensor([22.0, 18.0]), 20.0, 0.6)
    seen = square.view(torch.stack([x, y, x]), 10, "zeros")
    for row, column in ((0, 0), (3, 7), (9, 2)):
        place = square.placed(torch.tensor([column / 10, row / 10]))
        assert torch.allclose(seen[:2, row, column], place, atol=1e-4)
    turned = Square(torch.zeros(2), 2.0, math.pi / 2)
    assert torch.allclose(turned.placed(torch.tensor([0.5, 0.0])), torch.tensor([1.0, 0.0]), atol=1e-6)


def test_anchors_are_those_of_the_network() -> None:
    """2254 of strides 8, 16 and three times 32, two in every cell, in rows."""
    found = anchors()
    assert found.shape == (2254, 2)
    assert (found[[0, 1, 2, 56]] * 224).tolist() == [[4, 4], [4, 4], [12, 4], [4, 12]]
    assert (found[[1568, 1960, 1966]] * 224).tolist() == [[8, 8], [16, 16], [48, 16]]


def test_persons_are_averages_of_the_boxes_that_overlap() -> None:
    boxes, scores = torch.zeros(2254, 12), torch.zeros(2254)
    where = anchors() * 224
    wanted = {10: (50.0, 0.8), 12: (54.0, 0.4), 1900: (180.0, 0.6), 1901: (20.0, 0.2)}
    for row, (place, score) in wanted.items():
        points = torch.tensor([[place, 60.0], [place, 70.0], [place - 10, 30.0]]) - where[row]
        boxes[row] = torch.cat([points[:1], torch.full((1, 2), 40.0), points[1:], torch.zeros(2, 2)]).flatten()
        scores[row] = score
    first, second = persons(boxes, scores, 0.3)
    middle = (0.8 * 50 + 0.4 * 54) / 1.2
    assert torch.allclose(first * 224, torch.tensor([[middle, 70.0], [middle - 10, 30.0]]), atol=1e-4)
    assert torch.allclose(second * 224, torch.tensor([[180.0, 70.0], [170.0, 30.0]]), atol=1e-4)
    assert persons(boxes, scores, 0.9) == []


def test_joints_move_to_the_mean_of_a_sure_heat_map() -> None:
    heat = torch.zeros(4, 64, 64)
    heat[0, 20, 31], heat[0, 22, 33] = 0.9, 0.3  # near the joint
    heat[1, 20, 31] = 0.4  # not sure
    heat[2, 40, 40] = 0.9  # far away
    heat[3, 0, 0] = 0.9  # of a joint outside
    points = torch.tensor([[30.5, 20.5]] * 3 + [[-3.0, 1.0]]) / 64
    found = refined(points, heat) * 64
    assert torch.allclose(found[0], torch.tensor([31.5, 20.5])) and torch.allclose(found[1:], points[1:] * 64)


@pytest.mark.parametrize("place", ["usyd-community/vitpose-base-simple", "{tmp}", "{tmp}/torn.whl"])
def test_without_its_wheel_it_says_where_that_is(place: str, tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_bytes(b"one of the two")
    (tmp_path / "torn.whl").write_bytes(b"PK")
    weights = place.format(tmp=tmp_path)
    with pytest.raises(UserError, match=r"^task.weights=.*: not BlazePose; what works: .*whl.*mediapipe==0.10.14"):
        Pose("blazepose", weights)


def test_without_its_runtime_it_says_which_extra_has_it(tmp_path: Path) -> None:
    if find_spec("ai_edge_litert") is not None:
        pytest.skip("ai-edge-litert is installed")
    for name in FILES:
        (tmp_path / name).write_bytes(b"a network")
    with pytest.raises(UserError, match=r"pip install 'lpo-platform\[pose\]'"):
        Pose("blazepose", str(tmp_path))


# With the wheel: MEDIAPIPE_WHEEL=<mediapipe-0.10.14-*.whl> make test-slow


@pytest.fixture
def wheel() -> str:
    pytest.importorskip("skimage", reason="scikit-image, which has the photographs, is not installed")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert (extra `pose`) is not installed")
    if "MEDIAPIPE_WHEEL" not in os.environ:
        pytest.skip("MEDIAPIPE_WHEEL names no wheel of mediapipe 0.10.14")
    return os.environ["MEDIAPIPE_WHEEL"]


def photograph(name: str) -> Tensor:
    """(1, 3, 512, 512) in [0, 1]."""
    place = Path(find_spec("skimage").submodule_search_locations[0]) / "data" / f"{name}.png"
    return torch.from_numpy(np.array(Image.open(place).convert("RGB"))).permute(2, 0, 1)[None] / 255


@pytest.mark.slow
def test_joints_are_where_mediapipe_finds_them(wheel: str) -> None:
    (person,) = blazepose(wheel, 0.3)(photograph("astronaut"))[0]
    assert (person[:7, :2] - MEDIAPIPE).norm(dim=1).max() < 2 and person[:7, 2].min() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["astronaut", "camera"])
def test_people_of_photographs_stand_as_people_do(name: str, wheel: str) -> None:
    """Heads above shoulders, the nose before the ears in the picture of a face, and the mirror image mirrored."""
    task = Pose("blazepose", wheel)
    found, mirrored = (task.detect(picture)[0] for picture in (photograph(name), photograph(name).flip(3)))
    (person,) = found
    x, y, seen = person.T
    assert (seen[:7] == 1).all() and y[:5].max() < y[[LEFT_SHOULDER, RIGHT_SHOULDER]].min()
    if name == "astronaut":  # who looks at us: her right is our left
        assert x[RIGHT_EAR] < x[RIGHT_EYE] < x[NOSE] < x[LEFT_EYE] < x[LEFT_EAR]
        assert x[RIGHT_SHOULDER] < x[RIGHT_EAR] and x[LEFT_EAR] < x[LEFT_SHOULDER]
    back = mirrored[:, MIRRORED] * torch.tensor([-1.0, 1, 1]) + torch.tensor([512.0, 0, 0])
    assert oks(back * mirrored[:, MIRRORED, 2:], found).item() > 0.6


@pytest.mark.slow
def test_nobody_is_found_where_nobody_is_and_a_batch_changes_nothing(wheel: str) -> None:
    detector = blazepose(wheel, 0.3)
    pictures = torch.cat([photograph("brick").expand(-1, 3, -1, -1), photograph("astronaut"), photograph("camera")])
    together = detector(pictures)
    assert not together[0].any() and together.shape == (3, 1, 17, 3)
    assert torch.equal(together, torch.cat([detector(picture[None]) for picture in pictures]))
