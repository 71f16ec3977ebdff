"""Preference and reinforcement fine-tuning of diffusion models, from the command line or from Python:

    import lpo_platform as lpo

    run = lpo.train("method=cpo", "task=canny")
    run.metrics["canny/f1"], run.export
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
CLASSES = ("LatentReward", "Policy")  # of lpo_platform.models
FUNCTIONS = ("Run", "compose", "dataset", "evaluate", "load", "reward", "task", "train")  # of lpo_platform.api
__all__ = [*CLASSES, *FUNCTIONS, "losses"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for when it is asked for: `import lpo_platform` alone loads nothing heavy."""
    if name == "losses":
        return import_module("lpo_platform.methods.losses")
    if name in __all__:
        return getattr(import_module("lpo_platform.models" if name in CLASSES else "lpo_platform.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
