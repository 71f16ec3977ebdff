"""Rewards that look for the condition, of file sizes, and of several rewards: against values computed
by hand and Pillow."""

import io
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from toys import rewards as toy_rewards
from transformers import AutoImageProcessor, AutoModel

from lpo_platform.config.errors import UserError
from lpo_platform.models.tiny.scenes import ToySplit
from lpo_platform.rewards.blend import Blend
from lpo_platform.rewards.compressibility import Compressibility, Incompressibility
from lpo_platform.rewards.consistency import Consistency
from lpo_platform.rewards.keypoint_cosine import KeypointCosine, body
from lpo_platform.rewards.keypoint_cosine import similarity as similarity_of_parts
from lpo_platform.rewards.oks import Oks, similarity
from lpo_platform.rewards.reward import Asked, parts
from lpo_platform.rewards.skeleton_dino import SkeletonDino
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.skeleton import draw
from lpo_platform.tasks.task import Task

# A body, in OpenPose's order of 18, and the rows of it that are COCO's 17.
BODY = torch.tensor([
    (512, 200), (512, 300), (430, 300), (400, 420), (390, 530), (594, 300), (624, 420), (634, 530), (460, 560),
    (455, 740), (450, 900), (564, 560), (569, 740), (574, 900), (495, 185), (529, 185), (475, 195), (549, 195),
])  # fmt: skip
COCO = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]
ELBOWS_AND_WRISTS = {3: (400, 200), 6: (624, 200), 4: (390, 100), 7: (634, 100)}


def arms_up() -> Tensor:
    body = BODY.clone()
    for joint, place in ELBOWS_AND_WRISTS.items():
        body[joint] = torch.tensor(place)
    return body


# The body moved, its cosine and its OKS with BODY.
MOVED = {
    "same": (BODY, 1.0, 1.0),
    "shifted": (BODY + torch.tensor([20, 0]), 0.9998165, 0.8803395),
    "arms up": (arms_up(), 0.9753765, 0.7648522),
    "half": (BODY // 2, 0.9999996, 4.16e-5),
    "upside down": (torch.stack([BODY[:, 0], 1023 - BODY[:, 1]], 1), 0.8014718, 0.1575914),
}


def person(body: Tensor, missing: tuple[int, ...] = ()) -> Tensor:
    """(18, 2) of OpenPose -> (1, 17, 3) of COCO, without some of OpenPose's joints."""
    seen = torch.ones(18, 1)
    seen[list(missing)] = 0
    return (torch.cat([body, torch.ones(18, 1)], 1) * seen)[COCO][None].float()


class Shown(Task):
    """A task whose detector finds in picture i what is written down for it."""

    name, scores, resolution = "shown", Pose.scores, 1024
    fingerprint = "shown"
    parse = distance = score = None

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.asked = maps, []

    def detect(self, images: Tensor) -> Tensor:
        self.asked.append(len(images))
        return self.maps[images[:, 0, 0, 0].long()]

    def render(self, maps: Tensor) -> Tensor:
        return torch.stack([draw(people / 16, 64) for people in maps])


def numbered(count: int) -> Tensor:
    return torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).float()


def asked(maps: Tensor, row: list[int]) -> Asked:
    return Asked(maps, torch.zeros(len(maps), 3, 2, 2), torch.tensor(row))


def test_oks_of_a_body() -> None:
    task = Shown(torch.stack([person(body) for body, _, _ in MOVED.values()] + [person(BODY, missing=(4,))]))
    found = Oks(batch=4, task=task)(numbered(6), [""] * 6, asked(person(BODY)[None], [0] * 6))
    expected = [oks for _, _, oks in MOVED.values()] + [0.9411765]
    assert found.tolist() == pytest.approx(expected, abs=1e-6) and task.asked == [4, 2]


def test_cosines_of_a_body() -> None:
    """COCO has no neck: where the table turns the body, the middle of the shoulders turns with it."""
    task = Shown(torch.stack([person(body) for body, _, _ in MOVED.values()] + [person(BODY, missing=(4,))]))
    found = KeypointCosine(task=task)(numbered(6), [""] * 6, asked(person(BODY)[None], [0] * 6))
    expected = [cosine for _, cosine, _ in MOVED.values()] + [0.9768979]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    rounded = KeypointCosine(half=True, task=task)(numbered(6), [""] * 6, asked(person(BODY)[None], [0] * 6))
    assert rounded.tolist() == [torch.tensor(value).half().item() for value in found.tolist()]


def test_a_part_that_only_one_picture_shows() -> None:
    hand = torch.tensor([(620.0 + i, 520.0 + 2 * i) for i in range(21)])
    with_hand, without = [BODY.float(), hand, None], [BODY.float(), None, None]
    assert similarity_of_parts(with_hand[1:2], without[1:2]).item() == pytest.approx(-0.9969218, abs=1e-6)
    assert similarity_of_parts(with_hand, without).item() == pytest.approx(0.0015391, abs=1e-6)
    assert similarity_of_parts(with_hand, without, half=True).item() == pytest.approx(0.001465, abs=1e-6)


def test_hands_and_faces_of_whole_bodies() -> None:
    """The same through the reward of a task that finds 133 keypoints; of 17, or without hands, the body alone."""
    without = torch.zeros(1, 1, 133, 3)
    without[0, :, :17] = person(BODY)
    with_hand = without.clone()
    with_hand[0, 0, 91:112] = torch.tensor([[620.0 + i, 520.0 + 2 * i, 1] for i in range(21)])
    for maps, wanted, expected in ((with_hand, without, 0.0015391), (with_hand, with_hand, 1), (without, without, 1)):
        found = KeypointCosine(task=Shown(maps))(numbered(1), [""], asked(wanted, [0]))
        assert found.item() == pytest.approx(expected, abs=1e-6)
    found = KeypointCosine(task=Shown(without))(numbered(1), [""], asked(person(BODY)[None], [0]))
    assert found.item() == pytest.approx(1)
    assert Oks(task=Shown(with_hand))(numbered(1), [""], asked(person(BODY)[None], [0])).item() == 1


def test_two_people_or_none_have_no_cosine() -> None:
    """One person each, or 0; coordinates of a picture of 512 px are those of 1024, cut to whole pixels."""
    one, two, nobody = person(BODY), torch.cat([person(BODY), person(BODY)]), torch.zeros(1, 17, 3)
    maps = torch.stack(
        [torch.nn.functional.pad(people, (0, 0, 0, 0, 0, 2 - len(people))) for people in (one, two, nobody)]
    )
    task = Shown(maps)
    score = KeypointCosine(task=task)
    assert score(numbered(3), [""] * 3, asked(maps, [0, 0, 0])).tolist() == pytest.approx([1, 0, 0])
    assert score(numbered(3), [""] * 3, asked(maps, [1, 1, 2])).tolist() == [0, 0, 0]
    halved = torch.cat([one[..., :2] / 2 + 0.2, one[..., 2:]], 2)  # 0.4 of a pixel in the frame: cut off
    assert torch.equal(body(halved[0], 2.0), body(one[0], 1.0)) and torch.equal(body(one[0], 1.0), BODY.float())


def test_skeletons_by_the_mean_token_of_dino(tmp_path: Path) -> None:
    """Drawn, read by transformers alone from Pillow pictures; nobody is -1; each condition is looked at once."""
    folder = toy_rewards.dino(tmp_path / "dino")
    maps = torch.stack([person(body) for body, _, _ in MOVED.values()] + [torch.zeros(1, 17, 3)])
    task = Shown(maps)
    condition = Asked(maps[:2], task.render(maps[:2]), torch.tensor([0, 1, 0, 1, 0, 0]))
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)

    def features(drawing: Tensor) -> Tensor:
        file = Image.fromarray((drawing * 255).round().byte().permute(1, 2, 0).numpy())
        with torch.no_grad():
            return model(**processor(images=file, return_tensors="pt")).last_hidden_state[0].mean(0)

    raw = SkeletonDino(str(folder), scaled=False, batch=4, task=task)
    looked, features_of = [], raw.features
    raw.features = lambda drawings: looked.append(len(drawings)) or features_of(drawings)
    found = raw(numbered(6), [""] * 6, condition)
    drawn = [features(drawing) for drawing in task.render(maps)]
    cosines = [torch.cosine_similarity(drawn[i], drawn[int(condition.row[i])], 0).item() for i in range(5)]
    assert found.tolist() == pytest.approx([*cosines, -1], abs=1e-4) and min(cosines) < 0.999
    assert looked == [2, 4, 2], "two conditions, then the pictures"
    scaled = SkeletonDino(str(folder), task=task)(numbered(6), [""] * 6, condition)
    assert scaled.tolist() == pytest.approx([*((cosine - 0.9) / 0.1 for cosine in cosines), -1], abs=1e-3)
    with pytest.raises(UserError, match="weights=/no/dino: no such folder"):
        SkeletonDino("/no/dino", task=task)


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
    with pytest.raises(UserError, match=r"rewards=\{\}: a blend needs one at least; add \+reward@reward"):
        Blend({}, {})
    broken = Blend({"dark": lambda images, prompts, condition: images[:, 0, 0]}, {})
    with pytest.raises(UserError, match="returned shape"):
        parts(broken, people, [""] * 3)
