"""Numbers as a page writes them."""

import math
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds as words: 9.3 s, 2 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def short(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "n/a"


def counted(alarms: Sequence[object]) -> str:
    return f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}"
