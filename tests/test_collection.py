"""No test is left out by its place, and what is long carries the mark of a Makefile's target."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_pytest_looks_into_every_folder(request: pytest.FixtureRequest) -> None:
    """By itself it leaves out folders of some names, such as dist."""
    for folder in {path.parent for path in TESTS.rglob("test_*.py")}:
        for name in folder.relative_to(TESTS).parts:
            assert not any(fnmatch(name, pattern) for pattern in request.config.getini("norecursedirs")), folder


def test_what_is_long_has_the_mark_of_its_folder() -> None:
    for path in (TESTS / "long").rglob("test_*.py"):
        assert f"pytest.mark.{path.parent.name}" in path.read_text(), path
