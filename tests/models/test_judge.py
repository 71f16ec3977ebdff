"""The judge reads real scenes nearly without error, also blurred and noisy ones, and does not reward size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpo_platform.data.toy import Toy
from lpo_platform.models.tiny.judge import Judge, train_judge
from lpo_platform.models.tiny.scenes import Person, Scene, ShapePair, draw_scene

NUM = 96


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load()


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [Toy(0, NUM, seed=5).test.scene(i) for i in range(NUM)]


@pytest.fixture(scope="module")
def images(scenes: list[Scene]) -> Tensor:
    return torch.stack([scene.image for scene in scenes]).float() / 255


@pytest.fixture(scope="module")
def captions(scenes: list[Scene]) -> list[str]:
    return [scene.caption for scene in scenes]


def test_held_out_scenes_are_aligned(judge: Judge, images: Tensor, captions: list[str]) -> None:
    scores = judge.alignment(images, captions)
    assert scores.shape == (NUM,) and scores.dtype == torch.float32
    assert scores.mean() > 0.97 and scores.min() > 0.8


def test_every_attribute_of_held_out_scenes_is_found(judge: Judge, images: Tensor, captions: list[str]) -> None:
    found: dict[str, list[float]] = {}
    for attributes in judge.attributes(images, captions):
        for name, score in attributes.items():
            found.setdefault(name, []).append(score)
    pair = {"first", "first_colour", "second", "second_colour", "relation"}
    assert set(found) == pair | {"person", "shirt", "trousers", "pose", "background", "purity"}
    assert {name for name, scores in found.items() if np.mean(scores) < 0.93} == set()


@pytest.mark.slow
def test_blur_and_noise_are_read_through(judge: Judge, images: Tensor, captions: list[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    blurred = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2.0, mode="bilinear")
    noisy = (images + 0.07 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    assert judge.alignment(blurred, captions).mean() > 0.9
    assert judge.alignment(noisy, captions).mean() > 0.9


@pytest.mark.slow
def test_other_captions_and_empty_pictures_score_low(judge: Judge, images: Tensor, captions: list[str]) -> None:
    right = judge.alignment(images, captions).mean()
    assert judge.alignment(images.roll(1, 0), captions).mean() < right - 0.4
    assert judge.alignment(torch.full_like(images, 0.58), captions).mean() < 0.25


@pytest.mark.parametrize(
    ("caption", "attribute"),
    [
        ("a blue circle left of a yellow square on a white background", "first_colour"),
        ("a red circle left of a green square on a white background", "second_colour"),
        ("a red circle right of a yellow square on a white background", "relation"),
        ("a red circle left of a yellow square on a black background", "background"),
        ("a red circle left of a yellow triangle on a white background", "second"),
    ],
)
def test_one_wrong_word_costs_its_own_attribute(judge: Judge, caption: str, attribute: str) -> None:
    true = ShapePair(("red", "circle"), "left of", ("yellow", "square"), "white")
    image = draw_scene(true, np.random.default_rng(3)).image[None].float() / 255
    right, wrong = judge.attributes(image.repeat(2, 1, 1, 1), [true.caption(), caption])
    assert right[attribute] > 0.9 and wrong[attribute] < 0.1
    assert judge.alignment(image, [caption]) < judge.alignment(image, [true.caption()]) - 0.1


@pytest.mark.parametrize("pose", ["standing", "waving", "cheering", "stretching"])
def test_poses_are_told_apart(judge: Judge, pose: str) -> None:
    people = [Person("red", "blue", pose, "gray")] * 12
    images = torch.stack([draw_scene(p, np.random.default_rng(i)).image for i, p in enumerate(people)]).float() / 255
    right = [a["pose"] for a in judge.attributes(images, [p.caption() for p in people])]
    other = "waving" if pose != "waving" else "cheering"
    captions = [Person("red", "blue", other, "gray").caption()] * 12
    wrong = [a["pose"] for a in judge.attributes(images, captions)]
    assert np.mean(right) > 0.9 and np.mean(wrong) < 0.1


def test_large_things_score_no_higher_than_small_ones(judge: Judge, images: Tensor, scenes: list[Scene]) -> None:
    area = torch.tensor([(scene.parts > 0).float().mean() for scene in scenes])
    scores = judge.alignment(images, [scene.caption for scene in scenes])
    small, large = scores[area < area.median()].mean(), scores[area >= area.median()].mean()
    assert abs(large - small) < 0.02


def test_other_resolutions_are_read_too(judge: Judge) -> None:
    toy = Toy(0, 16, resolution=128)
    images = torch.stack([toy.test[i].image for i in range(16)])
    assert toy.alignment(images, [toy.test[i].caption for i in range(16)]).mean() > 0.95


def test_wrong_input_is_refused(judge: Judge, images: Tensor) -> None:
    with pytest.raises(ValueError, match="no toy caption: 'a dog'"):
        judge.alignment(images[:1], ["a dog"])
    with pytest.raises(ValueError):
        judge.alignment(images[:2], ["a red circle above a blue square on a gray background"])


@pytest.mark.slow
def test_training_lowers_the_loss_and_weights_survive_a_round_trip(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    judge = Judge((8, 8, 8))
    losses = train_judge(judge, steps=40, batch=8, num_scenes=32)
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    judge.save(tmp_path)
    again = Judge.load(tmp_path)
    same = [(a == b).float().mean() for a, b in zip(judge.maps(images[:8]), again.maps(images[:8]), strict=True)]
    assert min(same) > 0.98  # half precision may turn a tie
