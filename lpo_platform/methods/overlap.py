"""Computes the rewards of some pictures while the next ones are sampled."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from lpo_platform.hardware.distributed import Rows


class Overlap:
    """Runs calls one after another in a second thread, on a CUDA stream of its own.

    Results and exceptions are handed over when the caller joins. Gradient, inference and autocast modes belong to a
    thread, so the caller's are set in the second one. The first call runs at once on every device, so that what is
    loaded when it is first needed is there for both threads.

    Args:
        devices: types of device on which calls overlap. On others, such as the CPU, whose cores both threads would
            share, a call runs at once.
    """

    def __init__(self, devices: tuple[str, ...] = ("cuda",)) -> None:
        self.devices, self._warm = devices, False
        self._pool: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None  # one for good: memory is cached for each
        self._last: Future[Rows] | None = None

    def __call__(self, work: Callable[[], Rows], device: torch.device) -> Callable[[], Rows]:
        """Starts `work` after what has been queued on the device so far, and returns the function that joins it.

        Raises the exception of the call before, if that has already failed.
        """
        if device.type not in self.devices or not self._warm:
            found, self._warm = work(), True
            return lambda: found
        if self._last is not None and self._last.done():
            self._last.result()
        self._pool = self._pool or ThreadPoolExecutor(1, "overlap")
        mode = torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type)
        ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None

        def run() -> Rows:
            inference, gradient, autocast = mode
            with (
                torch.inference_mode(inference),
                torch.set_grad_enabled(gradient),
                torch.autocast(device.type, dtype, enabled=autocast),
            ):
                return work() if ready is None else self._streamed(work, device, ready)

        self._last = future = self._pool.submit(run)
        return lambda: _owned(future.result())

    def _streamed(self, work: Callable[[], Rows], device: torch.device, ready: torch.cuda.Event) -> Rows:
        """Returns when the device has finished; until then `work` holds its inputs."""
        self._stream = self._stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            found = work()
        self._stream.synchronize()
        return found


def _owned(rows: Rows) -> Rows:
    """Keeps the memory of the rows from the other stream while the caller's stream still reads it."""
    for column in rows.values():
        if column.is_cuda:
            column.record_stream(torch.cuda.current_stream(column.device))
    return rows
