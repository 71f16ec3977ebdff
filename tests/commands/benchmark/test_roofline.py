"""What is predicted of a GPU, against sums by hand."""

from collections.abc import Callable

import pytest
import torch
from toys.shapes import TOY

from lpo_platform.commands.benchmark.cell import Cell
from lpo_platform.commands.benchmark.cpo import CPOStep
from lpo_platform.commands.benchmark.roofline import LEAST, Roofline
from lpo_platform.commands.plan.devices import DEVICES

H100 = DEVICES["h100"]


def of(work: Callable[[], object]) -> Roofline:
    found = Roofline()
    found.follow(work, H100)
    return found


def meta(*size: int) -> torch.Tensor:
    return torch.empty(size, device="meta")


def test_a_large_product_takes_its_flops_and_a_sum_its_bytes() -> None:
    n = 8192
    product = of(lambda: meta(n, n) @ meta(n, n))
    assert (product.kernels, product.flops, product.moved) == (1, 2 * n**3, 2 * 3 * n**2)
    assert product.seconds == pytest.approx(2 * n**3 / 989e12) and product.share(H100) == pytest.approx(1)
    added = of(lambda: meta(n, n) + meta(n, n))
    assert (added.kernels, added.flops) == (1, 0)
    assert added.seconds == pytest.approx(2 * 3 * n**2 / 3.35e12) and added.share(H100) == 0


def test_what_is_small_takes_the_least_and_views_nothing() -> None:
    assert of(lambda: meta(2) + meta(2)).seconds == LEAST
    assert of(lambda: meta(2, 3).T.reshape(3, 2)[0].view(2)).kernels == 0
    assert of(lambda: meta(2).add_(1)).kernels == 1


def test_a_backward_is_followed() -> None:
    n = 256
    weight = meta(n, n).requires_grad_()
    found = of(lambda: (meta(n, n) @ weight).sum().backward())
    assert found.flops == 2 * 2 * n**3  # the picture wants no gradient


@pytest.mark.slow
def test_ours_needs_less_than_the_step_as_released() -> None:
    bench = CPOStep.build(TOY, batch=2, device="meta")
    results = Cell("cpo", "tiny", 2, chosen=("plain", "exact")).counted(bench, predicted_on=H100)
    plain, ours = results["plain"], results["exact"]
    assert all(plain[name] > ours[name] for name in ("kernels", "moved_bytes", "predicted_seconds"))
    assert 0 < ours["predicted_share"] < 1
