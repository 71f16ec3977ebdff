"""Items of a source, read and decoded ahead of their use in worker processes."""

import copy
import io
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.tables.decode import Unusable

MOST = 16  # workers at most, where their number is not set
WORTH = 5.0  # seconds of reading that are worth starting workers
AHEAD = 2  # groups that wait for each worker

log = logging.getLogger(__name__)


class Readers:
    """Reads groups of items, in the order in which they were asked for.

    In place of an item that cannot be used comes an Unusable, and in place of one that ends the run a UserError.

    Args:
        source: gives items by number.
        workers: processes that read; 0 reads here. None reads the first group here, and starts one for each free core
            if all reading would take more than WORTH seconds.
        share: processes of the run on this machine, which share its cores.
        expected: items that will be read.
    """

    def __init__(self, source: Any, *, workers: int | None = None, share: int = 1, expected: int = 0) -> None:
        self.source, self.workers, self.expected = source, workers, expected
        self._cores = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._most = min(1 if hasattr(source, "order") else MOST, self._cores // share - 1)  # a stream has one reader
        self._pool: ProcessPoolExecutor | None = None

    @property
    def depth(self) -> int:
        """How many groups are worth asking for ahead."""
        return AHEAD * self.workers if self.workers else 1

    def read(self, numbers: list[int]) -> Future:
        """A future with the items of a group."""
        if self.workers is None:
            return self._first(numbers)
        if self.workers == 0:
            return _Here(self.source, numbers)
        if self._pool is None:
            self._pool = _pool(self.source, self.workers)
        return _Packed(self._pool.submit(_read_packed, numbers))

    def ahead(self, groups: Iterable[list[int]]) -> Iterator[tuple[list[int], list[Any]]]:
        """Yields (numbers, items) of every group, while the next ones are being read."""
        groups, reading = iter(groups), deque()
        while True:
            while len(reading) < self.depth and (group := next(groups, None)) is not None:
                reading.append((group, self.read(group)))
            if not reading:
                return
            group, items = reading.popleft()
            yield group, items.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _first(self, numbers: list[int]) -> Future:
        """Reads the first group in this process. The time that it takes decides how many workers are started."""
        started = time.perf_counter()
        items: Future = Future()
        items.set_result(read_items(self.source, numbers))
        each = (time.perf_counter() - started) / max(1, len(numbers))
        self.workers = max(0, self._most) if each * self.expected > WORTH else 0
        log.debug("%.1f ms an item, %d workers", 1e3 * each, self.workers)
        return items


class _Here:
    """Items that are read when they are asked for."""

    def __init__(self, source: Any, numbers: list[int]) -> None:
        self.source, self.numbers = source, numbers

    def result(self) -> list[Any]:
        return read_items(self.source, self.numbers)


class _Packed:
    """Items that a worker packs."""

    def __init__(self, future: Future) -> None:
        self.future = future

    def result(self) -> list[Any]:
        return unpack(self.future.result())


def read_items(source: Any, numbers: list[int]) -> list[Any]:
    """The items, or in their places the errors that say why there is none."""
    found = []
    for number in numbers:
        try:
            found.append(source[number])
        except (Unusable, UserError) as error:
            found.append(error)
    return found


# In a worker.

_source: Any = None


def _pool(source: Any, workers: int) -> ProcessPoolExecutor:
    """Workers that share this process's memory where the system has that: a large index is not copied."""
    kind = "fork" if sys.platform == "linux" else "spawn"
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context(kind), initializer=_start, initargs=(source, os.getpid())
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: workers touch none of them
        pool.submit(int).result()
    return pool


def _start(source: Any, parent: int) -> None:
    global _source
    _source = copy.copy(source)  # without what it has open
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Ends this worker when its parent has died without a word."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _read_packed(numbers: list[int]) -> bytes:
    return pack(read_items(_source, numbers))


def pack(items: list[Any]) -> bytes:
    """Items for another process."""
    file = io.BytesIO()
    _Packer(file, protocol=5).dump(items)
    return file.getvalue()


def unpack(packed: bytes) -> list[Any]:
    return pickle.loads(packed)


class _Packer(pickle.Pickler):
    """Tensors by value, because shared memory is small in containers; pictures of 8 bits as bytes."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        if value.dtype == torch.float32:
            levels = value.mul(255).round_().clamp_(0, 255).to(torch.uint8)
            if torch.equal(levels.float() / 255, value):
                return _eight_bit, (levels.numpy(),)
        return torch.from_numpy, (value.contiguous().numpy(),)


def _eight_bit(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels).float() / 255
