"""Streams of a pretended device: they compute nothing beside, but they know who has waited for whom.

Work runs at once and in the order of the calls, so no race ever shows in the numbers. What can be proven is the order
that the program asks for: a tensor that one stream has written must not be read on another before an event, another
stream or the host has been waited for, and a copy to the host that does not block holds nonsense until its stream or a
later event has been waited for. What is not proven: that memory given back by one stream is not taken by another
too early (record_stream), and that anything runs at the same time.
"""

import threading
from typing import Any

import torch
from torch import Tensor


class Race(RuntimeError):
    """A stream reads what another has written without waiting for it."""


class Stream:
    """A queue; `seen` is how far it has waited for each queue, itself included; `sent` is on its way to the host."""

    count = 0

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device, self.number, self.seen = torch.device("cuda", 0), Stream.count, {}
        self.sent: list[tuple[Tensor, Tensor]] = []
        Stream.count += 1

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        self._join(event.seen)

    def wait_stream(self, other: "Stream") -> None:
        self._join(other.seen)

    def synchronize(self) -> None:
        """The host waits, and so does whatever is queued by it afterwards, on every stream."""
        arrive(self.sent)
        _join(HOST, self.seen)

    def query(self) -> bool:
        return True

    def _join(self, seen: dict[int, int]) -> None:
        _join(self.seen, seen)


class Event:
    """A place in a queue. It has not happened when it is first asked for, then it has."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seen: dict[int, int] = {}
        self.sent: list[tuple[Tensor, Tensor]] = []
        self.asked = False

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or current()
        self.seen, self.sent, self.asked = dict(stream.seen), list(stream.sent), False

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current()).wait_event(self)

    def synchronize(self) -> None:
        arrive(self.sent)
        _join(HOST, self.seen)

    def query(self) -> bool:
        if not self.asked:
            self.asked = True
            return False
        self.synchronize()
        return True

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


HOST: dict[int, int] = {}
DEFAULT = Stream()
_local = threading.local()
_written: dict[int, tuple[int, int]] = {}
"""By storage: the stream that wrote it last, and when in the order of that stream."""


def current(device: Any = None) -> Stream:
    return getattr(_local, "stream", DEFAULT)


class On:
    """torch.cuda.stream."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        self.before = current()
        if self.stream is not None:
            _local.stream = self.stream

    def __exit__(self, *_: Any) -> None:
        _local.stream = self.before


def read(storages: list[int], name: str) -> None:
    """An operator reads these storages on the current stream. Raises Race."""
    here = current()
    for storage in storages:
        stream, time = _written.get(storage, (here.number, 0))
        if stream != here.number and max(here.seen.get(stream, 0), HOST.get(stream, 0)) < time:
            raise Race(f"{name} on stream {here.number} reads what stream {stream} writes, and has not waited for it")


def write(storages: list[int]) -> None:
    """An operator writes them on the current stream."""
    here = current()
    here.seen[here.number] = here.seen.get(here.number, 0) + 1
    for storage in storages:
        _written[storage] = here.number, here.seen[here.number]


def send(values: Tensor) -> Tensor:
    """A copy to the host that does not block: nonsense until it has arrived."""
    host = torch.full_like(values, float("nan") if values.is_floating_point() else -1)
    current().sent.append((host, values.clone()))
    return host


def arrive(sent: list[tuple[Tensor, Tensor]]) -> None:
    for host, values in sent:
        host.copy_(values)
    sent.clear()


def forget() -> None:
    """A new device, whose only stream is the default one."""
    Stream.count = 1
    HOST.clear(), DEFAULT.seen.clear(), DEFAULT.sent.clear(), _written.clear()


def _join(into: dict[int, int], seen: dict[int, int]) -> None:
    for number, time in seen.items():
        into[number] = max(into.get(number, 0), time)
