import pytest
import torch

from lpo_platform.hardware.transfer import stack

KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_touch_data_that_is_stacked(kind: torch.dtype, autocast: torch.dtype) -> None:
    values = [torch.ones(2, dtype=kind), torch.zeros(2, dtype=kind)]
    with torch.autocast("cpu", autocast):
        stacked = stack(values)
    assert stacked.dtype == kind and stacked.tolist() == [[1, 1], [0, 0]]
