"""Pictures for the rows of a CSV, a condition image and a prompt each, drawn by the model of a run."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config import UserError
from lpo_platform.data.cache import fingerprint
from lpo_platform.data.pictures import open_rgb, resize
from lpo_platform.distributed import deal, lead, wait
from lpo_platform.evaluation.generate import Sampling, sample_latents
from lpo_platform.evaluation.picture_folders import BROKEN
from lpo_platform.evaluation.pictures import save_png
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.record import write_json

MISSING = "missing in conditions"
Row = tuple[str, str]  # the file of the condition, and the prompt


@dataclass(frozen=True)
class Generate:
    """Draws `<save>/<name of the condition>.png` for every row, as DDIM (FLUX: Euler's method) without added noise.

    csv: with a header; image_column, prompt_column: null takes its first and its second column. conditions: the folder
    of the condition images, of which the largest central square is taken. weights: `trained`, `start` (the run's model
    before its training) or another ControlNet (folder or hub id). resolution, guidance: null takes the run's.
    The first noise is keyed by the name, so that all weights see the same. A picture that is there is kept, unless
    `manifest.json` says that it was drawn otherwise, which is refused (specs/pose_ddpo.md 4.2).
    load: gives the model of the run with these weights at this resolution, and what identifies its weights.
    """

    csv: str
    conditions: str
    save: str
    image_column: str | None = None
    prompt_column: str | None = None
    weights: str = "trained"
    resolution: int | None = None
    num_steps: int = 50
    guidance: float | None = None
    batch: int = 4
    seed: int = 0
    load: Callable[[str, int | None], tuple[Policy, str]] = field(kw_only=True)

    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        rows = self._rows()
        there = [row for row in rows if self._condition(row).is_file()]
        if not there:
            names = ", ".join(image for image, _ in rows[:3])
            raise UserError(f"conditions={self.conditions}: nothing to draw, it has none of {len(rows)} files: {names}")
        policy, identity = self.load(self.weights, self.resolution)
        adapter = policy.eval().adapter
        sampling = Sampling(self.num_steps, adapter.guidance if self.guidance is None else self.guidance)
        settings = {
            "conditions": self.conditions, "weights": self.weights, "resolution": adapter.resolution,
            "steps": sampling.num_steps, "guidance": sampling.guidance, "eta": sampling.eta, "seed": self.seed,
            "model": fingerprint(adapter.fingerprint, identity),
        }  # fmt: skip
        self._claim(settings, rows)
        left = deal([row for row in there if not self._picture(row).exists()])
        for start in tqdm(range(0, len(left), self.batch), desc="pictures", unit="batch"):
            self._draw(policy, left[start : start + self.batch], sampling)
        wait()
        left_out = {
            MISSING: [image for image, _ in sorted(set(rows) - set(there))],
            BROKEN: [row[0] for row in there if not self._picture(row).exists()],
        }
        result = {"settings": settings, "metrics": {}, "left_out": left_out}
        if lead():
            write_json(folder / "report.json", result)
        return result

    def _rows(self) -> list[Row]:
        """Raises UserError on a file that is no such table, and where two pictures would have one name."""
        try:
            with open(Path(self.csv).expanduser(), encoding="utf-8-sig", newline="") as file:
                header, *lines = csv.reader(file)
            columns = enumerate((self.image_column, self.prompt_column))
            image, prompt = (place if name is None else header.index(name) for place, name in columns)
            rows = [(line[image], line[prompt]) for line in lines if line]
        except (ValueError, IndexError, csv.Error) as error:
            raise UserError(f"csv={self.csv}: no table of condition images and prompts. Reason: {error}") from error
        twice = [name for name, count in Counter(Path(image).stem for image, _ in rows).items() if count > 1]
        if twice:
            raise UserError(f"csv={self.csv}: several rows for one picture: {', '.join(twice[:3])}")
        return rows

    def _claim(self, settings: dict[str, Any], rows: list[Row]) -> None:
        note, prompts = Path(self.save).expanduser() / "manifest.json", dict(rows)
        if note.is_file():
            known = json.loads(note.read_text())
            other = any(prompts.get(image, prompt) != prompt for image, prompt in known["prompts"].items())
            foreign = other or known["settings"] != settings
            prompts |= known["prompts"]
        else:
            foreign = any(self._picture(row).exists() for row in rows)
        if foreign:
            raise UserError(f"save={self.save}: holds pictures drawn otherwise; what works: another folder")
        if lead():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, {"settings": settings, "prompts": prompts})

    def _draw(self, policy: Policy, rows: list[Row], sampling: Sampling) -> None:
        adapter = policy.adapter
        conditions = {row: image for row in rows if (image := self._read(row, adapter.resolution)) is not None}
        if not conditions:
            return
        names = [Path(image).stem for image, _ in conditions]
        text = adapter.embed(adapter.tokenize([prompt for _, prompt in conditions]))
        condition = Condition(text, torch.stack(list(conditions.values())).to(adapter.device))
        latents = sample_latents(policy, condition, names, sampling, seed=self.seed, stream="generate")
        for row, picture in zip(conditions, adapter.decode(latents), strict=True):
            save_png(picture, self._picture(row))

    def _read(self, row: Row, resolution: int) -> Tensor | None:
        """(3, R, R) in [0, 1]; None where the file cannot be read."""
        try:
            image = resize(open_rgb(self._condition(row), side=resolution)[0], "center", resolution)
        except (OSError, SyntaxError):
            return None
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255

    def _condition(self, row: Row) -> Path:
        return Path(self.conditions).expanduser() / row[0]

    def _picture(self, row: Row) -> Path:
        return Path(self.save).expanduser() / f"{Path(row[0]).stem}.png"
