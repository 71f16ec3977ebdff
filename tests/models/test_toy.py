"""The embedded data: deterministic scenes, true ground truths, splits that share no content."""

from __future__ import annotations

import hashlib

import pytest
import torch
import torch.nn.functional as F

from lpo_platform.config.errors import UserError
from lpo_platform.data.toy import Toy
from lpo_platform.models.tiny.scenes import (
    BACKGROUNDS,
    CLASSES,
    COLOUR_NAMES,
    COLOURS,
    RELATIONS,
    VERSION,
    Person,
    Scene,
    ShapePair,
    all_contents,
    held_out,
    parse,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    toy = Toy(100, 100)
    return [split.scene(i) for split in (toy.train, toy.test) for i in range(100)]


def test_every_caption_of_the_grammar_is_parsed_back() -> None:
    contents = all_contents()
    assert len({content.caption() for content in contents}) == len(contents) == 3024
    assert all(parse(content.caption()) == content for content in contents)


@pytest.mark.parametrize("caption", ["", "a cat", "a red circle left of a blue square", "a pink circle above"])
def test_other_text_is_refused_with_an_example(caption: str) -> None:
    with pytest.raises(ValueError, match="expected a sentence like 'a red circle left of"):
        parse(caption)


def test_a_paraphrase_lies_in_the_same_split() -> None:
    for content in all_contents():
        if isinstance(content, ShapePair):
            opposite = dict(zip(RELATIONS, ("right of", "left of", "below", "above"), strict=True))
            relation = opposite[content.relation]
            turned = ShapePair(content.second, relation, content.first, content.background)
            assert held_out(turned) == held_out(content)
    share = sum(map(held_out, all_contents())) / len(all_contents())
    assert 0.07 < share < 0.13


def test_splits_share_no_content_and_follow_the_seed() -> None:
    toy, again, other = Toy(50, 50), Toy(50, 50), Toy(50, 50, seed=1)
    assert not any(held_out(toy.train.scene(i).content) for i in range(50))
    assert all(held_out(toy.test.scene(i).content) for i in range(50))
    assert torch.equal(toy.train[7].image, again.train[7].image)
    assert not torch.equal(toy.train[7].image, other.train[7].image)
    assert toy.train.fingerprint == again.train.fingerprint
    assert len({source.fingerprint for t in (toy, other) for source in (t.train, t.test)}) == 4


def test_a_larger_split_starts_with_the_smaller_one() -> None:
    assert torch.equal(Toy(10).train[9].image, Toy(1000).train[9].image)


def test_pixels_are_pinned_to_the_version() -> None:
    drawn = b"".join(Toy(8).train.scene(i).image.numpy().tobytes() for i in range(8))
    assert (VERSION, hashlib.sha256(drawn).hexdigest()[:16]) == (1, "52e0e4e6db66c31f")


def test_sample_is_a_picture_in_range(scenes: list[Scene]) -> None:
    sample = Toy(3).train[0]
    assert sample.image.shape == (3, 64, 64) and sample.image.dtype == torch.float32
    assert sample.image.min() >= 0 and sample.image.max() <= 1
    assert sample.id == "toy-train-0-000000" and parse(sample.caption)
    assert {type(scene.content) for scene in scenes} == {ShapePair, Person}


def test_masks_agree_with_the_picture(scenes: list[Scene]) -> None:
    palette = torch.tensor([*(COLOURS | BACKGROUNDS).values(), (0, 0, 0)])
    right = []
    for scene in scenes:
        parts = scene.parts[None].float()
        inside = F.max_pool2d(parts, 3, 1, 1) == -F.max_pool2d(-parts, 3, 1, 1)
        inside &= scene.colours != COLOUR_NAMES.index("other")
        error = (scene.image.permute(1, 2, 0).int() - palette[scene.colours]).abs().amax(2)
        right.append(error[inside[0]] <= 9)  # colours vary by 8 from scene to scene
    # a sliver narrower than a pixel, between the legs for instance, may lie inside a mask
    assert torch.cat(right).float().mean() > 0.998


def test_relations_hold_between_centroids(scenes: list[Scene]) -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for scene in scenes:
        if isinstance(scene.content, ShapePair):
            shapes = (scene.content.first[1], scene.content.second[1])
            masks = [scene.classes == CLASSES.index(shape) for shape in shapes]
            (x1, y1), (x2, y2) = ((columns[m].mean(), rows[m].mean()) for m in masks)
            dx, dy = RELATIONS[scene.content.relation]
            along, across = (x1 - x2, y1 - y2) if dx else (y1 - y2, x1 - x2)
            assert along * (dx + dy) > across.abs(), scene.caption


def test_keypoints_lie_on_the_person(scenes: list[Scene]) -> None:
    for scene in scenes:
        x, y, visible = scene.keypoints.T
        if isinstance(scene.content, Person):
            assert (visible == 2).all() and (scene.classes[y.long(), x.long()] == 4).all()
            left, right = scene.keypoints[5, 0], scene.keypoints[6, 0]
            assert left > right  # the person's left is the viewer's right
            wrist_is_up = (y[9:11] < y[5:7]).sum().item()
            assert wrist_is_up == {"waving": 1, "cheering": 2}.get(scene.content.pose, wrist_is_up)
        else:
            assert not scene.keypoints.any()


def test_depth_puts_things_before_the_background(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.depth.min() >= 0 and scene.depth.max() <= 1
        assert scene.depth[scene.parts > 0].min() > scene.depth[scene.parts == 0].max()


def test_any_resolution_that_can_be_drawn() -> None:
    assert Toy(1, resolution=128).train[0].image.shape == (3, 128, 128)
    with pytest.raises(UserError, match=r"not 20: choose a model .*model=tiny"):
        Toy(1, resolution=20)
    with pytest.raises(IndexError, match="has 5 scenes, index 5"):
        Toy(5).train.scene(5)
