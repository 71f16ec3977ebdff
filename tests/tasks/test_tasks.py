"""The contract that every task keeps, scores computed by hand, and the real detector classes."""

from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.data.toy import Toy
from lpo_platform.evaluation.evaluator import Evaluation, compare_evaluations
from lpo_platform.evaluation.statistics import compare_pooled
from lpo_platform.models.tiny.scenes import PARTS, ToySplit
from lpo_platform.tasks import depth, pose, skeleton
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.depth import Depth, rmse
from lpo_platform.tasks.hed import Hed, HedNetwork
from lpo_platform.tasks.lineart import Lineart, LineNetwork, wrapped
from lpo_platform.tasks.ms_ssim import ms_ssim, weights_for
from lpo_platform.tasks.oks import SIGMAS, oks, reported_ap, reported_oks
from lpo_platform.tasks.palette import colours, paint, published, read_labels
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.seg_ade20k import SegAde20k
from lpo_platform.tasks.seg_coco import SegCoco
from lpo_platform.tasks.task import Task
from lpo_platform.tasks.toy_detector import edges_of, lines_of, toy_detector

TOY = {
    "canny": Canny,
    "canny_magnitude": lambda: Canny(form="magnitude"),
    "hed": lambda: Hed(toy=True),
    "hed_uint8_floor": lambda: Hed(toy=True, uint8_floor=True),
    "lineart": lambda: Lineart(toy=True),
    "depth": lambda: Depth(toy=True),
    "seg_ade20k": lambda: SegAde20k(toy=True),
    "seg_coco": lambda: SegCoco(toy=True),
    "pose": lambda: Pose(toy=True, resolution=64),
}
GRADIENT = {"canny_magnitude", "hed", "lineart", "depth"}
RANDOM = {
    "hed": lambda: Hed("published", pretrained=False),
    "lineart": lambda: Lineart("published", pretrained=False),
    "depth": lambda: Depth("published", pretrained=False),
    "seg_ade20k": lambda: SegAde20k("published", pretrained=False),
    "seg_coco": lambda: SegCoco("published", pretrained=False),
    "pose": lambda: Pose("published", pretrained=False, resolution=64),
}


@pytest.fixture(scope="module")
def scenes() -> list:
    """Six toy scenes, three of each kind."""
    split = ToySplit("test", 40, 5, resolution=64)
    drawn = [split.scene(i) for i in range(40)]
    people = [scene for scene in drawn if scene.keypoints.any()]
    return people[:3] + [scene for scene in drawn if not scene.keypoints.any()][:3]


@pytest.fixture(scope="module")
def images(scenes: list) -> Tensor:
    return torch.stack([scene.image for scene in scenes]).float() / 255


def separate_people(batch: int) -> Tensor:
    """(B, 1, 17, 3): people whose joints are pixel middles and whose discs and limbs stay apart at 64 px."""
    x = torch.tensor([32, 36, 28, 42, 22, 44, 20, 52, 12, 58, 6, 38, 26, 40, 24, 42, 22])
    y = torch.tensor([14, 8, 8, 10, 10, 22, 22, 30, 30, 38, 38, 40, 40, 50, 50, 60, 60])
    person = torch.stack([x + 0.5, y + 0.5, torch.ones(17)], 1)
    return torch.stack([person + torch.tensor([0, shift, 0]) for shift in range(batch)])[:, None]


@pytest.mark.parametrize("name", TOY)
def test_contract(name: str, images: Tensor) -> None:
    task: Task = TOY[name]()
    maps = task.detect(images)
    control = task.render(maps)
    assert len(maps) == len(images) and maps.dtype == torch.float32
    assert control.shape == images.shape and control.min() >= 0 and control.max() <= 1
    if name == "canny_magnitude":  # may exceed what a picture holds
        maps = maps.clamp(0, 1)
    if name == "pose":
        torch.testing.assert_close(task.parse(task.render(separate_people(2))), separate_people(2), rtol=0, atol=0)
    else:
        assert maps.shape == (len(images), 1, 64, 64)
        assert torch.equal(task.parse(task.render(maps)), maps)
    assert not task.gray or torch.equal(control[:, :1].expand(-1, 3, -1, -1), control)
    assert torch.equal(task.distance(maps, maps), torch.zeros(len(images)))
    assert (task.distance(maps, maps.flip(0)) > 0).any()


@pytest.mark.parametrize("name", TOY)
def test_identical_maps_score_perfectly_and_others_do_not(name: str, images: Tensor) -> None:
    task: Task = TOY[name]()
    maps = task.detect(images)
    perfect, other = task.score(maps, maps), task.score(maps.flip(0), maps)
    assert set(perfect) == set(task.scores)
    for key, higher_is_better in task.scores.items():
        if key == "canny/f1_above_chance":
            continue
        known = ~perfect[key].isnan()
        assert known.sum() == (3 if name == "pose" else 6)
        best = torch.full_like(perfect[key], 1.0 if higher_is_better else 0.0)
        torch.testing.assert_close(perfect[key][known], best[known], rtol=0, atol=1e-6)
        worse = (best - other[key])[known].abs()
        assert (worse > 0.01).any()
    counts = task.counts(maps, maps)
    assert (counts is None) == (not task.pooled)
    if counts is not None:
        assert {key: value.item() for key, value in task.pool(counts.sum(0)).items()} == dict.fromkeys(task.pooled, 1.0)


@pytest.mark.parametrize("name", TOY)
def test_gradient_where_promised_and_none_where_not(name: str, images: Tensor) -> None:
    task: Task = TOY[name]()
    maps = task.detect(images.flip(0))
    pictures = images.clone().requires_grad_()
    distance = task.distance(task.detect(pictures), maps)
    assert distance.requires_grad == (name in GRADIENT)
    assert task.differentiable == (name in GRADIENT or name.startswith("seg_") or name == "canny")
    loss = task.loss(pictures, task.target(images.flip(0), maps))
    assert loss.shape == (len(images),) and loss.requires_grad == task.differentiable
    if task.differentiable:
        (gradient,) = torch.autograd.grad(loss.sum(), pictures)
        assert gradient.isfinite().all() and (gradient.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize("name", RANDOM)
def test_the_published_classes_at_random(name: str, images: Tensor) -> None:
    """Shapes and ranges of the real classes; the same random weights whenever they are built."""
    task, again = RANDOM[name](), RANDOM[name]()
    before = torch.random.get_rng_state()
    maps = task.detect(images[:2])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(again.detect(images[:2]), maps) and again.fingerprint == task.fingerprint
    assert maps.isfinite().all() and maps.dtype == torch.float32
    if name == "pose":
        assert maps.shape == (2, 1, 17, 3) and set(maps[..., 2].unique().tolist()) <= {0.0, 1.0}
    else:
        assert maps.shape == (2, 1, 64, 64) and maps.min() >= 0
        assert maps.max() <= (1 if task.gray else task.classes)
    assert task.render(maps).shape == (2, 3, 64, 64)
    assert task.fingerprint != TOY[name]().fingerprint
    if task.differentiable:
        pictures = images[:2].clone().requires_grad_()
        task.loss(pictures, maps.flip(0)).sum().backward()
        assert pictures.grad.abs().sum() > 0


def test_auto_takes_the_embedded_detector_where_the_pictures_are_toy_scenes() -> None:
    assert Hed("auto", toy=True).toy and Hed("toy", toy=False).toy
    assert not Hed("auto", pretrained=False, toy=False).toy
    assert not Hed("published", pretrained=False, toy=True).toy


@pytest.mark.parametrize("name", ["canny", "canny_magnitude", "hed"])
def test_a_computation_in_half_precision_leaves_the_maps_as_they_are(name: str, images: Tensor) -> None:
    task: Task = TOY[name]()
    with torch.autocast("cpu", torch.bfloat16):
        halved = task.detect(images)
    assert torch.equal(halved, task.detect(images))


# --- the embedded detector ------------------------------------------------------------------------------------------


def test_the_embedded_detector_finds_what_was_drawn() -> None:
    """On 100 held-out scenes; the thresholds leave room for another machine's rounding."""
    split = ToySplit("test", 100, 77, resolution=64)
    scenes = [split.scene(i) for i in range(100)]
    images = torch.stack([scene.image for scene in scenes]).float() / 255
    labels = SegCoco(toy=True).detect(images)
    parts = torch.stack([scene.parts for scene in scenes])[:, None]
    assert (labels == 2 + 3 * parts).float().mean() > 0.985
    found = toy_detector()(images)
    assert (found.depth[:, 0] - torch.stack([scene.depth for scene in scenes])).abs().mean() < 0.03
    assert (found.edges[:, 0] - edges_of(parts[:, 0])).abs().mean() < 0.03
    assert (found.lines[:, 0] - lines_of(parts[:, 0]).float()).abs().mean() < 0.03
    keypoints = torch.stack([scene.keypoints for scene in scenes])[:, None]
    task = Pose(toy=True, resolution=64)
    assert task.score(task.detect(images), keypoints)["pose/oks"].nanmean() > 0.95
    nobody = ~keypoints.flatten(1).any(1)
    assert (task.detect(images)[nobody][..., 2].sum() == 0) and nobody.sum() > 30


def test_toy_pictures_of_another_size_are_read(images: Tensor) -> None:
    large = F.interpolate(images, (128, 128), mode="bilinear")
    small, found = SegCoco(toy=True).detect(images), SegCoco(toy=True).detect(large)
    assert found.shape == (6, 1, 128, 128)
    assert (found[..., ::2, ::2] == small).float().mean() > 0.95
    person = Pose(toy=True, resolution=64)
    torch.testing.assert_close(person.detect(large)[:3], person.detect(images)[:3], rtol=0, atol=1.0)


def test_toy_data_may_hold_people_only() -> None:
    """What task=pose scores; the usual share leaves the data as they were."""
    only, usual = Toy(8, 8, people=1), Toy(8, 8)
    assert all(split.scene(i).keypoints.any() for split in (only.train, only.test) for i in range(8))
    assert usual.train.fingerprint == Toy(8, 8, people=0.4).train.fingerprint != only.train.fingerprint
    assert Toy(8, 8, task=Pose(toy=True, resolution=64)).test.fingerprint == only.test.fingerprint
    assert Toy(8, 8, task=Canny()).test.fingerprint == usual.test.fingerprint


# --- HED and lineart ------------------------------------------------------------------------------------------------


def test_networks() -> None:
    with torch.device("meta"):
        sizes = {net: sum(p.numel() for p in net().parameters()) for net in (HedNetwork, LineNetwork)}
    assert sizes == {HedNetwork: 14_716_168, LineNetwork: 4_290_945}


def test_floored_edges_are_levels_of_256_without_a_gradient(images: Tensor) -> None:
    task = Hed(toy=True, uint8_floor=True)
    edges = task.detect(images.clone().requires_grad_())
    soft = Hed(toy=True).detect(images)
    assert not edges.requires_grad
    torch.testing.assert_close(edges * 255, (soft * 255).floor(), rtol=0, atol=1e-4)


def test_hed_is_its_definition() -> None:
    """One stage less averaged changes the map; a constant logit in every stage gives its sigmoid."""
    network = HedNetwork()
    for number in range(1, 6):
        projection = getattr(network, f"block{number}").projection
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.constant_(projection.bias, float(number))
    found = network(torch.rand(1, 3, 48, 32))
    torch.testing.assert_close(found, torch.full((1, 1, 48, 32), 3.0).sigmoid())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_of_a_file(tmp_path: Path, suffix: str, images: Tensor) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    network, path = LineNetwork(), tmp_path / f"model{suffix}"
    (torch.save if suffix == ".pth" else save_file)(network.state_dict(), path)
    task = Lineart("published", str(path))
    torch.testing.assert_close(task.detect(images[:1]), 1 - network(images[:1]))
    assert Lineart("published", f"{tmp_path}::{path.name}").fingerprint == task.fingerprint
    with pytest.raises(UserError, match=r"^task.weights=.*: not the weights of a HedNetwork. Reason: .*norm"):
        Hed("published", str(path))


def test_weights_that_are_nowhere() -> None:
    for place in ("/no/such/file.pth", "nowhere/at-all::file.pth", "spaces/nowhere/at-all::file.pth"):
        with pytest.raises(UserError) as caught:
            Hed("published", place)
        assert str(caught.value).startswith(f"task.weights={place}: no ") and "\n" not in str(caught.value)


def checkerboard() -> Tensor:
    y, x = torch.meshgrid(torch.arange(512), torch.arange(512), indexing="ij")
    return torch.where((x // 64 + y // 64) % 2 == 0, 20, 220).to(torch.uint8)


def test_wrapped_inverse() -> None:
    levels = torch.tensor([0, 1, 2, 3, 128, 254, 255], dtype=torch.uint8)
    assert wrapped(levels).tolist() == [1, 0, 255, 254, 129, 3, 2]


@pytest.mark.parametrize(("black", "wrap", "true"), [((0, 0), 0.999881, 0.999862), ((100, 110), 0.969553, 0.965875)])
def test_ms_ssim_of_the_wrapped_and_the_true_inverse(black: tuple[int, int], wrap: float, true: float) -> None:
    target = checkerboard()
    raw = 255 - target
    raw[black[0] : black[1]] = 0
    as_maps = lambda levels: levels.float()[None, None] / 255  # noqa: E731
    assert ms_ssim(as_maps(wrapped(raw)), as_maps(target)).item() == pytest.approx(wrap, abs=1e-6)
    assert ms_ssim(as_maps(255 - raw), as_maps(target)).item() == pytest.approx(true, abs=1e-6)


def test_the_compat_switch_wraps_what_is_scored(images: Tensor) -> None:
    fixed, compat = Lineart(toy=True), Lineart(toy=True, uint8_wrap=True)
    maps = (fixed.detect(images).mul(254).floor() + 0.5) / 255  # the middle of a level, clear of rounding
    maps[:, :, :8] = 1  # lines of exactly 0 in the drawing
    found = compat.score(maps, maps)["lineart/ms_ssim"]
    drawing = (255 - maps.double() * 255).floor()
    torch.testing.assert_close(found, ms_ssim((1 - drawing).remainder(256) / 255, maps.double()))
    assert (found < 0.9).all() and (fixed.score(maps, maps)["lineart/ms_ssim"] > 1 - 1e-6).all()


def test_a_shifted_disc() -> None:
    y, x = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
    disc = torch.where((x - 256).square() + (y - 256).square() <= 100**2, 200.0, 30.0)[None, None] / 255
    assert ms_ssim(disc.roll(3, -1), disc).item() == pytest.approx(0.983025, abs=2e-6)


def test_small_pictures_get_the_scales_that_fit() -> None:
    assert len(weights_for(176)) == len(weights_for(512)) == 5
    assert len(weights_for(64)) == 3 and sum(weights_for(64)) == pytest.approx(1)
    assert weights_for(64)[0] / weights_for(64)[1] == pytest.approx(0.0448 / 0.2856)
    with pytest.raises(ValueError, match="too short"):
        weights_for(8)
    batch = torch.rand(5, 1, 64, 64, dtype=torch.float64)
    alone = torch.cat([ms_ssim(one[None], 1 - one[None]) for one in batch])
    torch.testing.assert_close(ms_ssim(batch, 1 - batch), alone)


# --- depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("power", "expected"), [(1, 0.0), (2, 46.467)])
def test_depth_rmse(power: int, expected: float) -> None:
    label = torch.linspace(40, 200, 512, dtype=torch.float64).expand(1, 1, 512, 512)
    prediction = torch.linspace(0, 7, 384, dtype=torch.float64).pow(power).expand(1, 1, 384, 384)
    assert rmse(prediction, label).item() == pytest.approx(expected, abs=5e-4)


def test_depth_conditions_through_a_jpeg_are_clamped_first() -> None:
    """A step enlarged bicubically overshoots; what overshoots must not wrap to the other end."""
    step = torch.zeros(1, 1, 64, 64)
    step[..., 30:] = 1
    over = F.interpolate(step, (88, 88), mode="bicubic")
    assert over.max() > 1 and over.min() < 0
    smooth = depth.smoothed(over, 95)
    assert smooth.shape == over.shape and (smooth - over.clamp(0, 1)).abs().max() < 0.1
    task = Depth(toy=True, jpeg_quality=75)
    control = task.render(step)
    assert torch.equal(control[:, 0], control[:, 2]) and 0 < (control[:, :1] - step).abs().max() < 0.2
    assert task.fingerprint != Depth(toy=True).fingerprint


# --- segmentation ---------------------------------------------------------------------------------------------------


def test_palettes() -> None:
    ade, coco = published("ade20k").long(), published("coco").long()
    assert ade.shape == (151, 3) and ade.sum() == 58427 and ade[0].tolist() == [0, 0, 0]
    assert ade[7].tolist() == ade[49].tolist() == [140, 140, 140]
    assert coco.shape == (133, 3) and coco.sum() == 52021


@pytest.mark.parametrize("gray", [(140, 140, 140), (140, 140, 141), (141, 141, 141), (139, 140, 142), (141, 139, 140)])
def test_a_published_road_is_read_as_road_however_its_grey_was_rounded(gray: tuple[int, ...]) -> None:
    """Beside a colour that is nobody's, as resized pictures have them, even what is painted for a skyscraper."""
    road = torch.tensor(gray).view(1, 3, 1, 1) / 255
    assert read_labels(road, "ade20k").item() == 7
    blended = torch.tensor([7, 99, 201]).view(1, 3, 1, 1) / 255
    both = torch.cat([road, colours("ade20k")[49].view(1, 3, 1, 1) / 255, blended], 3)
    assert read_labels(both, "ade20k")[0, 0, 0, :2].tolist() == [7, 7]


@pytest.mark.parametrize(("name", "classes"), [("ade20k", 150), ("coco", 133)])
def test_every_label_is_read_back_from_its_colour_even_after_eight_bits(name: str, classes: int) -> None:
    labels = torch.arange(classes + 1.0).view(1, 1, 1, -1)
    control = paint(labels, name)
    eight_bit = control.mul(255).round().to(torch.uint8).float() / 255
    assert torch.equal(read_labels(control, name), labels) and torch.equal(read_labels(eight_bit, name), labels)
    table = published(name).long()
    table = table if len(table) == classes + 1 else torch.cat([torch.zeros(1, 3, dtype=torch.long), table])
    moved = (colours(name) != table).any(1).nonzero().flatten().tolist()
    assert moved == ([49] if name == "ade20k" else []) and (colours(name) - table).abs().max() <= 1


def test_foreign_colours_are_read_as_the_nearest_row() -> None:
    control = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    distances = (control[0].mul(255).permute(1, 2, 0)[:, :, None] - colours("coco")).square().sum(3)
    assert torch.equal(read_labels(control, "coco")[0, 0].long(), distances.argmin(2))


def test_pooled_miou_is_that_of_one_confusion_matrix() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    generator = torch.Generator().manual_seed(0)
    maps, target = (torch.randint(0, 12, (4, 1, 32, 32), generator=generator).float() for _ in range(2))
    maps = torch.where(torch.rand(maps.shape, generator=generator) < 0.5, target, maps)
    task = SegCoco(toy=True)
    pooled = task.pool(task.counts(maps, target).sum(0))["seg_coco/miou"]
    index = MulticlassJaccardIndex(12, average="none", ignore_index=0)
    expected = index(maps.long(), target.long())[1:].mean()  # labels 1 to 11 all occur
    assert pooled.item() == pytest.approx(expected.item(), abs=1e-6)
    alone = task.score(maps, target)["seg_coco/image_miou"]
    for item in range(4):
        pair = (maps[item : item + 1].long(), target[item : item + 1].long())
        assert alone[item].item() == pytest.approx(index(*pair)[1:].mean().item(), abs=1e-6)
    blank = torch.zeros(1, 1, 4, 4)
    assert task.score(blank + 3, blank)["seg_coco/image_miou"].isnan().all()


def test_the_cross_entropy_ignores_unlabelled_pixels(images: Tensor) -> None:
    task = SegCoco(toy=True)
    target = task.detect(images)
    blind = target.clone()
    blind[..., :32] = 0
    losses = F.cross_entropy(task.logits(images), (target[:, 0].long() - 2) // 3, reduction="none")
    torch.testing.assert_close(task.loss(images, target), losses.mean((1, 2)))
    torch.testing.assert_close(task.loss(images, blind), losses[..., 32:].mean((1, 2)))


def test_toy_labels_have_colours_far_apart() -> None:
    for task in (SegAde20k(toy=True), SegCoco(toy=True)):
        assert len(task.labels) == len(PARTS) and task.labels.max() <= task.classes
        rows = colours(task.palette)[task.labels].float()
        assert torch.cdist(rows, rows).add(torch.eye(len(PARTS)) * 1e3).min() > 100


def test_universal_segmenters_sum_their_masks_by_class(tmp_path: Path, images: Tensor) -> None:
    """Mask2Former and MaskFormer of a folder, against the post-processing of transformers."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=32,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=8, num_labels=133,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.save_pretrained(tmp_path)
    Mask2FormerImageProcessor().save_pretrained(tmp_path)
    task = SegCoco("published", str(tmp_path))
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        outputs = model(pixel_values=(images - mean) / std)
        classes, masks = outputs.class_queries_logits.softmax(-1)[..., :-1], outputs.masks_queries_logits.sigmoid()
        scores = sum(classes[:, q, :, None, None] * masks[:, q, None] for q in range(8))
        expected = F.interpolate(scores, (64, 64), mode="bilinear").argmax(1)
    assert torch.equal(task.detect(images)[:, 0].long(), expected + 1)
    with pytest.raises(UserError, match="names 133 classes, but this task has 150"):
        SegAde20k("published", str(tmp_path))


def test_the_pooled_metric_has_an_interval_of_paired_items() -> None:
    generator = torch.Generator().manual_seed(0)
    task = SegCoco(toy=True)
    target = torch.randint(1, 5, (40, 1, 16, 16), generator=generator).float()

    def noisy(share: float) -> Tensor:
        wrong = torch.randint(1, 5, target.shape, generator=generator).float()
        return torch.where(torch.rand(target.shape, generator=generator) < share, wrong, target)

    sides = [
        Evaluation(task.score(maps, target), counts=task.counts(maps, target)) for maps in (noisy(0.4), noisy(0.3))
    ]
    metrics = compare_evaluations(*sides, task)
    assert list(metrics) == ["seg_coco/miou", "seg_coco/image_miou"]
    whole = metrics["seg_coco/miou"]
    assert whole["before"] == pytest.approx(task.pool(sides[0].counts.sum(0))["seg_coco/miou"].item())
    low, high = whole["ci95"]
    assert 0 < low < whole["difference"] < high and high - low < 0.05


def test_the_interval_of_sums_is_the_bootstrap_of_a_mean() -> None:
    """With a pooled ratio of the sum to the count, the metric is a mean, whose standard error is known."""
    generator = torch.Generator().manual_seed(1)
    before, gain = torch.randn(2, 200, generator=generator, dtype=torch.float64)
    counts = [torch.stack([values, torch.ones(200)], 1).numpy() for values in (before, before + 0.5 + gain)]
    found = compare_pooled(*counts, lambda sums: sums[:, 0] / sums[:, 1], higher_is_better=True, resamples=4000)
    middle, error = (0.5 + gain).mean().item(), gain.std().item() / 200**0.5
    assert found["difference"] == pytest.approx(middle)
    assert found["ci95"] == pytest.approx([middle - 1.96 * error, middle + 1.96 * error], abs=0.1 * error)


# --- pose -----------------------------------------------------------------------------------------------------------


def joints(shift: float = 0, hidden: tuple[int, ...] = ()) -> Tensor:
    """A person whose joints lie on a line, (1, 17, 3)."""
    k = torch.arange(17, dtype=torch.float64)
    visible = torch.ones(17, dtype=torch.float64)
    visible[list(hidden)] = 0
    return torch.stack([100 + 10 * k + shift, 200 + 5 * k, visible], 1)[None]


@pytest.mark.parametrize(
    ("shift", "similarity", "ap"), [(0, 1, 1), (5, 0.895915, 0.8), (10, 0.696286, 0.4), (20, 0.391839, 0)]
)
def test_reported_metric(shift: float, similarity: float, ap: float) -> None:
    assert reported_oks(joints(shift), joints()).item() == pytest.approx(similarity, abs=1e-6)
    assert reported_ap(joints(shift), joints()).item() == pytest.approx(ap)
    assert oks(joints(shift), joints()).item() == pytest.approx(similarity, abs=1e-6)


def test_invisible_joints_several_people_and_flags_of_two() -> None:
    target = joints(hidden=(0,))
    assert reported_oks(joints(10), target).item() == pytest.approx(0.933354, abs=1e-6)
    assert reported_oks(joints(10, hidden=(0,)), target).item() == pytest.approx(0.937275, abs=1e-6)
    assert reported_ap(joints(), torch.cat([joints(), joints()])) == 1
    two = joints()
    two[..., 2] = 2
    assert reported_oks(joints(), two) == 0
    assert reported_ap(joints()[:0], joints()) == 0


def test_oks_by_its_definition() -> None:
    """A joint that the prediction lacks counts 0; the area is that of the visible joints."""
    target, found = joints(hidden=(0,)), joints(10, hidden=(0, 3))
    area, total = 150.0 * 75.0, 0.0
    for k in range(1, 17):
        total += 0 if k == 3 else torch.exp(torch.tensor(-100 / (2 * area * (2 * SIGMAS[k]) ** 2))).item()
    assert oks(found, target).item() == pytest.approx(total / 16, abs=1e-6)


def test_pose_scores_and_distance_by_the_people_in_a_picture() -> None:
    task = Pose(toy=True, resolution=64)
    nobody, person = torch.zeros(1, 1, 17, 3), joints()[None].float()
    assert task.score(person, nobody)["pose/oks"].isnan().all()
    assert task.score(nobody, person)["pose/ap"] == 0
    many = torch.cat([torch.zeros(1, 2, 17, 3), person], 1)
    assert task.score(many, person)["pose/oks"] == 1
    cases = [(nobody, nobody, 0), (person, nobody, 1), (nobody, person, 1), (many, person, 0)]
    assert [task.distance(a, b).item() for a, b, _ in cases] == [expected for _, _, expected in cases]


def test_the_drawing() -> None:
    """Disc colours bare and under their own limb, by the original's mixture of layers."""
    person = torch.zeros(1, 17, 3)
    person[0, 6] = torch.tensor([100.5, 100.5, 1])  # right shoulder: joint 2
    person[0, 8] = torch.tensor([200.5, 100.5, 1])  # right elbow: joint 3, limb number 2 between them
    drawn = skeleton.draw(person, 512).mul(255).round()
    assert drawn[:, 100, 97].tolist() == list(skeleton.COLOURS[2])
    assert drawn[:, 100, 150].tolist() == [round(0.6 * level) for level in skeleton.COLOURS[2]]
    mixed = [round(0.4 * a + 0.6 * b) for a, b in zip(skeleton.COLOURS[2], skeleton.COLOURS[2], strict=True)]
    assert drawn[:, 100, 103].tolist() == mixed
    assert drawn[:, 104, 150].any() and not drawn[:, 105, 150].any() and not drawn[:, 300].any()
    assert drawn[:, 96, 100].tolist() == list(skeleton.COLOURS[2]) and not drawn[:, 95, 100].any()
    assert not skeleton.draw(torch.zeros(3, 17, 3), 64).any()


def test_what_a_drawing_cannot_say_is_an_error() -> None:
    task = Pose(toy=True, resolution=64)
    two = torch.cat([separate_people(1), separate_people(1) * torch.tensor([0.5, 0.5, 1])], 1)
    with pytest.raises(ValueError, match="several people"):
        task.parse(task.render(two))


def test_peaks_of_gaussians_are_exact() -> None:
    x, y = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="xy")
    places = [(4.3, 7.8), (11.0, 20.0), (17.49, 3.51)]
    heat = torch.stack([torch.exp(-((x - a).square() + (y - b).square()) / 8) for a, b in places])[None]
    found = pose.peaks(heat.double())[0]
    torch.testing.assert_close(found[:, :2], torch.tensor(places, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_crop_of_a_person_is_that_of_the_published_processor() -> None:
    from transformers import VitPoseImageProcessor

    picture = torch.rand(1, 3, 120, 90, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    box = torch.tensor([[20.0, 30.0, 40.0, 50.0]])
    processor = VitPoseImageProcessor(do_normalize=False)
    expected = processor(picture[0].mul(255).byte(), boxes=[box.tolist()], return_tensors="pt").pixel_values
    places = pose.padded(box, (256, 192))
    found = pose.crops(picture, places, (256, 192))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=0.01)
    corners = torch.tensor([[[0.0, 0.0, 1.0], [47.0, 63.0, 1.0]]])
    ends = pose.placed(corners, places, (64, 48))[0, :, :2] - 0.5
    torch.testing.assert_close(ends, torch.stack([places[0, :2], places[0, :2] + places[0, 2:]]))


def test_people_are_looked_at_in_their_boxes(tmp_path: Path, images: Tensor) -> None:
    """RT-DETR and ViTPose of a folder at random: as many people as boxes, empty rows for the rest."""
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    config = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[8, 16, 16], encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=6, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, id2label={0: "person", 1: "bicycle"}, num_denoising=0,
    )  # fmt: skip
    RTDetrForObjectDetection(config).save_pretrained(tmp_path / "people")
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "people")
    VitPoseForPoseEstimation(pose.small()).save_pretrained(tmp_path / "pose")
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(tmp_path / "pose")
    places = str(tmp_path / "pose"), str(tmp_path / "people")
    everybody = Pose("published", *places, person_threshold=0.0, joint_threshold=-1.0, resolution=64).detect(images)
    assert everybody.shape == (6, 6, 17, 3) and everybody.isfinite().all()
    nobody = Pose("published", *places, person_threshold=1.0, resolution=64).detect(images)
    assert nobody.shape == (6, 1, 17, 3) and not nobody.any()
    with pytest.raises(UserError, match=r"^task.people=/no/such: no such folder"):
        Pose("published", places[0], "/no/such")


# --- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hed", "lineart", "depth", "seg_ade20k", "seg_coco", "pose"])
def test_every_option_composes_and_its_live_arguments_cannot_be_set(name: str) -> None:
    command = ["method=control", f"task={name}", "control.weights=unet"]
    assert diagnose("train", command) == []
    (line,) = diagnose("train", [*command, "task.detector=tooy"])
    assert line.partition(" or 'blazepose'")[0] == "task.detector=tooy: must be 'auto' or 'toy' or 'published'"
    (line,) = diagnose("train", [*command, "+task.toy=true"])
    assert line.startswith("task.toy: ") and line.endswith("gets it from the platform; remove it")


@pytest.mark.parametrize(("model", "data"), product(["tiny", "sd15"], ["toy", "folder"]))
def test_the_rule_for_detector_auto(model: str, data: str, tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    from lpo_platform.commands import build
    from lpo_platform.config.schema import CONF

    overrides = [f"model={model}", f"data={data}", "task=depth", "task.pretrained=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides + ([f"data.path={tmp_path}"] if data == "folder" else []))
    assert build.task_of(cfg).toy == (model == "tiny" or data == "toy")


def test_a_fingerprint_changes_with_the_weights(tmp_path: Path) -> None:
    fingerprints = set()
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(LineNetwork().state_dict(), tmp_path / f"{seed}.pth")
        fingerprints.add(Lineart("published", str(tmp_path / f"{seed}.pth")).fingerprint)
    assert len(fingerprints) == 2


def test_a_second_detector_judges_poses_in_its_own_words() -> None:
    """Of toy pictures, by a network of another size; published detectors have a second one where it is named."""
    task, split = Pose(toy=True, resolution=64), Toy(0, 12, people=1.0).test
    scenes = [split.scene(i) for i in range(len(split))]
    images, truth = (torch.stack([s.image for s in scenes]).float() / 255, torch.stack([s.keypoints for s in scenes]))
    judged = task.second_scores(images, truth[:, None])["pose/oks_judge"]
    assert judged.min() > 0.9 and task.second_scores(images.flip(3), truth[:, None])["pose/oks_judge"].mean() < 0.7
    assert not torch.equal(judged, task.score(task.detect(images), truth[:, None])["pose/oks"])
    assert Pose("published", pretrained=False, resolution=64).second_scores(images, truth[:, None]) == {}
