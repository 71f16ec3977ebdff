"""What a first hour on a GPU asks, in one call of limited length, the most telling first; make test-gpu.

Each check is a row of the result, whether it passes, fails, takes too long or ends its process: the checks run one
after the other in a process of their own, which is started again where it is lost. What does not fit into the time is
named.

    python tests/long/gpu/first_hour.py --limit 570 --json outputs/first_hour.json
    python tests/long/gpu/first_hour.py --device pretended --only "job cpo"        # anywhere, without a GPU
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

PRECISIONS = ("bf16-mixed", "16-mixed", "32-true")
TEXT_TO_IMAGE = ("control=none", "task=none", "data=toy_prompts", "metrics=attributes", "reward=toy", "tune=lora")
LIMIT = 90.0  # seconds of a check; what takes longer hangs


@dataclass(frozen=True)
class Check:
    """A function of checks.py with its arguments. real: it needs a GPU that is one."""

    function: str
    arguments: tuple[Any, ...]
    real: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        words = [" ".join(value) if isinstance(value, tuple) else str(value) for value in self.arguments]
        return " ".join([self.function, *words]).replace("method=", "")


def checks(methods: list[str]) -> Iterator[Check]:
    """The most telling first."""
    for precision in PRECISIONS:
        yield from (Check("job", ((f"method={method}",), precision)) for method in methods)
    for precision in PRECISIONS[:2]:
        yield Check("ratio", (precision,))
        yield Check("first_preference", ("lpo", "lora", precision))
        yield Check("first_preference", ("diffusion_dpo", "full", precision))
    for precision in ("bf16-mixed", "32-true"):
        yield Check("sharded", (("method=cpo",), precision), real=True)
    yield Check("sharded", (("method=diffusion_dpo",), "bf16-mixed"), real=True)
    yield Check("job", (("method=cpo", "hardware.compile=true"), "bf16-mixed"), real=True)
    yield Check("resumed", (("method=cpo",), "bf16-mixed"))
    yield Check("resumed", (("method=lpo", "tune=lora"), "16-mixed"))
    yield Check("marked", (), real=True)
    large = ("data=toy", "method.batch=8", "hardware.micro_batch=8", "data.num_train=8", "task.detector=toy")
    yield Check("step", ("sd15", ("method=cpo", "control.weights=unet", *large[:4])), real=True)
    yield Check("step", ("sd15", ("method=control", "control.weights=unet", *large[:4])), real=True)
    pairs = ("method=diffusion_dpo", "data=toy_pairs", "data.prompts.num_train=4")
    yield Check("step", ("sd15", (*pairs, "method.batch=8", "hardware.micro_batch=8")), real=True)
    yield Check("step", ("sd15", ("method=lpo", "data=toy_prompts", "tune=lora", "reward=random")), real=True)
    yield Check("step", ("sdxl", (*pairs, "tune=lora", "hardware.micro_batch=2")), real=True)
    yield Check("step", ("sdxl", ("method=lpo", "data=toy_prompts", "tune=lora", "reward=random")), real=True)


def serve(pipe: Any, device: str, folder: str, log: str) -> None:
    """The process that makes the checks: answers each name with what was found, or with what was wrong.

    What the jobs themselves say goes into a file, so that the rows can be read.
    """
    os.chdir(folder)
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with ExitStack() as stack:
        if device == "pretended":
            from toys.pretended_cuda import pretended_cuda

            stack.enter_context(pretended_cuda())
        from long.gpu import checks as functions

        while (check := pipe.recv()) is not None:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                os.chdir(place)
                try:
                    pipe.send({"found": getattr(functions, check.function)(*check.arguments, **check.options)})
                except Exception as error:
                    said = (str(error).strip() or "no message").splitlines()
                    pipe.send({"failed": f"{type(error).__name__}: {said[0][:300]}"})
                os.chdir(folder)


class Worker:
    """The process, started when it is needed."""

    def __init__(self, device: str, folder: str, log: Path) -> None:
        self.device, self.folder, self.log, self.process = device, folder, log, None

    def make(self, check: Check, seconds: float) -> dict[str, Any]:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.device, self.folder, str(self.log)))
            self.process.start()
            other.close()
        self.pipe.send(check)
        try:
            answer = self.pipe.recv() if self.pipe.poll(seconds) else {"failed": f"not done after {seconds:.0f} s"}
        except EOFError:
            self.process.join()
            answer = {"failed": f"its process ended with {self.process.exitcode}"}
        if "failed" in answer:
            self.end()  # a process whose GPU has failed fails ever after
        return answer

    def end(self, asked: bool = False) -> None:
        if self.process is not None:
            if asked:
                self.pipe.send(None)
                self.process.join(20)
            self.process.kill()
            self.process.join()
        self.process = None


def first_hour(device: str, limit: float, file: Path | None, only: str = "") -> list[dict[str, Any]]:
    """The rows, each written as soon as it is known."""
    from lpo_platform.config.options import shipped

    end, found = time.monotonic() + limit, []
    log = (file or Path("outputs/first_hour.json")).with_suffix(".log").absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    print(f"what the jobs say: {log}", flush=True)
    with tempfile.TemporaryDirectory(prefix="first-hour-") as folder:
        worker = Worker(device, folder, log)
        for check in checks(list(shipped("method"))):
            if only not in check.name or (check.real and device == "pretended"):
                continue
            left, started = end - time.monotonic(), time.monotonic()
            answer = worker.make(check, min(left, LIMIT)) if left > 0 else {"failed": "not made: no time is left"}
            found.append({"check": check.name, "took": round(time.monotonic() - started, 1)} | answer)
            print(line(found[-1]), flush=True)
            if file is not None:
                file.write_text(json.dumps({"device": name_of(), "checks": found}, indent=1) + "\n")
        worker.end(asked=True)
    return found


def line(row: dict[str, Any]) -> str:
    shown = " ".join(f"{key} {value:.4g}" for key, value in row.get("found", {}).items())
    return f"{'FAILED' if 'failed' in row else 'ok':6} {row['took']:6.1f} s  {row['check']}  {row.get('failed', shown)}"


def name_of() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "pretended"), default="cuda")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds in all")
    parser.add_argument("--json", type=Path, help="file that gets the rows")
    parser.add_argument("--only", default="", help="part of the names of the checks to make")
    given = parser.parse_args()
    if given.device == "cuda" and name_of() == "no CUDA device":
        print("skipped: torch finds no CUDA device here; --device pretended makes what needs no real one")
        return 0
    found = first_hour(given.device, given.limit, given.json, given.only)
    failed = sum("failed" in row for row in found)
    print(f"{len(found) - failed} of {len(found)} checks passed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
