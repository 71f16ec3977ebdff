"""Evaluation of the embedded model: the same numbers whatever the batch, perfect on identity, and read back exactly."""

from pathlib import Path

import pytest
import torch

from lpo_platform.data.source import guards_of
from lpo_platform.data.toy import Toy
from lpo_platform.evaluation.evaluator import ALIGNMENT, LATENT_FD, Evaluation, Evaluator, compare_evaluations
from lpo_platform.evaluation.result_table import passed
from lpo_platform.models.policy import Policy
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.models.tuning import Control
from lpo_platform.tasks.canny import Canny


@pytest.fixture(scope="module")
def policy() -> Policy:
    adapter = StableDiffusion(
        name="tiny",
        weights="tiny",
        resolution=64,
        guidance=1.0,
        num_inference_steps=4,
        controls={"canny": "tiny/controlnet_canny"},
    )
    return Policy(adapter, Control(), adapter.load_control("canny", "auto"))


@pytest.fixture(scope="module")
def data() -> Toy:
    return Toy(num_train=0, num_test=7, resolution=64)


@pytest.fixture(scope="module")
def evaluation(policy: Policy, data: Toy) -> Evaluation:
    return Evaluator(num_samples=7, batch=7, shown=3)(policy, data, Canny(), title="test")


def test_numbers_do_not_depend_on_the_batch(policy: Policy, data: Toy, evaluation: Evaluation) -> None:
    other = Evaluator(num_samples=7, batch=3, shown=3)(policy, data, Canny(), title="test")
    for name, values in evaluation.scores.items():
        torch.testing.assert_close(other.scores[name], values, atol=1e-6, rtol=0)
    torch.testing.assert_close(other.features, evaluation.features, atol=1e-4, rtol=1e-4)
    assert len(other.images) == len(evaluation.images) == 3


def test_two_seeds_draw_two_pictures(policy: Policy, data: Toy, evaluation: Evaluation) -> None:
    other = Evaluator(num_samples=3, batch=3, seed=1)(policy, data, Canny(), title="test")
    assert not torch.allclose(other.images, evaluation.images)
    assert torch.equal(other.control, evaluation.control)


def test_a_model_compared_with_itself(evaluation: Evaluation) -> None:
    metrics = compare_evaluations(evaluation, evaluation, Canny())
    assert set(metrics) == {"canny/f1", "canny/f1_above_chance", ALIGNMENT, LATENT_FD}
    for metric in metrics.values():
        assert metric["difference"] == 0 and metric["ci95"] == [0, 0]
    assert metrics["canny/f1"]["higher_is_better"] and not metrics[LATENT_FD]["higher_is_better"]


def test_evaluation_is_read_back_as_it_was(evaluation: Evaluation, tmp_path: Path) -> None:
    file = tmp_path / "some" / "before.safetensors"
    evaluation.save(file)
    again = Evaluation.load(file)
    assert again.scores.keys() == evaluation.scores.keys()
    assert all(torch.equal(again.scores[name], values) for name, values in evaluation.scores.items())
    for name in ("features", "real", "images", "control", "detected"):
        assert torch.equal(getattr(again, name), getattr(evaluation, name))


def test_latent_distance_sees_collapse(evaluation: Evaluation) -> None:
    """Real latents are at distance 0 of themselves; copies of one picture are far from them."""
    real = evaluation.real
    copies = real[:1].expand_as(real)
    fields = {"scores": {}, "real": real, "images": evaluation.images}
    metric = compare_evaluations(Evaluation(features=real, **fields), Evaluation(features=copies, **fields), None)
    assert metric[LATENT_FD]["before"] == pytest.approx(0, abs=1e-3)
    assert metric[LATENT_FD]["after"] > 1


def test_real_pictures_of_the_same_items_stand_beside_every_guard(policy: Policy, data: Toy, tmp_path: Path) -> None:
    """Their guards are those of the scenes themselves, in any batch, and are kept with the evaluation."""
    found = Evaluator(num_samples=7, batch=3, rows=2, guards=True)(policy, data, Canny(), title="test")
    scenes = [data.test[i] for i in range(7)]
    expected = guards_of(data, torch.stack([s.image for s in scenes]), [s.caption for s in scenes])
    names = {name for name in expected if name.startswith("guard/")}
    assert names == set(found.real_scores) == {"guard/area"}
    torch.testing.assert_close(found.real_scores["guard/area"], expected["guard/area"])
    found.save(tmp_path / "kept.safetensors")
    assert torch.equal(Evaluation.load(tmp_path / "kept.safetensors").real_scores["guard/area"], expected["guard/area"])
    grown = Evaluation.load(tmp_path / "kept.safetensors")
    grown.scores["guard/area"] = expected["guard/area"] + 0.3
    metrics = compare_evaluations(found, grown, Canny())
    assert metrics["guard/area"]["real"] == pytest.approx(expected["guard/area"].mean().item())
    assert metrics["guard/area"]["from_real_ci95"] == pytest.approx([0.3, 0.3], abs=1e-6)
    assert passed(metrics)[0].startswith("guard/area rose") and "real" not in metrics[ALIGNMENT]
