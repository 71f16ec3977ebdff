"""Folders against folders: keypoints of every kind, OKS by its definition, who stands for whom, what is left out."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import alexnet
from toys import rewards as toy_rewards
from toys.instances import first
from transformers import CLIPModel, CLIPProcessor

from lpo_platform.commands import main
from lpo_platform.config.errors import UserError
from lpo_platform.data.picture_files import UNREADABLE
from lpo_platform.evaluation.keypoints import area_of, coco_ap, matched, measure
from lpo_platform.evaluation.what import clip_lpips
from lpo_platform.evaluation.what.clip_lpips import ClipScore, Lpips
from lpo_platform.evaluation.what.oks import Oks
from lpo_platform.tasks.keypoint_files import OF_OPENPOSE, People, people, read_file, read_folder, write
from lpo_platform.tasks.oks import SIGMAS

CPU = torch.device("cpu")
GT = np.stack([100 + 10 * np.arange(17), 50 + 20 * np.arange(17), np.full(17, 2)], 1).astype(float)
SHIFTED = GT + np.array([5, 0, 0])


def crowd(*rows: np.ndarray, **more: list) -> People:
    each = [{"keypoints": row} | {name: values[i] for name, values in more.items()} for i, row in enumerate(rows)]
    return people(each, (1024, 768))


def save(folder: Path, **pictures: People) -> str:
    folder.mkdir()
    for name, found in pictures.items():
        write(folder / f"{name}.json", found)
    return str(folder)


@pytest.mark.parametrize(
    ("area", "oks"),
    first([("20000", 0.9303642), ("keypoints", 0.9714091), ("bbox053", 0.9475730), ("bbox", 0.9714091)], keep=1),
)
def test_through_the_command(
    tmp_path: Path, area: str, oks: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every joint lies 5 px too far right; the values are computed by hand from COCO's formula."""
    monkeypatch.chdir(tmp_path)
    row = {"image_id": 1, "keypoints": GT.flatten().tolist(), "bbox": [100, 50, 160, 320]}
    coco = {"images": [{"id": 1, "file_name": "a/x.jpg"}, {"id": 2, "file_name": "y.jpg"}], "annotations": [row]}
    (tmp_path / "original.json").write_text(json.dumps(coco))
    save(tmp_path / "target", x=crowd(SHIFTED), z=crowd(GT))
    words = ["what=oks", "what.original=original.json", "what.target=target", f"what.area={area}", "hydra.run.dir=out"]
    monkeypatch.setattr(sys, "argv", ["lpo-eval", *words])
    with pytest.raises(SystemExit) as end:
        main.evaluate()
    said = capsys.readouterr().err
    assert end.value.code == 0 and "1 missing in target: y" in said and "1 missing in original: z" in said
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["items"][0]["name"] == "x" and found["items"][0]["oks"] == pytest.approx(oks, abs=1e-6)
    assert str(found["settings"]["area"]) in (area, f"{area}.0") and found["metrics"]["oks"]["count"] == 1


def test_a_wrist_elsewhere_costs_what_the_definition_says() -> None:
    moved, hidden = GT.copy(), GT.copy()
    moved[9, :2] += (30, 40)
    hidden[9, 2] = 0
    assert measure(crowd(moved), crowd(GT), 20000)["oks"] == pytest.approx(0.9421863, abs=1e-6)
    assert measure(crowd(moved), crowd(hidden), 20000)["oks"] == pytest.approx(1.0, abs=1e-6)
    lacking = GT.copy()
    lacking[9] = 0
    assert measure(crowd(lacking), crowd(GT), 20000)["oks"] == pytest.approx(16 / 17, abs=1e-9)


def by_hand(found: np.ndarray, wanted: np.ndarray, area: float) -> float:
    """OKS in a loop."""
    terms = [
        math.exp(-((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2) / (2 * area * (2 * s) ** 2)) if a[2] > 0 else 0.0
        for a, b, s in zip(found, wanted, SIGMAS, strict=True)
        if b[2] > 0
    ]
    return sum(terms) / len(terms)


def test_the_matching_is_the_best_of_all_matchings() -> None:
    """Against every assignment, on crowds where taking the closest pair first goes wrong."""
    rng, greedy_fails = np.random.default_rng(0), 0
    for _ in range(60):
        wanted, found = ([GT + np.r_[rng.normal(0, 12, 2), 0] for _ in range(n)] for n in rng.integers(1, 5, 2))
        table = np.array([[by_hand(p, g, 20000) for p in found] for g in wanted])
        small, large = sorted(table.shape)
        wide = table if table.shape[0] <= table.shape[1] else table.T
        best = max(
            sum(wide[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(large), small)
        )
        assert matched(table).sum() == pytest.approx(best)
        result = measure(crowd(*found), crowd(*wanted), 20000)
        assert result["oks"] == pytest.approx(best / len(wanted), abs=1e-6)
        assert result["person_count_error"] == abs(len(found) - len(wanted))
        assert result["detection_rate"] == small / len(wanted) if len(found) < len(wanted) else 1
        left, total = table.copy(), 0.0
        for _ in range(small):
            i, j = np.unravel_index(left.argmax(), left.shape)
            total, left[i], left[:, j] = total + left[i, j], -1, -1
        greedy_fails += total < best - 1e-9
    assert greedy_fails > 0


def test_nobody_found_is_zero_and_nobody_asked_for_is_left_out(tmp_path: Path) -> None:
    nobody = people([], (10, 10))
    assert measure(nobody, crowd(GT), "keypoints") == {
        "oks": 0.0, "detection_rate": 0.0, "person_count_error": 1.0, "cpo_map": 0.0,
    }  # fmt: skip
    assert measure(crowd(GT), nobody, "keypoints") is None
    hidden = crowd(GT * [1, 1, 0])
    original = save(tmp_path / "a", x=crowd(GT), y=nobody, z=hidden)
    target = save(tmp_path / "b", x=crowd(SHIFTED, GT), y=crowd(GT), z=crowd(GT))
    result = Oks(original, target, "image")(tmp_path)
    assert result["left_out"]["nobody in original"] == ["y", "z"] and result["metrics"]["oks"]["mean"] == 1
    assert result["metrics"]["person_count_error"]["mean"] == 1
    with pytest.raises(UserError, match="nothing to measure: 1 missing in target; 1 missing in original"):
        Oks(save(tmp_path / "c", x=crowd(GT)), save(tmp_path / "d", y=crowd(GT)))(tmp_path)


def test_areas_are_those_of_their_names() -> None:
    hidden = GT.copy()
    hidden[0, 2] = 0
    known = crowd(GT, hidden, area=[1234.0, 5.0], bbox=[[0, 0, 10, 20], [1, 1, 2, 3]])
    assert area_of(known, "segment").tolist() == [1234, 5] and area_of(known, "bbox").tolist() == [200, 6]
    assert area_of(known, "bbox053") == pytest.approx([106, 3.18])
    assert area_of(known, "keypoints").tolist() == [160 * 320, 150 * 300]
    assert area_of(known, "image").tolist() == [1024 * 768] * 2 and area_of(known, 7).tolist() == [7, 7]
    for convention in ("segment", "bbox", "bbox053"):
        with pytest.raises(UserError, match=f"what.area={convention}: people whose area is not annotated"):
            area_of(crowd(GT), convention)
    with pytest.raises(UserError, match=r"what\.area=image"):
        area_of(people([{"keypoints": GT}]), "image")


def test_openpose_files_are_read_in_coco_order(tmp_path: Path) -> None:
    joints = [[20 + 7 * j, 30 + 11 * j, 0.5] for j in range(18)]
    hand = [[float(i), 2.0 * i, 0.9] for i in range(21)]
    flat = [value for joint in joints for value in joint]
    person = {"pose_keypoints_2d": flat, "hand_left_keypoints_2d": [v for p in hand for v in p]}
    file = tmp_path / "walk_keypoints.json"
    file.write_text(json.dumps({"version": 1.3, "people": [person]}))
    found = read_file(file)[0]["walk"]
    assert found.keypoints[0, :5, :2].tolist() == [[20, 30], [125, 195], [118, 184], [139, 217], [132, 206]]
    assert found.scores.tolist() == [0.5] and found.parts["hand_left"][0].tolist() == hand
    missing = [*flat[:12], 0, 0, 0, *flat[15:30], -1, -1, 0.5, *flat[33:]]  # right wrist (4) and right ankle (10)
    file.write_text(json.dumps({"people": [{"pose_keypoints_2d": missing}]}))
    assert [i for i in range(17) if read_file(file)[0]["walk"].keypoints[0, i, 2] == 0] == [10, 16]


def test_body_25_agrees_with_body_18_on_the_same_person() -> None:
    """By the published names of both orders."""
    head, legs = "nose neck rsho relb rwri lsho lelb lwri", "rhip rkne rank lhip lkne lank reye leye rear lear"
    names18, names25 = f"{head} {legs}".split(" "), f"{head} mid {legs}".split(" ")
    coco = "nose {eye} {ear} {sho} {elb} {wri} {hip} {kne} {ank}"
    for part in ("eye", "ear", "sho", "elb", "wri", "hip", "kne", "ank"):
        coco = coco.replace(f"{{{part}}}", f"l{part} r{part}")
    assert [names18[i] for i in OF_OPENPOSE[18]] == coco.split() == [names25[i] for i in OF_OPENPOSE[25]]


def test_files_of_all_kinds_give_the_same_people(tmp_path: Path) -> None:
    row = {"keypoints": GT.flatten().tolist(), "score": 0.75}
    (tmp_path / "results.json").write_text(json.dumps([row | {"image_id": "x"}, row | {"image_id": 7}]))
    results, _ = read_folder("what.original", tmp_path / "results.json")
    ours, _ = read_folder("what.original", save(tmp_path / "ours", x=crowd(GT, score=[0.75])))
    assert set(results) == {"x", "7"} and np.array_equal(results["x"].keypoints, ours["x"].keypoints)
    assert results["x"].scores == ours["x"].scores == [0.75] and ours["x"].size == (1024, 768)


@pytest.mark.parametrize("text", ["nonsense", "{}", "[1]", '{"people": [{"keypoints": [1, 2]}]}', '{"people": 3}'])
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"what.original=.*: no keypoints: no keypoint file \(x.json: ") as error:
        read_folder("what.original", tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no keypoints"):
        read_folder("what.original", tmp_path / "nowhere")


def test_the_average_precision_is_cocos() -> None:
    """Two pictures: one right person, and one that only passes the thresholds up to its OKS, beside a false alarm."""
    pytest.importorskip("pycocotools")
    oks = measure(crowd(SHIFTED), crowd(GT), 3000)["oks"]
    thresholds = [0.5 + 0.05 * k for k in range(10)]
    assert 0.6 < oks < 0.8
    pairs = {"a": (crowd(GT, score=[0.9]), crowd(GT)), "b": (crowd(SHIFTED, score=[0.8]), crowd(GT))}
    passed = np.mean([oks >= t for t in thresholds])
    found = coco_ap(pairs, 3000)
    precision = 51 / 101  # of one person in two, found first: precision 1 up to recall 0.5
    assert found["ap"] == pytest.approx(passed + (1 - passed) * precision, abs=1e-6)
    assert found["ap50"] == pytest.approx(1) and found["ar"] == pytest.approx((1 + passed) / 2)


# Pictures.


def fill(folder: Path, number: int, seed: int = 0) -> Path:
    folder.mkdir()
    for i in range(number):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (70, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_clip_scores_are_the_logits_of_transformers(tmp_path: Path) -> None:
    weights = toy_rewards.clip(tmp_path / "clip")
    images, texts = fill(tmp_path / "images", 3), tmp_path / "texts"
    texts.mkdir()
    said = ["a red circle", "a blue square " * 60]
    for i, text in enumerate(said):
        (texts / f"{i}.txt").write_text(f"{text}\n")
    (images / "0.txt").write_text("no picture")
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:900])
    result = ClipScore(str(images), str(texts), str(weights))(tmp_path, CPU)
    assert result["left_out"] == {"missing in texts": ["2"], "missing in images": [], UNREADABLE: ["1"]}
    model, processor = CLIPModel.from_pretrained(weights).eval(), CLIPProcessor.from_pretrained(weights)
    inputs = processor(text=said[:1], images=Image.open(images / "0.png"), return_tensors="pt")
    with torch.no_grad():
        wanted = model(**inputs).logits_per_image.item()
    assert result["items"] == [{"name": "0", "clip": pytest.approx(wanted, rel=1e-4), "cut": 0.0}]
    one = ClipScore(str(images), str(texts / "1.txt"), str(weights))(tmp_path, CPU)
    assert [item["name"] for item in one["items"]] == ["0", "2"] and one["metrics"]["cut"]["mean"] == 1


@pytest.mark.slow
def test_lpips_by_its_definition(tmp_path: Path) -> None:
    """Written out on torchvision's AlexNet at random, with the heads that torchmetrics brings."""
    torch.manual_seed(0)
    backbone = alexnet().eval()
    torch.save(backbone.state_dict(), tmp_path / "alexnet.pth")
    originals, generated = fill(tmp_path / "a", 2), fill(tmp_path / "b", 1, seed=5)
    result = Lpips(str(originals), str(generated), str(tmp_path / "alexnet.pth"))(tmp_path, CPU)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    pair = [torch.from_numpy(np.array(Image.open(f / "0.png"))).permute(2, 0, 1)[None] for f in (originals, generated)]
    features = [(p / 127.5 - 1 - shift) / scale for p in pair]
    total, heads = 0.0, [lin.model[-1].weight for lin in clip_lpips.lpips(tmp_path / "alexnet.pth").lins]
    with torch.no_grad():
        for number, layer in enumerate(backbone.features[:12]):
            features = [layer(f) for f in features]
            if number in (1, 4, 7, 9, 11):
                a, b = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-10) for f in features)
                total += ((a - b).square() * heads.pop(0)).sum(1).mean().item()
    assert result["items"] == [{"name": "0", "lpips": pytest.approx(total, rel=1e-3)}]
    assert result["left_out"]["missing in generated"] == ["1"]
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="no file of torchvision's AlexNet"):
        clip_lpips.lpips(str(tmp_path / "other.pth"))
