"""Settings that must stand before torch is imported, and what every test leaves as it found it."""

import gc
import os
import signal
from collections.abc import Generator

import pytest
from toys import loggers

gc.disable()  # until all is imported, which makes half a million objects and no garbage
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # make test starts one for each core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    # as a shell and nohup leave them for what they start in the background; a process that a test interrupts would
    # never end
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be looked through for garbage during every test."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries that look for leaks at the end find none


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """A command that a test runs in this process sets levels, and the records of the next test don't depend on it."""
    with loggers.kept():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> Generator[None, object, object]:
    """Nor does the test that happens to be the first to need a shared fixture."""
    if fixturedef.scope == "function":
        return (yield)
    with loggers.kept():
        return (yield)
