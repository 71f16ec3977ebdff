"""Work beside the caller's: it really is, what it finds and raises arrives, and modes of a thread go along."""

import threading

import pytest
import torch
from torch import Tensor

from lpo_platform.methods.overlap import Overlap

CPU = torch.device("cpu")


def begun() -> Overlap:
    """One that has made its first call, which is the caller's own."""
    overlap, caller = Overlap(("cpu",)), []
    overlap(lambda: caller.append(threading.current_thread()) or {}, CPU)()
    assert caller == [threading.current_thread()]
    return overlap


def test_the_caller_goes_on_meanwhile_and_calls_keep_their_order() -> None:
    overlap, gate, order = begun(), threading.Event(), []

    def work(number: int) -> dict[str, Tensor]:
        assert gate.wait(20), "the caller waited for the work"
        order.append(number)
        return {"number": torch.tensor(number)}

    ends = [overlap(lambda number=number: work(number), CPU) for number in range(3)]
    assert order == []
    gate.set()
    assert [int(end()["number"]) for end in reversed(ends)] == [2, 1, 0] and order == [0, 1, 2]


def test_on_other_devices_work_is_done_at_once() -> None:
    overlap, threads = Overlap(), set()
    for _ in range(2):
        overlap(lambda: threads.add(threading.current_thread()) or {}, CPU)
    assert threads == {threading.current_thread()}


def test_what_is_raised_comes_with_the_join_and_at_the_latest_with_the_call_after_it() -> None:
    overlap = begun()
    end = overlap(lambda: {"ratio": torch.tensor(1 // 0)}, CPU)
    with pytest.raises(ZeroDivisionError):
        end()
    with pytest.raises(ZeroDivisionError):
        overlap(dict, CPU)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_modes_are_the_callers(inference: bool, gradient: bool) -> None:
    def modes() -> dict[str, Tensor]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        found = [torch.is_inference_mode_enabled(), torch.is_grad_enabled(), product.dtype == torch.bfloat16]
        return {"modes": torch.tensor(found)}

    overlap = begun()
    for bfloat in (False, True):
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradient),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat),
        ):
            there, here = overlap(modes, CPU)()["modes"].tolist(), modes()["modes"].tolist()
        assert there == here == [inference, gradient, bfloat]


@pytest.mark.gpu
def test_a_stream_of_its_own_waits_for_what_is_queued() -> None:
    """Products that take the device a while, read beside: as if in line, again and again on the same memory."""
    device, overlap = torch.device("cuda"), Overlap()
    matrix = torch.randn(2048, 2048, device=device) / 2048**0.5
    overlap(dict, device)()
    for _ in range(10):
        power, ends, expected = matrix, [], []
        for _ in range(8):
            for _ in range(20):
                power = power @ matrix
            power = power / power.norm()
            ends.append(overlap(lambda power=power: {"sum": power.sum()}, device))
            expected.append(power.sum())
        assert all(torch.equal(end()["sum"], sum_) for end, sum_ in zip(ends, expected, strict=True))
