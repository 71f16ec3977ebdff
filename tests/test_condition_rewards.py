"""Rewards that look for the condition, of file sizes, and of several rewards: against specs/pose_ddpo.md (probes 8, 9)
and Pillow."""

import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lpo_platform.config import UserError
from lpo_platform.data.toy import ToySplit
from lpo_platform.rewards.blend import Blend
from lpo_platform.rewards.compressibility import Compressibility, Incompressibility
from lpo_platform.rewards.consistency import Consistency
from lpo_platform.rewards.oks import Oks, similarity
from lpo_platform.rewards.reward import Asked, parts
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.task import Task

# Probe 9's body, in OpenPose's order of 18, and the rows of it that are COCO's 17.
BODY = torch.tensor([
    (512, 200), (512, 300), (430, 300), (400, 420), (390, 530), (594, 300), (624, 420), (634, 530), (460, 560),
    (455, 740), (450, 900), (564, 560), (569, 740), (574, 900), (495, 185), (529, 185), (475, 195), (549, 195),
])  # fmt: skip
COCO = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
ELBOWS_AND_WRISTS = {3: (400, 200), 6: (624, 200), 4: (390, 100), 7: (634, 100)}


def changed(**joints: tuple[int, int]) -> Tensor:
    body = BODY.clone()
    for joint, place in ELBOWS_AND_WRISTS.items():
        body[joint] = torch.tensor(place)
    return body


MOVED = {
    "same": (BODY, 1.0),
    "shifted": (BODY + torch.tensor([20, 0]), 0.8803395),
    "arms up": (changed(), 0.7648522),
    "half": (BODY // 2, 4.16e-5),
    "upside down": (torch.stack([BODY[:, 0], 1023 - BODY[:, 1]], 1), 0.1575914),
}


def person(body: Tensor, missing: tuple[int, ...] = ()) -> Tensor:
    """(18, 2) of OpenPose -> (1, 17, 3) of COCO, without some of OpenPose's joints."""
    seen = torch.ones(18, 1)
    seen[list(missing)] = 0
    return (torch.cat([body, torch.ones(18, 1)], 1) * seen)[COCO][None].float()


class Shown(Task):
    """A task whose detector finds in picture i what is written down for it."""

    name, scores = "shown", Pose.scores
    fingerprint = "shown"
    render = parse = distance = score = None

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.asked = maps, []

    def detect(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        return self.maps[images[:, 0, 0, 0].long()]


def numbered(count: int) -> Tensor:
    return torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).float()


def asked(maps: Tensor, row: list[int]) -> Asked:
    return Asked(maps, torch.zeros(len(maps), 3, 2, 2), torch.tensor(row))


def test_probe_9_oks_of_a_body() -> None:
    maps = torch.stack([person(body) for body, _ in MOVED.values()] + [person(BODY, missing=(4,))])
    task = Shown(maps)
    found = Oks(batch=4, task=task)(numbered(6), [""] * 6, asked(person(BODY)[None], [0] * 6))
    expected = [oks for _, oks in MOVED.values()] + [0.9411765]
    assert found.tolist() == pytest.approx(expected, abs=1e-6) and task.asked == [4, 2]


def test_oks_of_several_people() -> None:
    """Everybody is found once, whoever comes first; too many cost as much as too few; nobody is nobody."""
    one, other = person(BODY), person(BODY + 300)
    both, nobody = torch.cat([one, other]), torch.zeros(0, 17, 3)
    assert similarity(both.flip(0), both).item() == pytest.approx(1)
    assert similarity(one, both).item() == similarity(both, one).item() == pytest.approx(0.5)
    assert similarity(torch.cat([one, one]), both).item() == pytest.approx(0.5, abs=1e-3), "one person found twice"
    assert similarity(nobody, both).item() == similarity(both, nobody).item() == 0
    assert similarity(nobody, nobody).item() == 1


@pytest.fixture(scope="module")
def people() -> Tensor:
    split = ToySplit("test", 40, 5, resolution=64)
    scenes = [scene for scene in (split.scene(i) for i in range(40)) if scene.keypoints.any()][:3]
    return torch.stack([scene.image for scene in scenes]).float() / 255


def test_pictures_of_their_own_condition_score_highest(people: Tensor) -> None:
    """By the detector of the embedded world; a batch of two sees what one of six sees."""
    task, row = Pose(toy=True, resolution=64), [0, 1, 2, 1, 2, 0]
    maps = task.detect(people)
    condition = Asked(maps, task.render(maps), torch.tensor(row))
    images = people.repeat(2, 1, 1, 1)
    for reward, best in ((Oks(task=task), 1.0), (Consistency(task=task), 0.0), (Consistency("pose/oks", task=task), 1)):
        scores = reward(images, [""] * 6, condition)
        assert scores[:3].tolist() == pytest.approx([best] * 3, abs=1e-6) and (scores[3:] < best - 0.05).all()
        assert scores.dtype == torch.float32
        reward.batch = 2
        torch.testing.assert_close(reward(images, [""] * 6, condition), scores)
        assert reward(images[:0], [], condition).shape == (0,)


def test_consistency_takes_the_sign_that_makes_higher_better(people: Tensor) -> None:
    """Minus the distance; a score of the task; and one that is an error, turned round."""

    class Error(Canny):
        scores: ClassVar[dict[str, bool]] = {"canny/f1": False}

    maps = Canny().detect(people)
    condition = Asked(maps, Canny().render(maps), torch.tensor([1, 1, 1]))
    difference = ((maps - maps[1]) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(Consistency(task=Canny())(people, [""] * 3, condition), -difference)
    f1 = Consistency("canny/f1", task=Canny())(people, [""] * 3, condition)
    torch.testing.assert_close(f1, Canny().score(maps, maps[[1, 1, 1]])["canny/f1"])
    torch.testing.assert_close(Consistency("canny/f1", task=Error())(people, [""] * 3, condition), -f1)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(UserError, match="reward oks: these pictures were drawn from no condition"):
        Oks(task=Shown(person(BODY)))(numbered(1), [""])
    with pytest.raises(UserError, match="score=canny/F1: task=canny has none; did you mean 'canny/f1'"):
        Consistency("canny/F1", task=Canny())
    with pytest.raises(UserError, match="reward consistency: batch=0"):
        Consistency(batch=0, task=Canny())
    undefined = Asked(torch.zeros(1, 1, 17, 3), torch.zeros(1, 3, 64, 64), torch.tensor([0]))
    with pytest.raises(UserError, match="reward consistency: returned NaN or infinity for 1 of 1 samples"):
        parts(Consistency("pose/oks", task=Pose(toy=True)), torch.zeros(1, 3, 64, 64), [""], undefined)


def test_sizes_are_those_of_pillows_files(people: Tensor) -> None:
    expected = []
    for picture in people:
        file = io.BytesIO()
        Image.fromarray((picture * 255).byte().permute(1, 2, 0).numpy()).save(file, format="JPEG", quality=95)
        expected.append(len(file.getvalue()) / 1000)
    assert Compressibility()(people, [""] * 3).tolist() == pytest.approx([-size for size in expected])
    assert Incompressibility()(people, [""] * 3).tolist() == pytest.approx(expected)
    assert (Incompressibility(quality=30)(people, [""] * 3) < Incompressibility()(people, [""] * 3)).all()
    noise = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert Compressibility()(noise, [""]) < Compressibility()(people[:1], [""])
    with pytest.raises(UserError, match="reward incompressibility: quality=100: must lie in 1 to 95"):
        Incompressibility(quality=100)
    with pytest.raises(UserError, match="reward compressibility: the pictures hold NaN"):
        Compressibility()(noise * torch.nan, [""])


def test_a_blend_is_the_weighted_sum_of_its_parts(people: Tensor) -> None:
    def red(images: Tensor, prompts: list[str], condition: Asked | None = None) -> Tensor:
        return images[:, 0].mean((1, 2))

    blend = Blend({"red": red, "small": Compressibility()}, {"small": 0.25})
    said = parts(blend, people, [""] * 3)
    assert list(said) == ["red", "small", "score"]
    small = Compressibility()(people, [""] * 3)
    torch.testing.assert_close(said["small"], small)
    assert said["score"].numpy() == pytest.approx(np.asarray(people)[:, 0].mean((1, 2)) + 0.25 * small.numpy())
    several = Blend({"inner": Blend({"red": red}, {"red": 3.0})}, {})
    torch.testing.assert_close(parts(several, people, [""] * 3)["score"], 3 * said["red"])
    with pytest.raises(UserError, match=r"weights.smal: no such part; did you mean 'small'"):
        Blend({"small": Compressibility()}, {"smal": 1.0})
    with pytest.raises(UserError, match=r"rewards=\{\}: name some; add \+reward@reward.rewards.clip=clip"):
        Blend({}, {})
    broken = Blend({"dark": lambda images, prompts, condition: images[:, 0, 0]}, {})
    with pytest.raises(UserError, match="returned shape"):
        parts(broken, people, [""] * 3)
