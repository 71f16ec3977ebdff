"""Processes that tests start, forked from a server that has imported once what they need."""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

METHOD = "forkserver"


def context() -> ForkServerContext:
    """The first to start the server decides what it imports, so all ask for the same."""
    found = multiprocessing.get_context(METHOD)
    found.set_forkserver_preload(["lpo_platform.commands.train"])
    return found


class Training:
    """lpo-train with these words in a process of its own, which starts without the seconds of its imports."""

    def __init__(self, words: list[str], folder: Path, **environment: str) -> None:
        self._said = folder / f"said-{len(list(folder.glob('said-*')))}"
        self._process: ForkServerProcess = context().Process(
            target=_train, args=(words, folder, self._said, os.environ | environment)
        )
        self._process.start()

    def kill(self) -> int:
        self._process.kill()
        return self.wait()

    def runs(self) -> bool:
        return self._process.is_alive()

    def wait(self, seconds: float = 300) -> int:
        """Its exit code, negative for the signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"runs after {seconds} s"
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it wrote into the terminal."""
        return self._said.read_text()


def _train(words: list[str], folder: Path, said: Path, environment: Mapping[str, str]) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with said.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.argv = ["lpo-train", *words]
    from lpo_platform.commands.main import train

    train()
