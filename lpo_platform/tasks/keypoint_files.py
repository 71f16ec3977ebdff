"""Keypoints in files: OpenPose JSON, COCO annotations and results, and ours, which has the sizes that those lack."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpo_platform.config.errors import UserError
from lpo_platform.runs.files import write_text

JOINTS = 17
# COCO's 17 keypoints among OpenPose's 18, whose second is the neck, and among its 25
OF_OPENPOSE = {
    18: (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
    25: (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11),
}
PARTS = {"hand_left": "hand_left_keypoints_2d", "hand_right": "hand_right_keypoints_2d", "face": "face_keypoints_2d"}
WHOLE = 133  # keypoints of COCO-WholeBody: the 17, six of the feet, and these
OF_WHOLE = {"face": slice(23, 91), "hand_left": slice(91, 112), "hand_right": slice(112, 133)}


@dataclass(frozen=True)
class People:
    """Everybody in a picture.

    keypoints: (P, 17, 3) x, y in pixels and visibility, 0 for what is not there. scores: (P,), how sure a detector is.
    area, box: (P,) of a person's segment and (P, 4) x, y, width, height as annotated, nan where they are not. size: of
    the picture, (width, height). parts: hand_left, hand_right (P, 21, 3) and face (P, 70 or so, 3), as far as detected.
    """

    keypoints: NDArray[np.float64]
    scores: NDArray[np.float64]
    area: NDArray[np.float64]
    box: NDArray[np.float64]
    size: tuple[int, int] | None = None
    parts: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


def people(rows: list[dict], size: tuple[int, int] | None = None) -> People:
    """From rows with `keypoints` (17, 3) or flat, and perhaps score, area, bbox and parts."""

    def column(name: str, empty: float | list[float]) -> NDArray[np.float64]:
        values = [empty if row.get(name) is None else row[name] for row in rows]
        return np.array(values, np.float64).reshape(len(rows), *np.shape(empty))

    keypoints = np.array([row["keypoints"] for row in rows], np.float64).reshape(len(rows), JOINTS, 3)
    parts = {name: np.array([row[name] for row in rows], np.float64).reshape(len(rows), -1, 3)
             for name in PARTS if rows and all(row.get(name) for row in rows)}  # fmt: skip
    nan = float("nan")
    return People(keypoints, column("score", 1.0), column("area", nan), column("bbox", [nan] * 4), size, parts)


def read_folder(setting: str, path: str | Path) -> dict[str, People]:
    """By the picture's name without suffix: a folder with a JSON file for each picture, or one file for many.

    Raises UserError, which begins with `setting`, where there is none or one cannot be read.
    """
    path = Path(path).expanduser()
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UserError(f"{setting}={path}: no keypoints; what works: a folder of .json files, or a COCO .json")
    found: dict[str, People] = {}
    for file in files:
        try:
            found |= read(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{setting}={path}: {file.name} is no keypoint file ({type(error).__name__}: {error}); what works: "
                "OpenPose JSON (pose_keypoints_2d), COCO annotations or results, or what lpo-prepare pose= writes"
            ) from error
    return found


def read(file: Path) -> dict[str, People]:
    """Of one file, by the pictures' names. Raises ValueError, KeyError, TypeError for something else."""
    content = json.loads(file.read_text(encoding="utf-8-sig"))
    if isinstance(content, list):
        return _coco(content, {})
    if "annotations" in content:
        return _coco(content["annotations"], {image["id"]: image for image in content["images"]})
    name, size = file.stem.removesuffix("_keypoints"), content.get("size")
    rows = [_openpose(row) if "pose_keypoints_2d" in row else row for row in content["people"]]
    return {name: people(rows, tuple(size) if size else None)}


def write(file: Path, found: People, **more: object) -> None:
    """Our own form: {"size": [width, height], "people": [{"keypoints": [[x, y, visibility], ...], "score": ...}]}."""
    rows = []
    for i in range(len(found.keypoints)):
        row = {"keypoints": found.keypoints[i].round(2).tolist(), "score": round(float(found.scores[i]), 4)}
        rows.append(row | {name: part[i].round(2).tolist() for name, part in found.parts.items()})
    write_text(file, json.dumps({"size": found.size, "people": rows} | more) + "\n")


def parts_of(person: NDArray[np.float64]) -> dict[str, list]:
    """A row for people() of one of COCO-WholeBody's (133, 3), or of COCO's (17, 3)."""
    parts = OF_WHOLE if len(person) == WHOLE else {}
    return {"keypoints": person[:JOINTS].tolist()} | {name: person[where].tolist() for name, where in parts.items()}


def whole(found: People) -> NDArray[np.float64]:
    """(P, 133, 3): feet are 0, and what was not detected; of OpenPose's face the 68 points without the pupils."""
    people = np.zeros((len(found.keypoints), WHOLE, 3))
    people[:, :JOINTS] = found.keypoints
    for name, points in found.parts.items():
        room = people[:, OF_WHOLE[name]]
        room[:, : points.shape[1]] = points[:, : room.shape[1]]
    return people


def _openpose(row: dict) -> dict:
    joints = np.array(row["pose_keypoints_2d"], np.float64).reshape(-1, 3)
    if len(joints) not in OF_OPENPOSE:
        raise ValueError(f"{len(joints)} body keypoints, not 18 or 25")
    joints = joints[list(OF_OPENPOSE[len(joints)])]
    joints[(joints[:, 2] <= 0) | (joints[:, :2] < 0).any(1)] = 0
    seen = joints[:, 2] > 0
    score = float(joints[seen, 2].mean()) if seen.any() else 0.0
    return {"keypoints": joints, "score": score} | {name: row.get(key) for name, key in PARTS.items()}


def _coco(rows: list[dict], images: dict) -> dict[str, People]:
    named: dict[str, list[dict]] = {_stem(image): [] for image in images.values()}
    sizes = {_stem(image): (image["width"], image["height"]) for image in images.values() if "width" in image}
    for row in rows:
        if row.get("keypoints") is not None:
            image = images.get(row["image_id"])
            named.setdefault(_stem(image) if image else Path(str(row["image_id"])).stem, []).append(row)
    return {name: people(found, sizes.get(name)) for name, found in named.items()}


def _stem(image: dict) -> str:
    return Path(str(image.get("file_name", image["id"]))).stem
