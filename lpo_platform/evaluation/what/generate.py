"""Pictures drawn into a folder by the model of a run, each of them once; for the rows of a CSV."""

import json
import posixpath
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Guidance, SamplingSteps, Seed
from lpo_platform.data.picture_files import UNREADABLE, BadPicture, look, save_png
from lpo_platform.evaluation.texts import Texts
from lpo_platform.evaluation.what.clip_lpips import opened
from lpo_platform.hardware.distributed import deal, lead, wait
from lpo_platform.models.adapter import Condition
from lpo_platform.models.policy import Policy
from lpo_platform.models.sampling import Sampling, sample_latents
from lpo_platform.runs.csv_rows import Bad, table
from lpo_platform.runs.files import fingerprint
from lpo_platform.runs.given_files import PICTURES, place, read_bytes, without_suffix
from lpo_platform.runs.record import write_json

MISSING = "missing in conditions"
ELSEWHERE = "row whose condition is no path below the folder of conditions"


@dataclass(frozen=True)
class Picture:
    """One picture to draw.

    Attributes:
        name: its name in the manifest.
        file: where it is stored.
        key: the key of its noise.
        prompt: its text.
        condition: the file of its condition image.
    """

    name: str
    file: Path
    key: str
    prompt: str
    condition: Path | None = None


@dataclass(frozen=True, kw_only=True)
class PictureSet:
    """Draws what wanted() names by DDIM (FLUX: Euler's method) without added noise.

    The first noise is keyed by the picture, so that all weights see the same. A picture that is there is kept, unless
    `manifest.json` says that it was drawn otherwise, which is refused.

    Args:
        save: the folder that gets the pictures.
        weights: `trained`, or `start` (the run's model before its training).
        resolution: the side of the pictures; null takes the run's.
        num_steps: how many denoising steps a picture takes.
        guidance: the classifier-free guidance; null takes the run's.
        batch: how many pictures are drawn at once.
        seed: the seed of the noise.
        load: gives the model of the run with these weights at this resolution, and what identifies its weights.
    """

    stream: ClassVar[str]
    control: ClassVar[bool] = False
    of_a_run: ClassVar[bool] = True

    save: str
    weights: str = "trained"
    resolution: Count | None = None
    num_steps: SamplingSteps = 50
    guidance: Guidance | None = None
    batch: Count = 4
    seed: Seed = 0
    load: Callable[..., tuple[Policy, str]] = field(kw_only=True)

    def wanted(self) -> list[Picture]:
        """Lists the pictures to draw. Raises UserError where what it reads is something else."""
        raise NotImplementedError

    def unusable(self) -> dict[str, list[str]]:
        """Lists the entries of its files that name no picture, by reason."""
        return {}

    def accompany(self) -> None:
        """Writes what belongs beside the pictures."""

    def __call__(self, folder: Path, device: torch.device) -> dict[str, Any]:
        wanted = self.wanted()
        there = [p for p in wanted if p.condition is None or p.condition.is_file()]
        policy, identity = self.load(self.weights, self.resolution, control=self.control)
        adapter = policy.eval().adapter
        sampling = Sampling(self.num_steps, adapter.guidance if self.guidance is None else self.guidance)
        settings = {
            "weights": self.weights, "resolution": adapter.resolution, "steps": sampling.num_steps,
            "guidance": sampling.guidance, "eta": sampling.eta, "seed": self.seed,
            "model": fingerprint(adapter.fingerprint, identity), **self.stated(),
        }  # fmt: skip
        self._claim(settings, wanted)
        left = deal([p for p in there if not p.file.exists()])
        texts = Texts(adapter, [p.prompt for p in left])
        for start in tqdm(range(0, len(left), self.batch), desc="pictures", unit="batch"):
            self._draw(policy, texts, left[start : start + self.batch], sampling)
        wait()
        left_out = {
            MISSING: [p.name for p in sorted({*wanted} - {*there}, key=lambda p: p.name)],
            **self.unusable(),
        }
        for picture in there:
            if not picture.file.exists():
                left_out.setdefault(look(picture.condition).problem or UNREADABLE, []).append(picture.name)
        result = {"settings": settings, "metrics": {}, "left_out": left_out}
        if lead():
            write_json(folder / "report.json", result)
        return result

    def stated(self) -> dict[str, Any]:
        """Further settings that decide what the pictures are."""
        return {}

    def _claim(self, settings: dict[str, Any], wanted: list[Picture]) -> None:
        note, prompts = self.folder / "manifest.json", {p.name: p.prompt for p in wanted}
        if note.is_file():
            known = json.loads(note.read_text(encoding="utf-8"))
            other = any(prompts.get(name, prompt) != prompt for name, prompt in known["prompts"].items())
            foreign = other or known["settings"] != settings
            prompts |= known["prompts"]
        else:
            foreign = any(p.file.exists() for p in wanted)
        if foreign:
            raise UserError(f"save={self.save}: holds pictures drawn otherwise; what works: another folder")
        if lead():
            note.parent.mkdir(parents=True, exist_ok=True)
            self.accompany()
            write_json(note, {"settings": settings, "prompts": prompts})

    @property
    def folder(self) -> Path:
        return Path(self.save).expanduser()

    def _draw(self, policy: Policy, texts: Texts, pictures: list[Picture], sampling: Sampling) -> None:
        adapter, conditions = policy.adapter, None
        if self.control:
            read = {p: image for p in pictures if (image := condition_image(p, adapter.resolution)) is not None}
            if not read:
                return
            pictures, conditions = list(read), torch.stack(list(read.values())).to(adapter.device)
        condition = Condition(texts([p.prompt for p in pictures]), conditions)
        keys = [p.key for p in pictures]
        latents = sample_latents(policy, condition, keys, sampling, seed=self.seed, stream=self.stream)
        for picture, image in zip(pictures, adapter.decode(latents), strict=True):
            picture.file.parent.mkdir(parents=True, exist_ok=True)
            save_png(image, picture.file)


def condition_image(picture: Picture, resolution: int) -> Tensor | None:
    """Reads the largest central square, (3, R, R) in [0, 1]; None where the file cannot be read."""
    try:
        return opened(picture.condition, resolution)[0]
    except BadPicture:
        return None


@dataclass(frozen=True, kw_only=True)
class Generate(PictureSet):
    """Draws `<save>/<name of the condition>.png` for every row of a CSV, as IITP-CARTE-LGE/cnrl2 does.

    Args:
        csv: a table with a header.
        conditions: the folder of the condition images.
        image_column: the column that names the condition image; null takes the first.
        prompt_column: the column of the prompt; null takes the second.
        weights: as in PictureSet, or another ControlNet (folder or hub id).

    PictureSet has the other settings.
    """

    stream: ClassVar[str] = "generate"
    paths: ClassVar[dict[str, str]] = {"csv": "file", "conditions": "folder"}
    control: ClassVar[bool] = True

    csv: str
    conditions: str
    image_column: str | None = None
    prompt_column: str | None = None

    def stated(self) -> dict[str, Any]:
        return {"conditions": self.conditions}

    def wanted(self) -> list[Picture]:
        rows, folder = self._rows()[0], Path(self.conditions).expanduser()
        pictures = [
            Picture(image, self.folder / f"{_name(image)}.png", _name(image), prompt, place(folder, image))
            for image, prompt in rows
        ]
        if not any(p.condition.is_file() for p in pictures):
            names = ", ".join(image for image, _ in rows[:3])
            raise UserError(f"conditions={self.conditions}: nothing to draw, it has none of {len(rows)} files: {names}")
        return pictures

    def unusable(self) -> dict[str, list[str]]:
        return self._rows()[1]

    def _rows(self) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
        """Returns (condition and prompt of each row; the lines that are left out, by reason).

        Raises UserError for no such table, or where two pictures share one name.
        """
        found: list[tuple[str, str]] = []
        left_out: dict[str, list[str]] = {}
        try:
            header, rows = table(read_bytes(Path(self.csv).expanduser()))
            columns = enumerate((self.image_column, self.prompt_column))
            image, prompt = (header[place] if name is None else name for place, name in columns)
            if unknown := {image, prompt} - set(header):
                raise ValueError(f"no column {', '.join(sorted(unknown))} among {', '.join(header)}")
            for line, row in rows:
                reason = row if isinstance(row, Bad) else None if _inside(row[image]) else ELSEWHERE
                if reason is None:
                    found.append((row[image], row[prompt]))
                else:
                    left_out.setdefault(str(reason), []).append(f"line {line}")
            if not found:
                details = "; ".join(f"{reason} ({names[0]})" for reason, names in left_out.items())
                raise ValueError(details or "no rows")
        except (OSError, ValueError, IndexError) as error:
            raise UserError(f"csv={self.csv}: no table of condition images and prompts. Reason: {error}") from error
        twice = [name for name, count in Counter(_name(image) for image, _ in found).items() if count > 1]
        if twice:
            raise UserError(f"csv={self.csv}: several rows for one picture: {', '.join(twice[:3])}")
        return found, left_out


def _name(image: str) -> str:
    """The file name of the picture that is drawn from this condition."""
    return without_suffix(posixpath.basename(image.replace("\\", "/")), PICTURES)


def _inside(image: str) -> bool:
    """Whether a path leads to something below the folder that it is relative to."""
    path = posixpath.normpath(image.replace("\\", "/"))
    return bool(image.strip()) and not path.startswith(("/", "..")) and path != "." and "\0" not in path
