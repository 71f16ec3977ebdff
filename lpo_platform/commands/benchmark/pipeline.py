"""What data cost: rows that a core reads in a second, and two steps of a training on more and more rows."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lpo_platform.data.captioned import Captioned
from lpo_platform.data.prepared.readers import pack, read_items, unpack
from lpo_platform.models.stable_diffusion import StableDiffusion
from lpo_platform.tasks.canny import Canny

SIDE = 512
PHOTOGRAPHS, SIZE = 16, (640, 480)  # as in COCO
WANTED = 50  # rows a second of one H100, at the cost of CPO on SD-1.5
ROWS = (500, 20_000, 1_000_000)
SMALL = [
    "method=control", "task=canny", "method.steps=2", "data=jsonl", "data.condition=null", "data.num_test=6",
    "metrics.num_samples=6", "callbacks.samples=0", "callbacks.sentinel=null", "logger=none", "hardware=cpu",
]  # fmt: skip


def pipeline(rows: tuple[int, ...] = ROWS, seconds: float = 2.0) -> dict[str, dict[str, float]]:
    """Measures both and prints them as tables."""
    with tempfile.TemporaryDirectory(prefix="pipeline-") as name:
        folder = Path(name)
        photographs(folder)
        stages = stages_of(folder, seconds)
        print(f"| a row at {SIDE} px, one core | ms | rows/s |\n|---|---|---|")
        for stage, each in stages.items():
            print(f"| {stage} | {1e3 * each:.2f} | {1 / each:.0f} |")
        cores = WANTED * (stages["decoding"] + stages["between processes"])
        print(f"\n{cores:.1f} cores of workers feed {WANTED} rows a second; conditions are detected on the device.\n")
        print("| rows | seconds of two steps | of a CPU | memory, GB |\n|---|---|---|---|")
        found = {}
        for count in rows:
            found[str(count)] = took = training(folder, count)
            print(f"| {count:,} | {took['seconds']:.1f} | {took['cpu']:.1f} | {took['gb']:.2f} |", flush=True)
    return {"stages": stages, "trainings": found}


def photographs(folder: Path) -> None:
    """JPEG files with the detail of photographs: soft shapes under fine grain."""
    random = np.random.default_rng(0)
    for number in range(PHOTOGRAPHS):
        soft = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE, Image.BICUBIC)
        grain = random.normal(0, 4, (SIZE[1], SIZE[0], 3))
        Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")


def index(folder: Path, rows: int) -> Path:
    """Lines that name the photographs over and over, each with a caption of its own."""
    file = folder / f"{rows}" / "train.jsonl"
    file.parent.mkdir()
    with file.open("w") as lines:
        for row in range(rows):
            line = {"image": f"../{row % PHOTOGRAPHS}.jpg", "text": f"photograph number {row} of a series"}
            lines.write(json.dumps(line) + "\n")
    return file


def stages_of(folder: Path, seconds: float) -> dict[str, float]:
    """Seconds of a row in each stage, on one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = Captioned(str(index(folder, 64)), resolution=SIDE, num_test=1, cache_folder=None).train
    adapter = StableDiffusion(name="tiny", weights="tiny", resolution=64, guidance=1.0, num_inference_steps=1)
    samples = [source[i] for i in range(PHOTOGRAPHS)]
    images, captions = torch.stack([sample.image for sample in samples]), [sample.caption for sample in samples]
    found = {
        "decoding": each(lambda: read_items(source, list(range(PHOTOGRAPHS))), seconds),
        "between processes": each(lambda: unpack(pack(samples)), seconds),
        "canny": each(lambda: Canny().detect(images), seconds),
        "tokens": each(lambda: adapter.tokenize(captions), seconds),
    }
    torch.set_num_threads(threads)
    return found


def each(work: Callable[[], object], seconds: float) -> float:
    """Seconds of a CPU, which a busy machine does not change much."""
    work()
    started, count = time.process_time(), 0
    while time.process_time() - started < seconds:
        work()
        count += PHOTOGRAPHS
    return (time.process_time() - started) / count


def training(folder: Path, rows: int) -> dict[str, float]:
    """Seconds, those of a CPU, and gigabytes of lpo-train with two steps, in a process and a folder of its own."""
    work = folder / f"run-{rows}"
    work.mkdir()
    words = [*SMALL, f"data.path={index(folder, rows)}"]
    command = [sys.executable, "-c", "from lpo_platform.commands.main import train; train()", *words]
    started = time.perf_counter()
    with open(work / "log", "wb") as log:
        child = subprocess.Popen(command, cwd=work, stdout=log, stderr=log)
    _, status, usage = os.wait4(child.pid, 0)  # subprocess does not tell what one process took
    child.returncode = status
    if status:
        raise RuntimeError((work / "log").read_text(encoding="utf-8")[-2000:])
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "gb": usage.ru_maxrss / 1e6}
