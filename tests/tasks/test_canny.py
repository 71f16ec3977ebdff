"""The canny task: edge counts of a drawn picture, and the contract that every task keeps."""

import pytest
import torch
from torchmetrics.classification import BinaryF1Score

from lpo_platform.tasks.canny import Canny, f1


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """Waves behind a grey block, (1, 3, 128, 128)."""
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(128.0), indexing="ij")
    image = 0.5 + 0.5 * torch.sin(x / 9) * torch.cos(y / 13)
    image[40:90, 30:100] = 0.9
    return image.expand(1, 3, 128, 128)


@pytest.mark.parametrize(("low", "high", "pixels"), [(0.1, 0.2, 1035), (0.15, 0.3, 632)])
def test_evaluation_form(picture: torch.Tensor, low: float, high: float, pixels: int) -> None:
    edges = Canny(low, high).detect(picture)
    assert edges.shape == (1, 1, 128, 128) and edges.unique().tolist() == [0, 1]
    assert edges.sum() == pixels


@pytest.mark.parametrize(("low", "high", "pixels", "total"), [(0.1, 0.2, 1032, 508.7072), (0.15, 0.3, 1027, 508.0440)])
def test_training_form(picture: torch.Tensor, low: float, high: float, pixels: int, total: float) -> None:
    magnitude = Canny(low, high, form="magnitude").detect(picture)
    assert (magnitude > 0).sum() == pixels
    assert magnitude.sum().item() == pytest.approx(total, abs=1e-3)
    assert magnitude.max().item() == pytest.approx(2.278, abs=1e-3)


def test_only_the_training_form_has_a_gradient(picture: torch.Tensor) -> None:
    image = picture.clone().requires_grad_()
    assert not Canny().detect(image).requires_grad
    Canny(form="magnitude").detect(image).sum().backward()
    assert image.grad.abs().sum() > 0


def test_contract() -> None:
    task = Canny()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = task.detect(images)
    control = task.render(maps)
    assert control.shape == images.shape and control.min() >= 0 and control.max() <= 1
    assert torch.equal(task.parse(control), maps)
    assert torch.equal(task.distance(maps, maps), torch.zeros(3))
    assert (task.distance(maps, 1 - maps) == 1).all()
    assert set(task.score(maps, maps)) == set(task.scores)
    assert torch.equal(task.score(maps, maps)["canny/f1"], torch.ones(3))


def test_f1_is_torchmetrics_per_item() -> None:
    generator = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 20, 1, 16, 16, generator=generator) > 0.7).unbind()
    prediction[0], target[1] = False, False
    prediction[2] = target[2] = False
    expected = torch.stack([BinaryF1Score()(p.int(), q.int()) for p, q in zip(prediction, target, strict=True)])
    torch.testing.assert_close(f1(prediction, target), expected)


def test_edges_everywhere_are_no_better_than_chance() -> None:
    """Filling the picture raises F1 over drawing a few wrong edges; above chance it is worth nothing."""
    target = Canny().detect(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).round())
    everywhere = Canny().score(torch.ones_like(target), target)
    assert (everywhere["canny/f1"] > 0.2).all()
    torch.testing.assert_close(everywhere["canny/f1_above_chance"], torch.zeros(4))
    assert (Canny().score(target, target)["canny/f1_above_chance"] > 0.2).all()


def test_a_cache_key_changes_with_the_thresholds() -> None:
    assert Canny(0.1, 0.2).fingerprint != Canny(0.15, 0.3).fingerprint
