"""The state of logging, which a command that runs in the process of the tests changes for all that follow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """Levels, switches and the root's handlers are afterwards as they were before; a new logger stays as it is."""
    root = logging.getLogger()
    handlers, before = list(root.handlers), {logger: _state(logger) for logger in _loggers()}
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        for logger, (level, logger.disabled, logger.propagate) in before.items():
            if logger.level != level:  # setting it forgets what all loggers have found out
                logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    known = logging.root.manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


def _state(logger: logging.Logger) -> tuple[int, bool, bool]:
    return logger.level, logger.disabled, logger.propagate
