"""The weights of timesteps by hand, and that a limit beyond all ratios is plain supervised training."""

import pytest
import torch

from lpo_platform.diffusion.ddim import DDIM
from lpo_platform.methods.min_snr import signal_to_noise, weight


def test_the_weight_by_hand() -> None:
    """An SNR of 20 counts as 5, one of 2 as it is."""
    assert weight(torch.tensor([20.0, 5.0, 2.0]), 5.0).tolist() == pytest.approx([0.25, 1.0, 1.0])
    assert weight(torch.tensor([20.0, 2.0]), 1e9).tolist() == [1.0, 1.0]


def test_the_ratio_is_that_of_the_schedule() -> None:
    process, t = DDIM(), torch.tensor([1, 500, 999])
    kept = process.alphas_cumprod[t].float()
    found = signal_to_noise(process.add_noise, torch.randn(3, 4, 8, 8), t)
    torch.testing.assert_close(found, kept / (1 - kept), rtol=1e-4, atol=0)
