"""Finds the authors' forms of the steps. They are code of the tests, which the installed package does not have."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lpo_platform.config.errors import UserError

TESTS = Path(__file__).resolve().parents[3] / "tests"


def released(name: str) -> ModuleType:
    """The module tests/parity/<name>.py. Raises UserError where there is no git checkout around the package."""
    if not (TESTS / "parity").is_dir():
        raise UserError(
            "the benchmark compares with the authors' loops, which are in tests/parity of the git checkout and not in "
            "an installed package: run launchers/benchmark.py of a checkout"
        )
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return import_module(f"parity.{name}")
