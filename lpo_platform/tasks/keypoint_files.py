"""Keypoints in files and cells: of OpenPose, ComfyUI, COCO, and in our own form, which has the picture's size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpo_platform.config.errors import UserError
from lpo_platform.runs.files import write_text
from lpo_platform.runs.given_files import (
    PICTURES,
    by_name,
    files_below,
    json_of,
    read_bytes,
    shown,
    text_of,
    without_suffix,
)

JOINTS = 17
# COCO's 17 keypoints among OpenPose's 18, whose second is the neck, and among its 25
OF_OPENPOSE = {
    18: (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
    25: (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11),
}
PARTS = {"hand_left": "hand_left_keypoints_2d", "hand_right": "hand_right_keypoints_2d", "face": "face_keypoints_2d"}
WHOLE = 133  # keypoints of COCO-WholeBody: the 17, six of the feet, and these
OF_WHOLE = {"face": slice(23, 91), "hand_left": slice(91, 112), "hand_right": slice(112, 133)}

LARGEST_SHARE = 1.5  # of a side, at which a joint may be found that lies outside the picture
STRETCH = 0.02  # by which a width and a height may have been rounded differently
NO_FILE = "no keypoint file"
BROKEN = "unreadable keypoints"
SEVERAL = "several of one name"
WORKS = "OpenPose JSON (pose_keypoints_2d), COCO annotations or results, or what lpo-prepare pose= writes"


class BadKeypoints(ValueError):
    """Content that is no keypoints; the message says what it is."""


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
    parts = {}
    for name in PARTS:
        if seen := [row[name] for row in rows if row.get(name)]:
            nothing = np.zeros_like(np.array(seen[0], np.float64)).tolist()
            points = [row.get(name) or nothing for row in rows]
            parts[name] = np.array(points, np.float64).reshape(len(rows), -1, 3)
    nan = float("nan")
    return People(keypoints, column("score", 1.0), column("area", nan), column("bbox", [nan] * 4), size, parts)


def read_folder(setting: str, path: str | Path) -> tuple[dict[str, People], dict[str, list[str]]]:
    """(people by the name of their picture, files and pictures that are left out by reason).

    path: a folder with a JSON file for each picture, also nested, or one file for many pictures. Names as given_files
    has them. Raises UserError, which begins with `setting`, where no file can be read.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = {name: _name(name) for name in files_below(path) if name.lower().endswith(".json")}
    else:
        files = {"": _name(path.name)}
    named, several = by_name(files)
    found: dict[str, People] = {}
    left_out = {SEVERAL: several} if several else {}
    for name, file in named.items():
        try:
            of_file, broken = read_file(path / file, name)
        except (OSError, BadKeypoints) as error:
            reason = getattr(error, "strerror", None) or error
            left_out.setdefault(NO_FILE, []).append(f"{shown(file) or path.name}: {reason}")
            continue
        for reason, pictures in broken.items():
            left_out.setdefault(reason, []).extend(pictures)
        left_out.setdefault(SEVERAL, []).extend(sorted(set(found) & set(of_file)))
        found |= of_file
    left_out = {reason: pictures for reason, pictures in left_out.items() if pictures}
    found = {name: people for name, people in found.items() if name not in left_out.get(SEVERAL, [])}
    if not found:
        reason = "; ".join(f"{text} ({names[0]})" for text, names in left_out.items()) or "no .json file is there"
        raise UserError(f"{setting}={path}: no keypoints: {reason}; what works: {WORKS}")
    return found, left_out


def _name(file: str) -> str:
    """What a file with the keypoints of one picture says of that picture's name."""
    return without_suffix(without_suffix(file, (".json",)).removesuffix("_keypoints"), PICTURES)


def read_file(file: Path, name: str = "") -> tuple[dict[str, People], dict[str, list[str]]]:
    """As read_folder of one file; name: that of its picture where the file is about one. Raises OSError, BadKeypoints.

    It is the form of OpenPose, of ComfyUI's pose nodes, of COCO's annotations or results, or our own.
    """
    try:
        content = json_of(text_of(read_bytes(file)))
    except ValueError as error:
        raise BadKeypoints(str(error)) from error
    name = name or _name(file.name)
    if isinstance(content, list) and content and all(isinstance(row, dict) and "image_id" in row for row in content):
        return _coco(content, {})
    if isinstance(content, list):
        content = _frame(content)
    if not isinstance(content, dict):
        raise BadKeypoints("neither an object nor a list of results")
    if "annotations" in content:
        rows, images = content["annotations"], content.get("images")
        if not _objects(rows) or not _objects(images) or not all("id" in image for image in images):
            raise BadKeypoints("annotations or images of COCO are no lists of objects")
        return _coco(rows, {image["id"]: image for image in images})
    if not _objects(content.get("people")):
        raise BadKeypoints("no list of people")
    return {name: _people(content["people"], _size(content))}, {}


def joints(cell: object, size: tuple[int, int] | None) -> NDArray[np.float64]:
    """(P, K, 3): x, y in pixels of a picture of `size` (width, height) and visibility, rows of zeros where it is 0.

    cell: people of K = 17 or 133 keypoints as (P, K, 3), each of them flat, or one person alone; objects that have
    them as `keypoints`, or OpenPose's `pose_keypoints_2d`; or the JSON text of such a thing. Coordinates from 0 to 1
    are shares of the picture's sides. Raises BadKeypoints.
    """
    if isinstance(cell, str):
        try:
            cell = json_of(cell)
        except ValueError as error:
            raise BadKeypoints("a text that is not JSON") from error
    if isinstance(cell, dict):
        if "people" not in cell:
            cell = [cell]
        elif _objects(cell["people"]):
            return _of_people(fitted(_people(cell["people"], _size(cell) or size), size))
    if isinstance(cell, list) and cell and _objects(cell):
        return _of_people(_people(cell, size))
    return _in_pixels([_checked(_shaped(cell))], size)[0]


def fitted(found: People, size: tuple[int, int] | None) -> People:
    """The same people in a picture of another size. Raises BadKeypoints where that has other proportions."""
    if found.size is None or size is None or found.size == size or not len(found.keypoints):
        return found
    scale = np.array(size) / found.size
    if abs(scale[0] / scale[1] - 1) > STRETCH:
        raise BadKeypoints("of a picture of {}x{} pixels, not {}x{}".format(*found.size, *size))
    factors = [*scale, 1.0]
    parts = {name: points * factors for name, points in found.parts.items()}
    area, box = found.area * scale.prod(), found.box * [*scale, *scale]
    return replace(found, keypoints=found.keypoints * factors, parts=parts, area=area, box=box, size=size)


def _of_people(found: People) -> NDArray[np.float64]:
    return whole(found) if found.parts else found.keypoints


def visible_inside(found: NDArray[np.float64], size: tuple[int, int]) -> float:
    """Share of the visible joints that lie in a picture of `size`; 1 where none is visible."""
    seen = found[found[..., 2] > 0, :2]
    return float(((seen >= 0) & (seen <= size)).all(1).mean()) if len(seen) else 1.0


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


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _frame(content: list[object]) -> object:
    """The only picture of a list, as ComfyUI's nodes write it. Raises BadKeypoints."""
    if len(content) != 1:
        raise BadKeypoints(f"a list of {len(content)} pictures, and a file has the name of one")
    return content[0]


def _size(content: Mapping[str, object]) -> tuple[int, int] | None:
    """Width and height of the picture, as we, ComfyUI or COCO write them; None where they are not there."""
    size = content.get("size")
    for keys in (("canvas_width", "canvas_height"), ("width", "height")):
        size = size or [content.get(key) for key in keys]
        size = None if None in size else size
    if size is None:
        return None
    if len(size) != 2 or not all(isinstance(side, (int, float)) and 0 < side < 1e9 for side in size):
        raise BadKeypoints(f"{size} is no size of a picture")
    return int(size[0]), int(size[1])


def _people(rows: list[dict], size: tuple[int, int] | None) -> People:
    """Of the rows of a file. Raises BadKeypoints."""
    try:
        found = people([_openpose(row) if "pose_keypoints_2d" in row else _ours(row) for row in rows], size)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BadKeypoints(f"a person with {what}") from error
    names = list(found.parts)
    points = _in_pixels([_checked(points) for points in (found.keypoints, *found.parts.values())], size)
    return replace(found, keypoints=points[0], parts=dict(zip(names, points[1:], strict=True)))


def _ours(row: dict) -> dict:
    """A row whose keypoints may be those of a whole body."""
    whole = _shaped(row["keypoints"])
    if len(whole) != 1:
        raise ValueError(f"{len(whole)} times 17 keypoints")
    return row | (parts_of(whole[0]) if whole.shape[1] == WHOLE else {"keypoints": whole[0]})


def _shaped(value: object) -> NDArray[np.float64]:
    """(P, K, 3) of people, flat people, or one person. Raises BadKeypoints."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:  # ragged lists, texts
        raise BadKeypoints("no numbers of one shape") from error
    if found.size == 0 and found.ndim:
        return np.zeros((0, JOINTS, 3))
    for keypoints in (JOINTS, WHOLE):
        if found.shape in {(keypoints, 3), (keypoints * 3,)}:
            return found.reshape(1, keypoints, 3)
        if found.shape[1:] in {(keypoints, 3), (keypoints * 3,)}:
            return found.reshape(-1, keypoints, 3)
    raise BadKeypoints(f"{found.shape} numbers, not people of {JOINTS} or {WHOLE} keypoints x, y, visibility")


def _checked(found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Zeros for joints that are not visible. Raises BadKeypoints for a visible joint that is nowhere."""
    if not (np.isfinite(found[..., 2]) | np.isnan(found).all(-1)).all():
        raise BadKeypoints("a visibility that is not a number")
    seen = found[..., 2:] > 0
    found = np.where(seen, found, 0)
    if not np.isfinite(found).all():
        raise BadKeypoints("a visible joint whose coordinates are not numbers")
    return found


def _in_pixels(found: list[NDArray[np.float64]], size: tuple[int, int] | None) -> list[NDArray[np.float64]]:
    """Points of a picture; where all of them lie between 0 and 1, these are shares of its sides. Raises BadKeypoints.

    A joint may be found a little outside, and whole numbers are pixels.
    """
    places = np.concatenate([points[points[..., 2] > 0, :2] for points in found])
    if not len(places) or np.abs(places).max() > LARGEST_SHARE or (places % 1 == 0).all():
        return found
    if size is None:
        raise BadKeypoints("coordinates from 0 to 1 without the size of their picture (canvas_width, canvas_height)")
    return [points * [*size, 1] for points in found]


def _openpose(row: dict) -> dict:
    joints = np.array(row["pose_keypoints_2d"] or [0.0] * 54, np.float64).reshape(-1, 3)
    if len(joints) not in OF_OPENPOSE:
        raise ValueError(f"{len(joints)} body keypoints, not 18 or 25")
    joints = joints[list(OF_OPENPOSE[len(joints)])]
    joints[(joints[:, 2] <= 0) | (joints[:, :2] < 0).any(1)] = 0
    seen = joints[:, 2] > 0
    score = float(joints[seen, 2].mean()) if seen.any() else 0.0
    return {"keypoints": joints, "score": score} | {name: row.get(key) for name, key in PARTS.items()}


def _coco(rows: list[dict], images: dict) -> tuple[dict[str, People], dict[str, list[str]]]:
    """(people by picture, pictures left out by reason): one broken person costs its picture, not the file."""
    given: dict[object, list[dict]] = {number: [] for number in images}
    for row in rows:
        if row.get("keypoints") is not None:
            given.setdefault(row.get("image_id"), []).append(row)
    files = {number: str(images.get(number, {}).get("file_name", number)) for number in given}
    named, several = by_name(
        {number: without_suffix(file.replace("\\", "/"), PICTURES) for number, file in files.items()}
    )
    found: dict[str, People] = {}
    left_out = {SEVERAL: [files[number] for number in several]}
    for name, number in named.items():
        try:
            found[name] = _people(given[number], _size(images.get(number, {})))
        except BadKeypoints as error:
            left_out.setdefault(f"{BROKEN}: {error}", []).append(name)
    return found, left_out
