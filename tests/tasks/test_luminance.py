"""Light and dark of a picture that is known, its score, and its gradient."""

import torch

from lpo_platform.tasks.luminance import Luminance


def test_a_cell_holds_its_mean() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[:, :, :4, :4] = torch.tensor([0.3, 0.6, 0.9]).view(3, 1, 1)
    maps = Luminance(cell=4).detect(image)
    expected = torch.zeros(1, 1, 8, 8)
    expected[..., :4, :4] = 0.6
    torch.testing.assert_close(maps, expected)


def test_contract() -> None:
    task, images = Luminance(), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = task.detect(images.requires_grad_())
    assert torch.equal(task.parse(task.render(maps)), maps) and set(task.score(maps, maps)) == set(task.scores)
    assert torch.equal(task.distance(maps, maps), torch.zeros(3))
    torch.testing.assert_close(task.score(maps, maps + 0.25)["luminance/rmse"], torch.full((3,), 0.25))
    task.loss(images, maps.detach().flip(0)).sum().backward()
    assert images.grad.abs().sum() > 0 and task.fingerprint != Luminance(4).fingerprint
