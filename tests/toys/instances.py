"""Cases of one test of which the first stand for all while somebody works; the others run with the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(cases: Iterable[Any], keep: int) -> list[Any]:
    """All cases for `pytest.mark.parametrize`, those after the first `keep` marked as slow."""
    found = list(cases)
    assert 0 < keep < len(found), f"keeps {keep} of {len(found)} cases"
    return found[:keep] + [_slow(case) for case in found[keep:]]


def _slow(case: Any) -> Any:
    if isinstance(case, type(pytest.param())):
        return pytest.param(*case.values, marks=[*case.marks, pytest.mark.slow], id=case.id)
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
