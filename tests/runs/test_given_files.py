"""What is opened, how text is decoded, and where a path points: one rule for all readers of somebody else's files."""

import codecs
import os
from pathlib import Path

import pytest

from lpo_platform.runs.csv_rows import CELLS, QUOTES, Bad, table
from lpo_platform.runs.given_files import (
    NOT_TEXT,
    by_name,
    clean,
    json_of,
    lines_of,
    place,
    read_bytes,
    shown,
    text_of,
    without_suffix,
)

CAFE = "café\nnoir"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_in_every_form_that_names_itself(encoding: str) -> None:
    assert text_of(CAFE.encode(encoding)) == CAFE and lines_of(CAFE.encode(encoding)) == ["café", "noir"]


@pytest.mark.parametrize("mark", ["be", "le"])
def test_both_orders_of_bytes_are_read(mark: str) -> None:
    marks = {"be": codecs.BOM_UTF16_BE, "le": codecs.BOM_UTF16_LE}
    assert text_of(marks[mark] + CAFE.encode(f"utf-16-{mark}")) == CAFE


@pytest.mark.parametrize("data", [CAFE.encode("latin-1"), CAFE.encode("utf-16-le"), b"a\0b", b"\xff\xfe\x00"])
def test_what_is_no_unicode_is_not_guessed(data: bytes) -> None:
    with pytest.raises(ValueError):
        text_of(data)


def test_a_line_that_is_no_text_leaves_the_others() -> None:
    assert lines_of(b"a\r\n" + "é\r".encode("latin-1") + b"b") == ["a", None, "b"]
    assert lines_of("a\u2028b\x85c\n".encode()) == ["a\u2028b\x85c"], "these end no line of a file"


@pytest.mark.parametrize("value", ["\ud83d lone", "a\0b", None, 7, ["a"], "", " \n"])
def test_what_no_prompt_can_be_is_empty(value: object) -> None:
    assert clean(value) == ""
    assert clean(" a \n b\u00a0c ") == "a b c"


@pytest.mark.parametrize("source", ['{"a": 1, "a": 2}', "[" * 100_000, "{", "9" * 5000, ""])
def test_json_that_does_not_say_one_thing_is_a_value_error(source: str) -> None:
    with pytest.raises(ValueError):
        json_of(source)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "to").symlink_to("good")
    names = ["pipe", "link", ".", "gone", "a\0b", "\ud83d", "x" * 300, "good/below"]
    for name in [*map(tmp_path.joinpath, names), "/dev/zero", "/dev/stdin"]:
        with pytest.raises(OSError):
            read_bytes(name)
    assert read_bytes(tmp_path / "to") == b"x"


def test_a_path_is_the_file_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/0.png", "a\\b.png", "cafe\u0301.png"):
        (tmp_path / name).touch()
    assert place(tmp_path, "sub\\0.png") == tmp_path / "sub/0.png"
    assert place(tmp_path, "a\\b.png") == tmp_path / "a\\b.png", "a file may have this name"
    assert place(tmp_path, "caf\u00e9.png").name == "cafe\u0301.png"


def test_dots_belong_to_names_and_equal_names_are_nobodys() -> None:
    assert [without_suffix(name, (".png",)) for name in ("scene.v1", "scene.v1.PNG", ".png")] == [
        "scene.v1", "scene.v1", ".png",
    ]  # fmt: skip
    assert by_name({1: "train/a", 2: "val/b"}) == ({"a": 1, "b": 2}, [])
    assert by_name({1: "train/a", 2: "val/a"}) == ({"train/a": 1, "val/a": 2}, [])
    assert by_name({1: "x/1", 2: "x/1", 3: "2"}) == ({"2": 3}, [1, 2])


def test_names_can_be_printed() -> None:
    assert shown("café 犬") == "café 犬" and shown("a\udce9\n\x1b[2J") == "a\\udce9\\n\\x1b[2J"
    shown("\ud83d").encode()


def rows(text: str | bytes) -> list[tuple[int, object]]:
    return [
        (line, row if isinstance(row, Bad) else tuple(row.values()))
        for line, row in table(text if isinstance(text, bytes) else text.encode())[1]
    ]


def test_rows_of_a_csv_are_whole_or_named() -> None:
    text = 'file,caption\na.png,"a cat, sitting"\nb.png,a cat, sitting\nc.png\n\nd.png,"two\nlines"\ne.png,5" tall,,\n'
    assert rows(text) == [
        (2, ("a.png", "a cat, sitting")), (3, CELLS), (4, CELLS), (6, ("d.png", "two\nlines")),
        (8, ("e.png", '5" tall')),
    ]  # fmt: skip


def test_a_quote_that_does_not_close_costs_one_row() -> None:
    assert rows('c\n"open\nb\n"x" y\nlast\n') == [(2, QUOTES), (3, ("b",)), (4, QUOTES), (5, ("last",))]
    many = 'c\n"open\n' + "b\n" * 3
    assert [row for _, row in rows(many)] == [QUOTES, ("b",), ("b",), ("b",)]


def test_a_row_that_is_no_text_costs_itself() -> None:
    assert rows(b"c\r\na\r\ncaf\xe9\r\nb\r\n") == [(2, ("a",)), (3, NOT_TEXT), (4, ("b",))]
    assert rows("c\na\n".encode("utf-16")) == [(2, ("a",))]
    assert rows("c\n" + "x" * 200_000 + "\nb\n") == [(2, QUOTES), (3, ("b",))], "a cell beyond csv's limit"


@pytest.mark.parametrize("text", ["", "\n\n", "a,a\n1,2\n", '"a\n'])
def test_a_table_without_a_header_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        table(text.encode())
