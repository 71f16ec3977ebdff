"""Makes data of pose control from photographs: keypoints, drawings of skeletons, and lines that name them.

A folder gets `keypoints/<name>.json` and `skeletons/<name>.png` for each picture, and `train.jsonl` and `test.jsonl`
with the keys image, condition_image and text, as IITP-CARTE-LGE/cnrl2 reads them, and the people under pose. data=jsonl
reads these files. Hands and faces are drawn and stored where the task finds them (task.whole_body, or keypoint files of
OpenPose). Pictures whose keypoints are there are not detected again.
"""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.folder import Folder, Picture
from lpo_platform.data.picture_files import BadPicture, decode, save_png
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.decode import AGREEMENT
from lpo_platform.hardware.distributed import deal, everywhere, lead, wait
from lpo_platform.runs.files import write_text
from lpo_platform.runs.given_files import PICTURES, without_suffix
from lpo_platform.tasks.keypoint_files import (
    JOINTS,
    BadKeypoints,
    parts_of,
    people,
    read_file,
    visible_inside,
    whole,
    write,
)
from lpo_platform.tasks.pose import Files, Pose
from lpo_platform.tasks.skeleton import Drawing, draw

TEST_FRACTION = 1 / 31  # the published 30:1
NOBODY = "picture in which nobody was found"
SEVERAL = "picture that shares its name with another one, and keypoints with that name"
LOST = "picture whose keypoints another process could not write"
ELSEWHERE = "picture outside which most of its keypoints lie"


@torch.no_grad()
def extract(pictures: str, out: Path, task: Pose, device: torch.device) -> Findings:
    """Writes what the module says for the pictures of a folder; a picture without people is reported and left out.

    Several processes share the pictures. Raises UserError where `out` holds the poses of another detector.
    """
    data = Folder(pictures, test_fraction=TEST_FRACTION, cache_folder=None, resolution=task.resolution, judged=False)
    splits = {"train": data.train.pictures, "test": data.test.pictures}
    _claim(out, task)
    files = [picture for split in splits.values() for picture in split]
    findings = Findings()
    if isinstance(task.detector, Files):
        for reason, names in task.detector.left_out.items():
            for name in names:
                findings.skip(reason, name)
    problems: dict[str, str] = {}
    known = names_of([picture.id for picture in files])
    missing = [picture for picture in files if not _is_done(out, picture)]
    done = len(files) - len(missing)
    with tqdm(total=len(files), desc="poses", unit="img", initial=done) as bar:
        for picture in deal(missing):
            try:
                _extract(picture, out, task, device, known[picture.id])
            except (BadPicture, BadKeypoints) as error:
                problems[picture.id] = str(error)
            bar.update(everywhere(1, bar.total - bar.n))
    wait()
    for picture in files:
        if not _is_done(out, picture):
            findings.skip(problems.get(picture.id, LOST), picture.id)
    for split, found in splits.items():
        lines = [line for picture in found if _is_done(out, picture) and (line := _line(picture, out, findings))]
        if lead():
            write_text(out / f"{split}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return findings


def _claim(out: Path, task: Pose) -> None:
    note = out / "detector.json"
    known = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else None
    if known not in (None, task.fingerprint):
        raise UserError(f"export={out}: holds poses of another detector; what works: another folder")
    if lead():
        out.mkdir(parents=True, exist_ok=True)
        write_text(note, json.dumps(task.fingerprint) + "\n")


def _places(out: Path, picture: Picture) -> tuple[Path, Path]:
    """(keypoints, skeleton); the whole name of a picture, as a.png and a.jpg may lie side by side."""
    return out / "keypoints" / f"{picture.id}.json", out / "skeletons" / f"{picture.id}.png"


def _is_done(out: Path, picture: Picture) -> bool:
    """Whether its keypoints are there, of this very file."""
    try:
        return json.loads(_places(out, picture)[0].read_text(encoding="utf-8"))["picture"] == picture.look.file
    except (OSError, ValueError, KeyError):
        return False


def names_of(pictures: list[str]) -> dict[str, tuple[str, ...]]:
    """What keypoints of each picture may be called: its path without suffix, or the last part of that.

    A name that several pictures have is none of them's: () for a.png beside a.jpg.
    """
    paths = {picture: without_suffix(picture, PICTURES) for picture in pictures}
    last = {picture: path.rpartition("/")[2] for picture, path in paths.items()}
    counts = [(names, Counter(names.values())) for names in (paths, last)]
    return {p: tuple(names[p] for names, count in counts if count[names[p]] == 1) for p in pictures}


def _found(picture: Picture, detector: Files, names: tuple[str, ...], size: tuple[int, int]) -> Tensor:
    """The people of somebody else's file. Raises BadKeypoints where they cannot be those of the picture."""
    name = next((name for name in names if name in detector.people), None)
    if name is None:
        last = without_suffix(picture.path.name, PICTURES)
        if last not in names and last in detector.people:
            raise BadKeypoints(SEVERAL)
        return detector.of("", size)
    found = detector.of(name, size)
    if visible_inside(found.numpy(), size) < AGREEMENT:
        raise BadKeypoints(ELSEWHERE)
    return found


def _extract(picture: Picture, out: Path, task: Pose, device: torch.device, names: tuple[str, ...]) -> None:
    image = decode(picture.path).image
    if isinstance(task.detector, Files):
        found = _found(picture, task.detector, names, image.size)
    else:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        found = task.find(pixels.to(device))[0].cpu().double()
    found = found[(found[:, :JOINTS, 2] > task.joint_threshold).any(1)]
    found = found * (found[..., 2:] > task.joint_threshold)
    levels = found[:, :JOINTS, 2]
    scores = (levels.sum(1) / (levels > 0).sum(1)).tolist()
    rows = [parts_of(person.numpy()) | {"score": score} for person, score in zip(found, scores, strict=True)]
    keypoints, skeleton = _places(out, picture)
    keypoints.parent.mkdir(parents=True, exist_ok=True)
    save_png(drawn(found, image, task.drawing), skeleton)
    write(keypoints, people(rows, image.size), picture=picture.look.file)


def drawn(found: Tensor, image: Image.Image, drawing: Drawing) -> Tensor:
    """The skeletons of people (P, 17 or 133, 3) in pixels of a picture: (3, H, W) in [0, 1]."""
    return draw(found, max(image.size), drawing)[:, : image.height, : image.width]


def _line(picture: Picture, out: Path, findings: Findings) -> dict[str, object] | None:
    keypoints, skeleton = _places(out, picture)
    (found,) = read_file(keypoints)[0].values()
    if not len(found.keypoints):
        findings.skip(NOBODY, picture.id)
        return None
    return {
        "image": os.path.relpath(picture.path, out),
        "condition_image": os.path.relpath(skeleton, out),
        "text": picture.caption,
        "pose": (whole(found) if found.parts else found.keypoints).tolist(),
    }
