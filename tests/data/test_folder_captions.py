"""Captions of somebody's folder: tables of ImageFolder, files beside the pictures, and what cannot be read of them."""

import json
import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toys.rows import scene

from lpo_platform.data import caption_files
from lpo_platform.data.folder import Folder
from lpo_platform.data.source import ENOUGH
from lpo_platform.evaluation.significance import MIN_ITEMS
from lpo_platform.runs.csv_rows import CELLS, QUOTES
from lpo_platform.runs.given_files import BAD_NAME, NOT_TEXT

NAMES = ("0.png", "sub/1.png", "2.png", "3.png")
SAID = {"0.png": "a cat, sitting", "sub/1.png": 'a "red" dog', "2.png": "café", "3.png": "two lines"}


def folder_of(path: Path, names: tuple[str, ...] = NAMES) -> Path:
    for i, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        scene(i).save(path / name)
    return path


def opened(path: Path, **options: object) -> Folder:
    return Folder(path, cache_folder=None, resolution=16, **options)


def captions(folder: Folder) -> dict[str, str]:
    return {picture.id: picture.caption for split in (folder.train, folder.test) for picture in split.pictures}


def skipped(folder: Folder) -> dict[str, list[str]]:
    return {reason: row["examples"] for reason, row in folder.report()["skipped"].items()}


def csv(path: Path) -> None:
    text = 'file_name,text\n0.png,"a cat, sitting"\nsub\\1.png,"a ""red"" dog"\n2.png,café\n3.png,"two\nlines"\n'
    path.with_suffix(".csv").write_bytes(text.encode("utf-8-sig"))


def jsonl(path: Path) -> None:
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in SAID.items()]
    path.with_suffix(".jsonl").write_bytes("\r\n".join(lines).encode("utf-16"))


def parquet(path: Path) -> None:
    table = pa.table({"file_name": list(SAID), "text": list(SAID.values()), "label": list(range(4))})
    pq.write_table(table, path.with_suffix(".parquet"))


@pytest.mark.parametrize("write", [csv, jsonl, parquet])
@pytest.mark.parametrize("stem", ["metadata", "captions"])
def test_imagefolders_tables_give_the_captions(tmp_path: Path, write: object, stem: str) -> None:
    write(folder_of(tmp_path) / stem)
    folder = opened(tmp_path)
    assert captions(folder) == SAID and not skipped(folder)
    assert folder.report()["captions"] == {"jsonl" if write is jsonl else "table": 4}
    kind = "jsonl" if write is jsonl else "table"
    assert captions(opened(tmp_path, captions=kind)) == SAID


def test_a_table_in_a_folder_below_names_what_lies_there(tmp_path: Path) -> None:
    folder_of(tmp_path)
    (tmp_path / "sub" / "metadata.csv").write_text("file_name,caption\n1.png,below\n")
    assert captions(opened(tmp_path))["sub/1.png"] == "below"


def test_files_beside_pictures_give_captions(tmp_path: Path) -> None:
    folder_of(tmp_path, ("0.png", "1.PNG", "2.png", "3.png", "4.png", "5.png"))
    (tmp_path / "0.TXT").write_bytes("\ufeffcafé".encode())
    (tmp_path / "1.caption").write_bytes("one".encode("utf-16"))
    (tmp_path / "2.json").write_text('{"caption": "two", "width": 3}')
    (tmp_path / "3.png.txt").write_text("three")
    (tmp_path / "4.txt").write_text(" ")
    (tmp_path / "4.caption").write_text("four")
    (tmp_path / "5.json").write_text('{"prompt": ["five", "other"]}')
    folder = opened(tmp_path)
    assert captions(folder) == {
        "0.png": "café", "1.PNG": "one", "2.png": "two", "3.png": "three", "4.png": "four", "5.png": "five",
    }  # fmt: skip
    assert not skipped(folder) and folder.report()["captions"] == {"sidecar": 6}


def test_captions_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, tuple(f"{i}.png" for i in range(7)))
    (tmp_path / "0.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "1.txt").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "2.txt")
    (tmp_path / "3.json").write_text('{"width": 3}')
    (tmp_path / "4.json").write_text('{"text": "\\ud83d"}')
    (tmp_path / "5.json").write_text("[" * 100_000)
    (tmp_path / "metadata.jsonl").symlink_to("/dev/zero")
    folder = opened(tmp_path)
    assert set(captions(folder).values()) == {""}
    assert skipped(folder) == {
        caption_files.BAD_TEXT: ["0.txt", "1.txt", "2.txt"],
        caption_files.BAD_JSON: ["3.json"],
        caption_files.BAD_CHARACTERS: ["4.json"],
        caption_files.BAD_TABLE: ["metadata.jsonl"],
    }


def test_rows_of_a_table_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, ("0.png", "1.png", "2.png"))
    rows = [
        b"file_name,text", b"0.png,a cat, sitting", b"1.png,caf\xe9", b'2.png,"open', b"gone.png,x", b"2.png,good",
        b"2.png,better", b"../2.png,outside",
    ]  # fmt: skip
    (tmp_path / "metadata.csv").write_bytes(b"\n".join(rows))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "metadata.csv").write_text("a,b\n1,2\n")
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    (tmp_path / "captions.csv").touch()
    folder = opened(tmp_path)
    assert captions(folder)["2.png"] == "good"
    assert skipped(folder) == {
        CELLS: ["metadata.csv:2"],
        NOT_TEXT: ["metadata.csv:3"],
        QUOTES: ["metadata.csv:4"],
        caption_files.NO_SUCH_FILE: ["metadata.csv:5 gone.png", "metadata.csv:8 ../2.png"],
        caption_files.ANOTHER: ["metadata.csv:7"],
        caption_files.BAD_LINE: ["sub/metadata.csv:2"],
        caption_files.BAD_TABLE: ["captions.csv", "captions.parquet"],
    }


def test_pictures_of_one_name_share_a_caption_and_it_is_said(tmp_path: Path) -> None:
    folder_of(tmp_path, ("1.png", "1.jpg", "scene.v1.png", "scene.v2.png"))
    for name in ("1", "scene.v1", "scene.v2"):
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    folder = opened(tmp_path)
    assert captions(folder) == {
        "1.png": "text of 1", "1.jpg": "text of 1", "scene.v1.png": "text of scene.v1",
        "scene.v2.png": "text of scene.v2",
    }  # fmt: skip
    assert folder.report()["noted"][caption_files.SHARED]["count"] == 2


def test_a_file_whose_name_is_not_unicode_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder_of(tmp_path, ("0.png", "1.png", "2.png"))
    os.rename(tmp_path / "1.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    folder = opened(tmp_path)
    assert set(captions(folder)) == {"0.png", "2.png"} and skipped(folder) == {BAD_NAME: ["caf\\udce9.png"]}
    caplog.text.encode()


@pytest.mark.parametrize(
    ("number", "fraction", "hint"),
    [
        (12, 0.1, "1 held out are too few for a verdict, which takes 6; what works: data.test_fraction=0.5"),
        (60, 0.05, "3 held out are too few for a verdict, which takes 6; what works: data.test_fraction=0.1"),
        (4, 0.5, "2 held out are too few for a verdict, which takes 6; what works: 12 different pictures and"),
        (12, 0.5, None),
    ],
)
def test_too_few_held_out_pictures_are_said_with_what_holds_out_enough(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, fraction: float, hint: str | None
) -> None:
    folder_of(tmp_path, tuple(f"a thing {chr(97 + i % 26)}{'x' * (i // 26)}.png" for i in range(number)))
    opened(tmp_path, test_fraction=fraction)
    said = [
        record.getMessage() for record in caplog.records
        if record.name.startswith("lpo_platform") and record.levelno >= logging.WARNING
    ]  # fmt: skip
    assert any(hint in line for line in said) if hint else said == []
    if hint and number >= 12:
        assert len(opened(tmp_path, test_fraction=float(hint.rpartition("=")[2])).test) == ENOUGH == MIN_ITEMS
