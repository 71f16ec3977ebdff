"""The pictures of benchmarks whose own scorers read them: GenEval and T2I-CompBench++, in their folder layouts."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count
from lpo_platform.evaluation.what.generate import Picture, PictureSet
from lpo_platform.runs.files import write_text
from lpo_platform.runs.given_files import NOT_TEXT, json_of, lines_of, read_bytes

LONGEST = 255  # bytes of a file name


@dataclass(frozen=True, kw_only=True)
class GenEval(PictureSet):
    """Draws for GenEval (arXiv 2310.11513) `<save>/00000/samples/0000.png` to 0003.png beside `metadata.jsonl`, ...

    The run has no ControlNet. The scores are then made in a clone of djghosh13/geneval with mmdet and a GPU:

        python evaluation/evaluate_images.py <save> --outfile results.jsonl --model-path <folder of its Mask2Former>
        python evaluation/summary_scores.py results.jsonl

    Its own script draws 4 pictures of a prompt, by 50 steps at guidance 9.

    Args:
        metadata: GenEval's evaluation_metadata.jsonl.
        pictures: how many pictures every prompt gets.

    PictureSet has the other settings.
    """

    stream: ClassVar[str] = "geneval"
    paths: ClassVar[dict[str, str]] = {"metadata": "file"}

    metadata: str
    weights: Literal["trained", "start"] = "trained"
    pictures: Count = 4

    def wanted(self) -> list[Picture]:
        found = []
        for number, line in enumerate(self._lines()):
            try:
                prompt, _ = (json_of(line)[key] for key in ("prompt", "tag"))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"metadata={self.metadata}: line {number + 1} is no JSON object with prompt and tag; what works: "
                    "GenEval's evaluation_metadata.jsonl"
                ) from error
            names = [f"{number:05d}/samples/{index:04d}.png" for index in range(self.pictures)]
            found += pictures_of(prompt, self.folder, names)
        return found

    def accompany(self) -> None:
        for number, line in enumerate(self._lines()):
            place = self.folder / f"{number:05d}"
            place.mkdir(exist_ok=True)
            write_text(place / "metadata.jsonl", f"{line}\n")

    def _lines(self) -> list[str]:
        return filled_lines("metadata", self.metadata)


@dataclass(frozen=True, kw_only=True)
class T2ICompBench(PictureSet):
    """Draws for T2I-CompBench++ (arXiv 2307.06350) `<save>/samples/<prompt>_000000.png`, numbered through all prompts.

    The run has no ControlNet. The scores are then made in a clone of Karine-Huang/T2I-CompBench, with <save> as its
    `examples/`:

        color, shape, texture: BLIPvqa_eval/BLIP_vqa.py --out_dir=<save>/
        spatial, 3d_spatial, numeracy: UniDet_eval/{2D_spatial_eval,3D_spatial_eval,numeracy_eval}.py --outpath <save>/
        non_spatial: CLIPScore_eval/CLIP_similarity.py --outpath=<save>/
        complex: the first, the 2D one and CLIPScore (the last two with --complex True), then 3_in_1_eval/3_in_1.py

    The scorers read the prompt from the file's name, up to its first underscore. Its paper has 10 pictures of a prompt.

    Args:
        prompts: one of its examples/dataset/*_val.txt, with one prompt per line. Every category needs its own folder.
        pictures: how many pictures every prompt gets.

    PictureSet has the other settings.
    """

    stream: ClassVar[str] = "t2i_compbench"
    paths: ClassVar[dict[str, str]] = {"prompts": "file"}

    prompts: str
    weights: Literal["trained", "start"] = "trained"
    pictures: Count = 10

    def wanted(self) -> list[Picture]:
        found = []
        for number, line in enumerate(filled_lines("prompts", self.prompts), 1):
            prompt = line.split("\t")[0].strip()
            if "/" in prompt or "_" in prompt or len(f"{prompt}_000000.png".encode()) > LONGEST:
                raise UserError(
                    f"prompts={self.prompts}: line {number} cannot be the name of a file that the scorers read; what "
                    f"works: no slash, no underscore, {LONGEST - 11} bytes"
                )
            names = [f"samples/{prompt}_{len(found) + index:06d}.png" for index in range(self.pictures)]
            found += pictures_of(prompt, self.folder, names)
        return found


def pictures_of(prompt: str, folder: Path, names: list[str]) -> list[Picture]:
    """One for each name below the folder; its noise is keyed by its number among them and the prompt."""
    return [Picture(name, folder / name, f"{index}/{prompt}", prompt) for index, name in enumerate(names)]


def filled_lines(setting: str, path: str) -> list[str]:
    """The lines of a text file that are not empty. Raises UserError where there are none."""
    try:
        found = lines_of(read_bytes(Path(path).expanduser()))
    except OSError as error:
        raise UserError(f"{setting}={path}: no readable text file. Reason: {error}") from error
    if None in found:
        raise UserError(f"{setting}={path}: line {found.index(None) + 1}: {NOT_TEXT}")
    lines = [line for line in found if line.strip()]
    if not lines:
        raise UserError(f"{setting}={path}: an empty file")
    return lines
