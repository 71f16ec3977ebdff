"""lpo-eval as it is typed: any model, two against each other, protocols, and what users get wrong."""

import errno
import json
import os
import resource
import sys
from pathlib import Path

import kornia
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from toys.instances import first

from lpo_platform.commands import evaluate_once, main
from lpo_platform.commands.evaluate import of_run
from lpo_platform.config.compose import compose
from lpo_platform.config.schema import CONF
from lpo_platform.data.toy import Toy
from lpo_platform.evaluation import evaluator
from lpo_platform.models.weights import ASSETS
from lpo_platform.tasks.keypoint_files import people, write

TINY = ["model=tiny", "control=controlnet", "task=canny", "model.num_inference_steps=2", "metrics.num_samples=6"]
CONTROL = ASSETS / "tiny" / "controlnet_canny"


@pytest.fixture
def lpo_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Types a command; its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def typed(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["lpo-eval", *words])
        with pytest.raises(SystemExit) as end:
            main.evaluate()
        return int(end.value.code or 0), capsys.readouterr().err

    return typed


def result(folder: str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def rows(folder: str) -> list[dict]:
    return pq.read_table(Path(folder) / "evaluation" / "items.parquet").to_pylist()


def test_a_model_alone_and_against_itself(lpo_eval) -> None:
    """Alone it has values with intervals; against the same weights from a folder every difference is exactly 0."""
    code, said = lpo_eval(*TINY, "metrics.images_per_item=2", "metrics.save=true", "hydra.run.dir=alone")
    assert code == 0 and "canny/f1" in said and "before" not in said, said
    alone, found = result("alone")["metrics"]["canny/f1"], rows("alone")
    assert alone["before"] is None and alone["own_ci95"][0] <= alone["after"] <= alone["own_ci95"][1]
    assert [(row["id"], row["picture"]) for row in found] == [(row["id"], i % 2) for i, row in enumerate(found)]
    assert len(found) == 12 and np.mean([row["canny/f1/after"] for row in found]) == pytest.approx(alone["after"])
    assert found[0]["image/diversity/after"] == found[1]["image/diversity/after"] > 0
    assert len(list(Path("alone/pictures/after/group_1").glob("*.png"))) == 6
    code, said = lpo_eval(*TINY, "metrics.images_per_item=2", f"weights={CONTROL}", "hydra.run.dir=same")
    assert code == 0, said
    same = result("same")["metrics"]
    assert same["canny/f1"]["after"] == alone["after"] and {m["difference"] for m in same.values()} == {0}
    assert same["canny/f1"]["p"] == 1 and same["canny/f1"]["wins"] == [0.5, 0.5, 0.5]
    assert "clear" in said and "at 95 %" in said
    assert not list((Path("outputs") / "cache" / "evaluations").glob("*"))  # nothing is left under way


@pytest.mark.slow
def test_other_weights_are_what_is_evaluated(lpo_eval, tmp_path: Path) -> None:
    """An export folder with another ControlNet; `against` makes it the other side."""
    from diffusers import ControlNetModel

    moved = ControlNetModel.from_pretrained(CONTROL)
    with torch.no_grad():
        for weight in moved.controlnet_mid_block.parameters():
            weight.mul_(3)
    moved.save_pretrained(tmp_path / "export" / "controlnet")
    assert lpo_eval(*TINY, "weights=export", "hydra.run.dir=a")[0] == 0
    assert lpo_eval(*TINY, "against=export", "hydra.run.dir=b")[0] == 0
    one, other = result("a")["metrics"]["canny/f1"], result("b")["metrics"]["canny/f1"]
    assert one["before"] == other["after"] != one["after"] == other["before"]


@pytest.mark.slow
def test_the_protocol_of_a_paper_says_where_it_is_left(lpo_eval) -> None:
    code, said = lpo_eval(*TINY, "metrics=cpo", "metrics.num_steps=2", "hydra.run.dir=run", "data.num_test=5")
    assert code == 0, said
    deviations = result("run")["deviations"]
    for line in (
        "num_samples=6 instead of 5000", "num_steps=2 instead of 20", "model=tiny instead of sd15",
        "5 items instead of 5000: the data has no more", "precision 32-true instead of 16-mixed",
    ):  # fmt: skip
        assert line in deviations and f"not as in protocol cpo: {line}" in said
    assert not any("guidance" in line or "images_per_item" in line or "task" in line for line in deviations)
    assert len(rows("run")) == 20


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "model: required; add model=<option>, or run=<a finished run>"),
        (["model=tiny", "task=canny"], "task=canny: nothing sees the condition; add control=controlnet"),
        (["model=tiny", "control=controlnet"], "control=controlnet needs a task"),
        (["model=tiny", "weights=/nowhere"], "weights=/nowhere: no such file or folder"),
        (["model=tiny", "weights=."], "weights=.: no weights found; what works: a run, or a folder"),
        (["model=tiny", f"weights={CONTROL}"], "for control.weights; add control=controlnet"),
        (["run=.", "weights=."], "weights: with run=, the run says it"),
        (["model=sd15"], "toy data under a full-size model must be asked for"),
        (["what=controllability", "what.originals=.", "what.generated=."], "what=controllability needs a task"),
        (["model=tiny", "data=folder", "data.path=empty"], "empty: there are no pictures; what works:"),
    ],
)
def test_mistakes_are_one_message(lpo_eval, words: list[str], problem: str) -> None:
    Path("empty").mkdir()
    code, said = lpo_eval(*words, "hydra.run.dir=out")
    assert code == 2 and problem in said and "Traceback" not in said, said
    if Path("out/result.json").exists():
        assert result("out")["status"] == "failed" and not result("out")["metrics"]


def test_a_full_disk_is_one_message_and_the_command_goes_on(lpo_eval) -> None:
    """Files may grow to 200 kB: the kernel refuses what is longer, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        code, said = lpo_eval(*TINY, "hydra.run.dir=out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "cannot write outputs/cache/evaluations" in said and os.strerror(errno.EFBIG) in said, said
    assert "make room" in said and "Traceback" not in said
    assert not list(Path().glob("outputs/cache/evaluations/*/*.safetensors"))
    assert result("out")["status"] != "finished" and not result("out")["metrics"]
    assert lpo_eval(*TINY, "hydra.run.dir=out")[0] == 0 and result("out")["status"] == "finished"


def test_an_evaluation_that_was_stopped_draws_nothing_twice(lpo_eval, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two batches of 2, gone on with batches of 16: the same values, and each picture drawn once."""
    words = [*TINY, "metrics.images_per_item=2", "metrics.rows=2"]
    assert lpo_eval(*words, "hydra.run.dir=straight", "metrics.batch=16")[0] == 0
    drawn: list[str] = []
    draw, stops = evaluator.sample_latents, [KeyboardInterrupt]

    def counted(policy, condition, ids, sampling, **more):
        if len(drawn) == 8 and stops:
            raise stops.pop()
        drawn.extend(f"{more['stream']}/{name}" for name in ids)
        return draw(policy, condition, ids, sampling, **more)

    monkeypatch.setattr(evaluator, "sample_latents", counted)
    code, said = lpo_eval(*words, "hydra.run.dir=stopped", "metrics.batch=2")
    assert code == 130 and len(list(evaluate_once.UNDER_WAY.glob("*/*.safetensors"))) == 2, said
    assert not Path("stopped/evaluation/after.safetensors").exists()
    assert lpo_eval(*words, "hydra.run.dir=stopped", "metrics.batch=16")[0] == 0
    assert len(drawn) == len(set(drawn)) == 12
    files = [load_file(Path(folder) / "evaluation" / "after.safetensors") for folder in ("straight", "stopped")]
    assert files[0].keys() == files[1].keys()
    for name, value in files[0].items():
        torch.testing.assert_close(files[1][name], value, atol=1e-6, rtol=1e-5)


def picture(folder: str, name: str, pixels: np.ndarray) -> None:
    Path(folder).mkdir(exist_ok=True)
    Image.fromarray(pixels).save(Path(folder) / f"{name}.png")


def controllability(lpo_eval, task: str, *words: str) -> dict:
    code, said = lpo_eval("what=controllability", f"task={task}", "what.originals=a", "what.generated=b", *words,
                          "hydra.run.dir=out")  # fmt: skip
    assert code == 0, said
    return json.loads(Path("out/report.json").read_text())


def test_canny_of_two_folders(lpo_eval) -> None:
    """A drawn picture in 8 bits, whose plateaus have edges of their own: kornia's, and identity is perfect."""
    y, x = np.meshgrid(np.arange(128.0), np.arange(128.0), indexing="ij")
    image = 0.5 + 0.5 * np.sin(x / 9) * np.cos(y / 13)
    image[40:90, 30:100] = 0.9
    levels = np.repeat((255 * image).round().astype(np.uint8)[..., None], 3, 2)
    for folder in "ab":
        picture(folder, "x", levels)
    found = controllability(lpo_eval, "canny", "what.save=edges")
    assert found["items"][0]["canny/f1"] == 1
    saved = np.array(Image.open("edges/x.png"))[..., 0]
    _, edges = kornia.filters.canny(torch.from_numpy(levels).permute(2, 0, 1)[None] / 255, 0.1, 0.2)
    assert np.array_equal(saved, 255 * edges[0, 0].numpy()) and set(np.unique(saved)) == {0, 255}


@pytest.mark.parametrize(
    ("black", "wrap", "true"), first([((0, 0), 0.999881, 0.999862), ((100, 110), 0.969553, 0.965875)], keep=1)
)
def test_lineart_of_two_folders(lpo_eval, black: tuple[int, int], wrap: float, true: float) -> None:
    """In double precision, where torchmetrics' variances of flat squares cancel less than in the probe's float32."""
    y, x = np.meshgrid(np.arange(512), np.arange(512), indexing="ij")
    target = np.where((x // 64 + y // 64) % 2 == 0, 20, 220).astype(np.uint8)
    raw = 255 - target
    raw[black[0] : black[1]] = 0
    picture("a", "x", target)
    picture("b", "x", 255 - raw)
    for switch, expected in (("true", wrap), ("false", true)):
        words = ["task.detector=toy", f"task.uint8_wrap={switch}", "what.are=conditions"]
        found = controllability(lpo_eval, "lineart", *words)
        assert found["items"][0]["lineart/ms_ssim"] == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("power", "expected"), [(1, 0.0), (2, 46.467)])
def test_depth_of_two_folders(lpo_eval, power: int, expected: float) -> None:
    """A prediction of 8 bits, where the probe has a ramp in float: what 255 levels of it leave is under one level."""
    picture("a", "x", np.linspace(40, 200, 512).astype(np.uint8)[None].repeat(512, 0))
    ramp = np.linspace(0, 7, 384) ** power
    picture("b", "x", (255 * ramp / ramp.max()).astype(np.uint8)[None].repeat(384, 0))
    found = controllability(lpo_eval, "depth", "task.detector=toy", "what.are=conditions")
    assert found["items"][0]["depth/rmse"] == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize(
    ("shift", "similarity", "ap"),
    first([(0, 1, 1), (5, 0.895915, 0.8), (10, 0.696286, 0.4), (20, 0.391839, 0)], keep=1),
)
def test_poses_of_two_folders(lpo_eval, shift: int, similarity: float, ap: float) -> None:
    k = np.arange(17)
    for folder, dx in (("a", 0), ("b", shift)):
        Path(folder).mkdir()
        joints = np.stack([100 + 10 * k + dx, 200 + 5 * k, np.ones(17)], 1)
        write(Path(folder) / "x.json", people([{"keypoints": joints}], (512, 512)))
    assert lpo_eval("what=oks", "what.original=a", "what.target=b", "hydra.run.dir=out")[0] == 0
    (item,) = json.loads(Path("out/report.json").read_text())["items"]
    assert item["oks"] == pytest.approx(similarity, abs=1e-6) and item["cpo_map"] == pytest.approx(ap)


@pytest.mark.parametrize("task", first(["canny", "hed", "lineart", "depth", "seg_ade20k", "seg_coco", "pose"], keep=2))
def test_identity_is_perfect_for_every_task(lpo_eval, task: str) -> None:
    split = Toy(num_train=0, num_test=3, resolution=64, people=1.0 if task == "pose" else None).test
    for folder in "ab":
        for i in range(3):
            picture(folder, str(i), (255 * split[i].image).round().byte().permute(1, 2, 0).numpy())
    (Path("b") / "2.png").write_bytes((Path("b") / "2.png").read_bytes()[:300])
    words = ["what.resolution=64"] + ([] if task == "canny" else ["task.detector=toy"])
    found = controllability(lpo_eval, task, *words)
    assert found["left_out"]["unreadable or truncated"] == ["2"] and len(found["items"]) == 2
    values = {n: m["mean"] for n, m in found["metrics"].items() if "judge" not in n} | found.get("pooled", {})
    chance = values.pop("canny/f1_above_chance", None)
    assert chance is None or 0 < chance <= 1
    assert values and {n: round(v, 6) for n, v in values.items()} == {n: float(n != "depth/rmse") for n in values}


@pytest.mark.parametrize(
    ("asked", "weights"),
    [
        ("metrics=cpo", "Intel/dpt-large"),
        ("metrics=cpo_pose", "usyd-community/vitpose-plus-huge"),
        ("+metrics.task.weights=owner/judge", "owner/judge"),
    ],
)
def test_the_judge_of_a_run_stays_unless_the_protocol_names_one(asked: str, weights: str, tmp_path: Path) -> None:
    values = compose("train", ["experiment=controlnetpp_depth_sd15"], [], CONF).values
    (tmp_path / "resolved.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    cfg = OmegaConf.create(compose("eval", [f"run={tmp_path}", asked], [], CONF).values)
    known = of_run(cfg)
    assert known.metrics.task.weights == weights and known.task.weights == "Intel/dpt-hybrid-midas"
