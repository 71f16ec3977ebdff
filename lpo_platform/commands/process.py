"""One process of a job that runs in several: `python -m lpo_platform.commands.process <command> <run folder>`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from omegaconf import OmegaConf

from lpo_platform.commands.table import work_of
from lpo_platform.config.errors import RunFailed, UserError, users
from lpo_platform.hardware.launch import COMMAND, NOTES, PARENT, rank
from lpo_platform.runs import record, signals


def main(primary: str, folder: Path) -> None:
    """Runs one process of a job, which hardware/launch.py starts."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # while there is nothing to end in order
    with signals.handled(lambda number, _: os._exit(128 + number)):  # the parent tells; the others wait for this one
        _work(primary, folder)


def _work(primary: str, folder: Path) -> None:
    _follow(int(os.environ[PARENT]))
    sys.argv = json.loads(os.environ[COMMAND])
    if rank():
        os.environ["TQDM_DISABLE"] = "1"
    _log_to(folder / f"{primary}.log")
    try:
        work = work_of(primary)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(OmegaConf.load(folder / "resolved.yaml"), folder)
    except BaseException as error:
        # no orderly end: another process may be waiting for this one inside of a collective operation
        code = _note(folder / NOTES / f"rank-{rank()}.json", error)
        sys.stderr.flush()
        os._exit(code)
    _leave()


def _note(path: Path, error: BaseException) -> int:
    """Writes for the parent what happened, and returns the exit code."""
    interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
    if interrupted and isinstance(error, KeyboardInterrupt | SystemExit):
        return 130
    found = users(error)
    user, failed = isinstance(found, UserError), isinstance(found, RunFailed)
    reason = str(found) if user or failed else traceback.format_exception_only(found)[-1].strip()
    whole = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):  # the parent has gone on
        kinds = {"user": user, "failed": failed}
        record.write_json(path, {"rank": rank(), **kinds, "reason": reason, "traceback": whole, "time": time.time()})
    return 2 if user else 1


def _follow(parent: int) -> None:
    """Ends this process when the one that started it ends, however that happens (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _log_to(path: Path) -> None:
    """The log format of conf/hydra/job_logging; the first process writes the file, warnings of all are shown."""
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING)
    console.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handlers: list[logging.Handler] = [console]
    if rank() == 0:
        handlers.append(logging.FileHandler(path, encoding="utf-8"))
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if rank() == 0 else logging.WARNING, handlers=handlers, force=True)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
