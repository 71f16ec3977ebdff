"""Rows that somebody else has written: each is read as it was meant, or left out with its name and its reason."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from toys.rows import LAYOUTS, Row, png, scene, tar, write

from lpo_platform.config.errors import UserError
from lpo_platform.data import captioned
from lpo_platform.data.captioned import Captioned
from lpo_platform.data.picture_files import UNREADABLE, WORDY
from lpo_platform.data.source import first
from lpo_platform.data.tables import decode, json_lines, webdataset
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.methods.rollouts import Items
from lpo_platform.runs.given_files import NOT_TEXT
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.seg_ade20k import SegAde20k
from lpo_platform.tasks.task import Task

SIDE = 64
ORIENTATION = 0x0112


def opened(path: Path, task: Task | None = None, **columns: object) -> Captioned:
    return Captioned(str(path), cache_folder=None, resolution=SIDE, task=task, **columns)


def pose() -> Pose:
    return Pose(pretrained=False, people=None, resolution=SIDE)


def samples(data: Captioned) -> dict[str, Tensor]:
    """The labels of the usable rows by caption."""
    return {s.caption: s.labels for split in (data.train, data.test) for s in usable(split)}


def usable(split: captioned.CaptionedRows) -> list:
    found = []
    for i in range(len(split)):
        with contextlib.suppress(Unusable):
            found.append(split[i])
    return found


def reasons(data: Captioned) -> dict[str, str]:
    """Why rows cannot be used, by caption."""
    found = {}
    for split in (data.train, data.test):
        for i in range(len(split)):
            try:
                split[i]
            except Unusable as error:
                assert error.where.startswith("train-00000") and " in train" in error.where
                found[split.caption(i)] = error.reason
    return found


def nose(x: float, y: float) -> list:
    person = np.zeros((17, 3))
    person[0] = x, y, 2
    return person.tolist()


def jpeg(width: int, height: int, orientation: int = 1) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = orientation
    scene(0, width, height).save(file, "JPEG", exif=exif)
    return file.getvalue()


# Keypoints stand in the pixels of the whole, upright picture.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keypoints_beside_a_large_jpeg_are_where_they_are_beside_a_png(tmp_path: Path, layout: str) -> None:
    """A JPEG is decoded in reduced form, and turned where its EXIF block says so."""
    rows = [
        {"image": jpeg(1024, 1024), "text": "jpeg", "pose": [nose(512, 512)]},
        {"image": png(scene(0, 1024, 1024)), "text": "png", "pose": [nose(512, 512)]},
        {"image": jpeg(1600, 800), "text": "wide", "pose": [nose(400, 600)]},
        {"image": jpeg(1600, 800, 6), "text": "turned", "pose": [nose(200, 1200)]},
        {"image": jpeg(1600, 800, 3), "text": "upside down", "pose": [nose(400, 600)]},
    ]
    found = samples(opened(write(tmp_path, rows, layout), pose(), labels="pose", num_test=1))
    wanted = {"jpeg": [32, 32], "png": [32, 32], "wide": [16, 48], "turned": [16, 48], "upside down": [16, 48]}
    assert {caption: people[0, 0].tolist() for caption, people in found.items()} == {
        caption: [*place, 1] for caption, place in wanted.items()
    }


BODY = np.c_[np.linspace(2, 38, 17), np.linspace(2, 28, 17), np.full(17, 2.0)]
SHARES = (BODY / [40, 30, 1]).tolist()


@pytest.mark.parametrize(
    "cell",
    [
        [BODY.tolist()],
        BODY.tolist(),
        BODY.flatten().tolist(),
        [BODY.flatten().tolist()],
        [{"keypoints": BODY.flatten().tolist(), "score": 0.9}],
        {"keypoints": BODY.tolist()},
        json.dumps(BODY.tolist()),
        SHARES,
        {"people": [{"keypoints": SHARES}], "canvas_width": 40, "canvas_height": 30},
        {"people": [{"keypoints": (BODY * [2, 2, 1]).tolist()}], "canvas_width": 80, "canvas_height": 60},
    ],
)
def test_every_form_of_a_person_is_that_person(tmp_path: Path, cell: object) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "pose": cell} for i in range(2)]
    for labels in samples(opened(write(tmp_path, rows, "jsonl"), pose(), labels="pose")).values():
        torch.testing.assert_close(labels, torch.from_numpy((BODY * [1.6, SIDE / 30, 0.5])[None]).float())


def test_a_joint_that_is_not_there_may_have_no_number(tmp_path: Path) -> None:
    absent = BODY.copy()
    absent[3] = np.nan
    absent[4] = np.nan, np.nan, 0
    rows = [{"image": png(scene(i)), "text": str(i), "pose": [absent.tolist()]} for i in range(2)]
    for labels in samples(opened(write(tmp_path, rows, "parquet"), pose(), labels="pose")).values():
        assert not labels[0, 3:5].any() and labels[0, :, 2].sum() == 15


@pytest.mark.parametrize(
    "cell",
    [
        np.where(np.arange(3) == 0, np.nan, BODY).tolist(),
        np.where(np.arange(3) == 1, np.inf, BODY).tolist(),
        np.where(np.arange(3) == 2, np.inf, BODY).tolist(),
        BODY[:, :2].tolist(),
        [1.0, 2.0],
        [[BODY.tolist()]],
        "no person",
        7,
        [[1, 2], [3]],
        [{"keypoints": "x"}],
        [{"no": "keypoints"}],
        {"people": 3},
        (BODY + np.array([100, 0, 0])).tolist(),
        (BODY - np.array([100, 0, 0])).tolist(),
        {"people": [{"keypoints": BODY.tolist()}], "canvas_width": 30, "canvas_height": 40},
    ],
)
def test_what_are_no_people_of_their_picture_is_named(tmp_path: Path, cell: object) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "pose": cell if i else [BODY.tolist()]} for i in range(3)]
    data = opened(write(tmp_path, rows, "jsonl"), pose(), labels="pose", num_test=1)
    assert set(samples(data)) <= {"0"}
    assert set(reasons(data)) >= {"1", "2"} and "keypoints" in str(reasons(data))


# Label maps.

LABELS = np.random.default_rng(0).integers(0, 151, (30, 40))


def paletted(labels: np.ndarray) -> bytes:
    image = Image.fromarray(labels.astype(np.uint8), "L").convert("P")
    image.putdata(labels.flatten().tolist())
    return png(image)


@pytest.mark.parametrize(
    "cell",
    [
        LABELS.tolist(),
        LABELS.astype(float).tolist(),
        [LABELS.tolist()],
        png(Image.fromarray(LABELS.astype(np.uint8))),
        png(Image.fromarray(LABELS.astype(np.uint16))),
        paletted(LABELS),
    ],
)
def test_every_form_of_a_label_map_is_that_map(tmp_path: Path, cell: object) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "map": cell} for i in range(2)]
    resized = Image.fromarray(LABELS.astype(np.int32)).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    for labels in samples(opened(write(tmp_path, rows, "parquet"), SegAde20k(pretrained=False), labels="map")).values():
        assert torch.equal(labels[0], torch.from_numpy(np.array(resized)).float())


def lossy(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels.astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def one(number: float) -> list:
    labels = LABELS.astype(object)
    labels[3, 4] = number
    return labels.tolist()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (one(151), decode.OUTSIDE),
        (one(-1), decode.OUTSIDE),
        (one(10**30), decode.OUTSIDE),
        (one(0.5), decode.NO_MAP),
        (one(float("nan")), decode.NO_MAP),
        (one(None), decode.NO_MAP),
        ([], decode.NO_MAP),
        ([[]], decode.NO_MAP),
        ([[1, 2], [3]], decode.NO_MAP),
        ([BODY.tolist()] * 2, decode.NO_MAP),
        ("7", decode.NO_MAP),
        (LABELS.T.tolist(), decode.TURNED),
    ],
)
def test_a_label_map_that_is_none_is_named(tmp_path: Path, cell: object, reason: str) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "map": cell if i == 1 else LABELS.tolist()} for i in range(3)]
    data = opened(write(tmp_path, rows, "jsonl"), SegAde20k(pretrained=False), labels="map", num_test=1)
    assert reasons(data) == {"1": reason} and set(samples(data)) == {"0", "2"}


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (lossy(LABELS), decode.LOSSY),
        (png(scene(0)), decode.NO_MAP),
        (png(Image.fromarray(LABELS.astype(np.uint8)))[:200], f"label map {UNREADABLE}"),
        (png(Image.fromarray(LABELS.astype(np.uint16) + 300)), decode.OUTSIDE),
    ],
)
def test_a_picture_that_is_no_label_map_is_named(tmp_path: Path, cell: bytes, reason: str) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "map": cell} for i in range(2)]
    data = opened(write(tmp_path, rows, "parquet"), SegAde20k(pretrained=False), labels="map")
    assert reasons(data) == {"0": reason, "1": reason}


def test_labels_of_a_task_without_labels_are_refused(tmp_path: Path) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "map": LABELS.tolist()} for i in range(2)]
    with pytest.raises(UserError, match=r"data.labels=map: task=canny has no labels"):
        opened(write(tmp_path, rows, "parquet"), Canny(), labels="map")


# Labels and condition of a row are of one picture.


def test_a_condition_of_other_labels_is_named(tmp_path: Path) -> None:
    """A drawing of other people, of nobody, of the right ones; label colours of another map."""
    task = pose()
    there, elsewhere = (task.render(torch.from_numpy(p[None, None]).float())[0] for p in (SMALL, LOW))
    drawn = {"right": there, "other": elsewhere, "nothing": torch.zeros_like(there)}
    rows = [
        {"image": png(scene(0, SIDE, SIDE)), "text": name, "c": picture(image), "pose": [SMALL.tolist()]}
        for name, image in drawn.items()
    ]
    rows.append(rows[0] | {"text": "nobody", "pose": []})
    found = reasons(opened(write(tmp_path / "p", rows, "jsonl"), task, condition="c", labels="pose", num_test=1))
    assert found == dict.fromkeys(("other", "nothing", "nobody"), decode.DISAGREE)
    seg = SegAde20k(pretrained=False)
    colours = seg.render(torch.from_numpy(LABELS)[None, None].float())[0]
    rows = [
        {"image": png(scene(0)), "text": name, "c": picture(colours), "map": labels.tolist()}
        for name, labels in (("right", LABELS), ("other", (LABELS + 1) % 151))
    ]
    found = reasons(opened(write(tmp_path / "s", rows, "parquet"), seg, condition="c", labels="map"))
    assert list(found) == ["other"] and found["other"].startswith(decode.DISAGREE)


SMALL = np.c_[np.linspace(5, 55, 17), np.full(17, 10) + np.arange(17) % 3, np.ones(17)]


LOW = SMALL + np.array([0, 30, 0])


def picture(image: Tensor) -> bytes:
    return png(Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()))


def test_a_condition_that_was_not_turned_with_its_picture_is_named(tmp_path: Path) -> None:
    rows = [
        {"image": jpeg(80, 64, orientation), "text": str(orientation), "c": png(scene(1, 80, 64))}
        for orientation in (1, 3, 6, 8)
    ]
    data = opened(write(tmp_path, rows, "parquet"), Canny(), condition="c", num_test=1)
    assert reasons(data) == {"6": decode.TURNED, "8": decode.TURNED}


def test_held_out_rows_that_cannot_be_used_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"image": png(scene(i)), "text": str(i), "map": one(151) if i % 2 else LABELS.tolist()} for i in range(6)]
    data = opened(write(tmp_path, rows, "jsonl"), SegAde20k(pretrained=False), labels="map", num_test=3)
    broken = reasons(data)
    found = first(data.test, 9)
    assert len(found) == 3 - sum(data.test.caption(i) in broken for i in range(3)) and decode.OUTSIDE in caplog.text
    caplog.clear()
    taken = Items(data.train, [0, 1, 2])
    assert not {sample.caption for sample in (taken[0], taken[1], taken[2])} & set(broken)
    assert "the next row that can be used takes its place" in caplog.text
    rows = [row | {"map": one(151)} for row in rows]
    data = opened(write(tmp_path / "all", rows, "jsonl"), SegAde20k(pretrained=False), labels="map", num_test=3)
    with pytest.raises(UserError, match=r"none of 3 .*rows can be used .*class.*train-000000"):
        first(data.test, 9)
    with pytest.raises(UserError, match="none of 3 rows can be used"):
        Items(data.train, [0])[0]


# Texts and paths.


def test_texts_that_are_none_cost_their_row(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(png(scene(i)))
    lines = [
        '{"image": "0.png", "text": "good"}', '{"image": "0.png", "text": "\\ud83d lone"}',
        '{"image": "0.png", "text": 7}',
        '{"image": "0.png", "text": "a", "text": "b"}', '{"image": "0.png", "text": ["list", "\\ud83d"]}',
        '{"image": "0.png", "text": "\\u0000"}', "[" * 10_000, '{"image": "1.png", "text": ["list", "other"]}',
    ]  # fmt: skip
    data = [line.encode() for line in lines] + ['{"image": "0.png", "text": "café"}'.encode("latin-1")]
    (tmp_path / "train.jsonl").write_bytes(codecs_bom() + b"\r\n".join(data) + b"\n")
    found = opened(tmp_path, num_test=1)
    assert {s.caption for split in (found.train, found.test) for s in usable(split)} == {"good", "list"}
    skipped = {reason: row["count"] for reason, row in found.report()["skipped"].items()}
    assert skipped == {captioned.NO_CAPTION: 4, json_lines.BAD_LINE: 2, NOT_TEXT: 1}
    assert found.report()["skipped"][NOT_TEXT]["examples"] == ["train.jsonl:9"]


def codecs_bom() -> bytes:
    return "\ufeff".encode()


def test_a_parquet_file_whose_text_is_no_utf8_costs_its_row(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"caf\xe9", b"also good"]).view(pa.binary()).cast(pa.binary())
    texts = pa.StringArray.from_buffers(3, *broken.buffers()[1:3])
    images = pa.array([png(scene(i)) for i in range(3)])
    pq.write_table(pa.table({"image": images, "text": texts}), tmp_path / "train.parquet")
    found = opened(tmp_path)
    assert {found.train.caption(0), found.test.caption(0)} == {"good", "also good"}
    named = found.report()["skipped"][captioned.NO_CAPTION]["examples"]
    assert named == ["train-0000001 in train.parquet, row 1"]


def test_a_path_leads_to_a_regular_file_or_its_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(png(scene(0)))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    bad = ["/dev/zero", "pipe.png", "link.png", "images", "a\0b.png", "gone.png", "x" * 300, "\ud83d.png", 7]
    rows = [{"image": image, "text": str(i)} for i, image in enumerate(["images\\0.png", "images/0.png", *bad])]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = opened(tmp_path, num_test=1)
    told = reasons(data)
    assert set(told) == {str(i) for i in range(2, 11)}
    assert set(told.values()) == {captioned.LOST, decode.NO_PICTURE}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_with_megabytes_of_text_is_named_with_this_reason(tmp_path: Path, layout: str) -> None:
    file, words = io.BytesIO(), PngInfo()
    words.add_text("workflow", "x" * 2_000_000, zip=True)
    scene(0).save(file, "PNG", pnginfo=words)
    rows = [{"image": png(scene(i)) if i else file.getvalue(), "text": str(i)} for i in range(3)]
    data = opened(write(tmp_path, rows, layout), num_test=1)
    assert reasons(data) == {"0": f"picture {WORDY}"}


def test_archives_read_their_texts_by_the_same_rule(tmp_path: Path) -> None:
    image = png(scene(0))
    members: list[Row] = [
        {"a.png": image, "a.TXT": "\ufeff café".encode()},
        {"b.PNG": image, "b.caption": "b".encode("utf-16")},
        {"c.png": image, "c.JSON": json.dumps({"text": "c"}).encode("utf-8-sig")},
        {"d.png": image, "d.txt": "café".encode("latin-1")},
        {"e.png": image, "e.json": b"[1]"},
        {"f.png": image, "f.jpg": image, "f.txt": b"f"},
        {"scene.v1.png": image, "scene.v1.txt": b"x", "scene.v2.png": image, "scene.v2.txt": b"y"},
        {"g.png": image, "g.txt": b"same", "g.json": b'{"text": "same"}'},
        {"h.png": image, "h.txt": b"one", "h.json": b'{"text": "other"}'},
    ]
    tar(tmp_path / "train-000000.tar", members)
    for _ in range(2):  # the second time from the index
        data = Captioned(str(tmp_path), cache_folder=str(tmp_path / "index"), resolution=SIDE, num_test=1)
        assert {s.caption for split in (data.train, data.test) for s in usable(split)} == {"café", "b", "c", "same"}
        skipped = {reason: row["count"] for reason, row in data.report()["skipped"].items()}
        assert skipped == {
            NOT_TEXT: 1, webdataset.BAD_JSON: 1, webdataset.TWICE: 2, webdataset.INCOMPLETE: 1,
        }, data.report()  # fmt: skip
