"""Whoever runs out of memory, Python or torch on either device, is told what helps."""

import pytest
import torch

from lpo_platform.config.errors import RunFailed, users


def too_much_for_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def too_much_for_python() -> None:
    bytearray(2**62)


def too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("ask", [too_much_for_torch, too_much_for_python, too_much_for_a_gpu])
def test_no_memory_is_one_message(ask) -> None:
    with pytest.raises(Exception) as raised:
        ask()
    found = users(raised.value)
    assert isinstance(found, RunFailed) and str(found).startswith("out of memory (")
    assert "hardware.micro_batch" in str(found) and "\n" not in str(found)


def test_another_error_stays_what_it_is() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert users(error) is error
