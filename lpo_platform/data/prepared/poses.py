"""From photographs to data of pose control: keypoints, skeleton pictures, and lines that name them (pose_ddpo.md 2.4).

Hands and faces are drawn and stored where the task finds them (task.whole_body, or keypoint files of OpenPose).
Leaves in a folder, below the name of each picture: `keypoints/<name>.json`, `skeletons/<name>.png`; and `train.jsonl`
and `test.jsonl` with the seed's keys image, condition_image and text, and the people as labels under pose, which
data=jsonl reads. Pictures whose keypoints are there are not looked at again.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.folder import Folder, Picture
from lpo_platform.data.picture_files import open_rgb, save_png
from lpo_platform.data.reading_report import Findings
from lpo_platform.hardware.distributed import deal, everywhere, lead, wait
from lpo_platform.runs.files import write_text
from lpo_platform.tasks.keypoint_files import JOINTS, parts_of, people, read, whole, write
from lpo_platform.tasks.pose import Files, Pose
from lpo_platform.tasks.skeleton import draw

TEST_FRACTION = 1 / 31  # the published 30:1
NOBODY = "picture in which nobody was found"
WHOLE = 10**6  # of a JPEG, all of its pixels


@torch.no_grad()
def extract(pictures: str, out: Path, task: Pose, device: torch.device) -> Findings:
    """Writes what the module says for the pictures of a folder; a picture without people is reported and left out.

    Several processes share the pictures. Raises UserError where `out` holds the poses of another detector.
    """
    data = Folder(pictures, test_fraction=TEST_FRACTION, cache_folder=None, resolution=task.resolution)
    splits = {"train": data.train.pictures, "test": data.test.pictures}
    _claim(out, task)
    files = [picture for split in splits.values() for picture in split]
    missing = [picture for picture in files if not _is_done(out, picture)]
    done = len(files) - len(missing)
    with tqdm(total=len(files), desc="poses", unit="img", initial=done) as bar:
        for picture in deal(missing):
            _extract(picture, out, task, device)
            bar.update(everywhere(1, bar.total - bar.n))
    wait()
    findings = Findings()
    for split, found in splits.items():
        lines = [line for picture in found if (line := _line(picture, out, findings))]
        if lead():
            write_text(out / f"{split}.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return findings


def _claim(out: Path, task: Pose) -> None:
    note = out / "detector.json"
    known = json.loads(note.read_text()) if note.is_file() else None
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
        return json.loads(_places(out, picture)[0].read_text())["picture"] == picture.look.file
    except (OSError, ValueError, KeyError):
        return False


def _extract(picture: Picture, out: Path, task: Pose, device: torch.device) -> None:
    image = open_rgb(picture.path, side=WHOLE)[0]
    if isinstance(task.detector, Files):
        found = task.detector.of(picture.path.stem)
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
    save_png(drawn(found, image), skeleton)
    write(keypoints, people(rows, image.size), picture=picture.look.file)


def drawn(found: Tensor, image: Image.Image) -> Tensor:
    """The skeletons of people (P, 17 or 133, 3) in pixels of a picture: (3, H, W) in [0, 1]."""
    return draw(found, max(image.size))[:, : image.height, : image.width]


def _line(picture: Picture, out: Path, findings: Findings) -> dict[str, object] | None:
    keypoints, skeleton = _places(out, picture)
    (found,) = read(keypoints).values()
    if not len(found.keypoints):
        findings.skip(NOBODY, picture.id)
        return None
    return {
        "image": os.path.relpath(picture.path, out),
        "condition_image": os.path.relpath(skeleton, out),
        "text": picture.caption,
        "pose": (whole(found) if found.parts else found.keypoints).tolist(),
    }
