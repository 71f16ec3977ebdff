"""Signals that ask a command to end: they come out as Stopped, so that it ends in order and says how to continue."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# Beside SIGINT, of which Python makes a KeyboardInterrupt itself. Windows has no SIGHUP.
ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_own: dict[int, Callable[[int, FrameType | None], None]] = {}


class Stopped(KeyboardInterrupt):
    """A signal, by its number; the exit status of a command that it ends is 128 more."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None] = stop) -> Iterator[None]:
    """Inside, ENDING signals call `handler`; one that is ignored, as nohup does, stays so."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number in ENDING:
        if before[number] is signal.SIG_DFL:
            signal.signal(number, handler)
            _own[number] = handler
    try:
        yield
    finally:
        for number in list(_own):
            signal.signal(number, before[number])
            del _own[number]


def take_back() -> None:
    """Gives the signals their handlers again where a library has put its own in front."""
    for number, handler in _own.items():
        signal.signal(number, handler)


def code(error: BaseException) -> int | None:
    """The exit status of an end by a signal: 130 by SIGINT, 143 by SIGTERM; None for every other error.

    Lightning turns an interrupt into SystemExit(1).
    """
    if isinstance(error, SystemExit) and error.__context__ is not None:
        error = error.__context__
    if not isinstance(error, KeyboardInterrupt):
        return None
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
