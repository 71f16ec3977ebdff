"""The tracker that always runs: metrics.jsonl (the record), metrics.csv (the same as a table), histograms.jsonl."""

import csv
import io
import json
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from lpo_platform.methods.histograms import Histogram
from lpo_platform.runs.files import read_lines, write_text


class Files(Logger):
    """Writes each log as a line {"step", "time", name: value}; a killed process loses nothing it has logged.

    `time` is seconds since the run started; a resumed run continues it. A value that is not finite is null in the JSONL
    and nan in the CSV. Columns of the CSV may appear later: it is then rewritten from the JSONL.

    Lightning numbers a step from 0, so a checkpoint after s steps continues with the lines of step s. What an
    interrupted process wrote from there on is dropped by `resume(s)` (the `Resume` callback calls it), so
    that a run in pieces leaves the same lines as a straight one.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.jsonl, self.csv = self.folder / "metrics.jsonl", self.folder / "metrics.csv"
        self.histograms = self.folder / "histograms.jsonl"
        self._columns: list[str] | None = None
        self._inherited = 0
        self._offset, self._started = 0.0, time.monotonic()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def log_dir(self) -> str:
        return str(self.folder)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: resolved.yaml holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._columns is None:
            self.resume(None)
        seconds = round(self._offset + time.monotonic() - self._started, 3)
        row = {"step": 0 if step is None else int(step), "time": seconds, **_numbers(metrics)}
        with self.jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if set(row) <= set(self._columns):
            with self.csv.open("a", encoding="utf-8", newline="") as file:
                file.write(_csv([row], self._columns, header=False))
        else:
            self._columns += [name for name in row if name not in self._columns]
            write_text(self.csv, _csv(read_lines(self.jsonl), self._columns, header=True))

    @rank_zero_only
    def log_histograms(self, found: Mapping[str, Histogram], step: int) -> None:
        """Lines {"step", "name", "values", "edges"}; a bin without a mean is null."""
        lines = [
            {
                "step": step,
                "name": name,
                "values": [v if math.isfinite(v) else None for v in of.values],
                "edges": of.edges,
            }
            for name, of in found.items()
        ]
        with self.histograms.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    @rank_zero_only
    def resume(self, step: int | None) -> None:
        """Continues the files at `step`.

        What an earlier process wrote for this and later steps goes, as does a line that was cut off. None
        keeps every whole line.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_lines(self.jsonl) if "step" in row and "time" in row]
        own = [] if self._columns is None else rows[self._inherited :]
        kept = [row for row in rows[: len(rows) - len(own)] if step is None or row["step"] < step]
        self._inherited, rows = len(kept), kept + own
        self._columns = list(dict.fromkeys(["step", "time", *(name for row in rows for name in row)]))
        write_text(self.jsonl, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(self.csv, _csv(rows, self._columns, header=True))
        if self.histograms.exists():
            bars = [row for row in read_lines(self.histograms) if step is None or row["step"] < step]
            write_text(self.histograms, "".join(json.dumps(row) + "\n" for row in bars))
        if not own:
            self._offset, self._started = (kept[-1]["time"] if kept else 0.0), time.monotonic()


class Resume(Callback):
    """Tells the files at which step this process starts, once the checkpoint is loaded."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, Files):
                logger.resume(trainer.global_step)


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | int | None]:
    values = {name: value.item() if hasattr(value, "item") else value for name, value in metrics.items()}
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _csv(rows: list[dict[str, Any]], columns: list[str], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({name: "nan" if value is None else value for name, value in row.items()} for row in rows)
    return text.getvalue()
