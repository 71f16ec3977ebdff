"""What a check says: one line."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

NOTHING = 1e-6  # relative difference that rounding alone explains in float32


@dataclass(frozen=True)
class Finding:
    """advice: what to do about it, for whatever is not ok."""

    check: str
    state: Literal["ok", "doubtful", "FAILED", "not applicable"]
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:<14}  {self.check:<10}  {self.reason}"

    @property
    def reason(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def doubtful(check: str, what: str, advice: str) -> Finding:
    return Finding(check, "doubtful", what, advice)


def failed(check: str, what: str, advice: str) -> Finding:
    return Finding(check, "FAILED", what, advice)


def skipped(check: str, why: str) -> Finding:
    return Finding(check, "not applicable", why)


@torch.no_grad()
def difference(one: Tensor, other: Tensor) -> float:
    """|one - other| relative to |one|; infinite where one of them is not finite."""
    change = float((one.float() - other.float()).norm() / one.float().norm().clamp_min(1e-12))
    return change if change == change else float("inf")


def percent(share: float) -> str:
    """`0.0012 %`: small changes count, too."""
    return f"{100 * share:.2g} %"
