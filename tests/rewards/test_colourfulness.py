"""Colourfulness of pictures whose value is known by hand."""

import pytest
import torch

from lpo_platform.rewards.colourfulness import Colourfulness


def test_by_hand() -> None:
    """Grey is 0; red alone has opponents 1 and 0.5 everywhere; half of it adds their spread."""
    pictures = torch.zeros(3, 3, 4, 4)
    pictures[0] = torch.rand(4, 4)
    pictures[1, 0] = 1
    pictures[2, 0, :2] = 1
    red = 0.3 * 1.25**0.5
    assert Colourfulness()(pictures, [""] * 3).tolist() == pytest.approx([0, red, red / 2 + 1.25**0.5 / 2], abs=1e-6)
