"""How long a person waits: seconds of a CPU of what starts, each in a process of its own."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

MISTAKE = "method=cp0"
IMPORT = "import {}".format
COMMAND = "from lpo_platform.commands.main import {0}; {0}()".format
SAID = {
    "import torch": [IMPORT("torch")],
    "import lpo_platform": [IMPORT("lpo_platform")],
    "import lpo_platform.commands.build": [IMPORT("lpo_platform.commands.build")],
    "import lpo_platform.commands.train": [IMPORT("lpo_platform.commands.train")],
    "lpo-train with a mistake": [COMMAND("train"), MISTAKE],
    "lpo-plan, the embedded model": [COMMAND("plan"), "method=cpo", "task=canny"],
    "lpo-plan, Stable Diffusion 1.5": [COMMAND("plan"), "experiment=cpo_canny_sd15", "plan.device=h100"],
    "lpo-plan, Stable Diffusion XL": [COMMAND("plan"), "experiment=lpo_sdxl", "plan.device=h100"],
    "lpo-doctor, the embedded model": [COMMAND("doctor"), "method=cpo", "task=canny"],
    "lpo-train debug=smoke": [COMMAND("train"), "method=cpo", "task=canny", "debug=smoke"],
    "make demo, after the install": [COMMAND("train"), "method=cpo", "task=canny"],
}


@dataclass(frozen=True)
class Wait:
    """Seconds: of a CPU, which other work on the machine lengthens less, and of a clock."""

    cpu: float
    seconds: float


def startup(names: Sequence[str] = tuple(SAID), repeats: int = 1) -> dict[str, dict[str, float]]:
    """Measures each, prints a row of a table at once, and returns them; of several repeats the shortest."""
    found = {}
    print("| what | seconds of a CPU | seconds |\n|---|---|---|")
    for name in names:
        best = min((waited(SAID[name]) for _ in range(repeats)), key=lambda wait: wait.cpu)
        found[name] = asdict(best)
        print(f"| {name} | {best.cpu:.1f} | {best.seconds:.1f} |", flush=True)
    return found


def waited(words: Sequence[str]) -> Wait:
    """What a new Python takes for a program and its arguments, in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        started = time.perf_counter()
        with open(Path(name) / "log", "wb") as log:
            child = subprocess.Popen([sys.executable, "-c", *words], cwd=name, stdout=log, stderr=log)
        _, child.returncode, usage = os.wait4(child.pid, 0)  # subprocess does not tell what one process took
        if (child.returncode != 0) != (MISTAKE in words):
            raise RuntimeError((Path(name) / "log").read_text(encoding="utf-8")[-2000:])
        return Wait(usage.ru_utime + usage.ru_stime, time.perf_counter() - started)
