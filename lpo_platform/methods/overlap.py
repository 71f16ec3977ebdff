"""Work beside the caller's: the rewards of some pictures while the next ones are sampled."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from lpo_platform.hardware.distributed import Rows


class Aside:
    """Calls of one thread, in their order, on a CUDA stream of its own; what they find and raise comes with the join.

    devices: the types of device on which that happens; elsewhere a call is made at once. Not on a CPU, whose cores both
    would share. Grad, inference and autocast mode are the caller's, which are those of a thread. The first call is made
    at once everywhere: what is loaded or moved to the device when it is first needed is then there for both threads.
    """

    def __init__(self, devices: tuple[str, ...] = ("cuda",)) -> None:
        self.devices, self._warm = devices, False
        self._pool: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None  # one for good: memory is cached for each
        self._last: Future[Rows] | None = None

    def __call__(self, work: Callable[[], Rows], device: torch.device) -> Callable[[], Rows]:
        """Starts `work` on what has been queued on the device so far; returns the join.

        Raises what the call before raised, if that is known by now.
        """
        if device.type not in self.devices or not self._warm:
            found, self._warm = work(), True
            return lambda: found
        if self._last is not None and self._last.done():
            self._last.result()
        self._pool = self._pool or ThreadPoolExecutor(1, "aside")
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
        """Ends with the work on the device, so that until then its inputs are held by `work`."""
        self._stream = self._stream or torch.cuda.Stream(device)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(ready)
            found = work()
        self._stream.synchronize()
        return found


def _owned(rows: Rows) -> Rows:
    """Their memory is not given to the other stream while the caller's still reads it."""
    for column in rows.values():
        if column.is_cuda:
            column.record_stream(torch.cuda.current_stream(column.device))
    return rows
