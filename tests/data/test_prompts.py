"""The prompts option on files of every kind, its split, and its one-line refusals."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lpo_platform.config.errors import UserError
from lpo_platform.data import prompts as prompting
from lpo_platform.data.prompts import Prompts
from lpo_platform.data.source import alignment_of, guards_of
from lpo_platform.runs.csv_rows import CELLS, QUOTES
from lpo_platform.runs.given_files import BAD_CHARACTERS, NOT_TEXT

TEXTS = ["a cat", 'a sign with "u good?", in neon', "ein Übergang", "犬", "a cat", "two dogs"]


def open_prompts(path: Path, **options: object) -> Prompts:
    return Prompts(path, resolution=64, **options)


def everything(prompts: Prompts) -> list[str]:
    return sorted(prompts.train.captions + prompts.test.captions)


def json_file(content: object) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(content), encoding="utf-8")


def text_file(text: str) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text.encode())


def parquet_file(**columns: list) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


OBJECTS = [{"caption": text, "trainset_idx": i} for i, text in enumerate(TEXTS)]
CSV = "trainset_idx,caption\r\n" + "".join(
    f'{i},"{text}"\r\n' for i, text in enumerate(t.replace('"', '""') for t in TEXTS)
)

KINDS: list[tuple[str, Callable[[Path], None], dict[str, object]]] = [
    ("texts.json", json_file(TEXTS), {}),
    ("objects.json", json_file(OBJECTS), {}),
    ("prompt.json", json_file([{"prompt": text} for text in TEXTS]), {}),
    ("columns.json", json_file({"caption": TEXTS, "trainset_idx": list(range(6))}), {}),
    ("pandas.json", json_file({"caption": {str(i): text for i, text in enumerate(TEXTS)}}), {}),
    ("other.json", json_file([{"caption": "no", "mine": text} for text in TEXTS]), {"column": "mine"}),
    ("objects.jsonl", text_file("\n\n".join(json.dumps({"text": text}) for text in TEXTS)), {}),
    ("texts.jsonl", text_file("\r\n".join(map(json.dumps, TEXTS))), {}),
    ("lines.txt", text_file("\ufeff" + "\r\n".join(TEXTS) + "\n\n"), {}),
    ("table.csv", text_file("\ufeff" + CSV), {}),
    ("table.CSV", text_file(CSV), {"column": "caption"}),
    ("table.parquet", parquet_file(i=list(range(6)), prompt=TEXTS), {}),
]


@pytest.mark.parametrize(("name", "save", "options"), KINDS, ids=[kind[0] for kind in KINDS])
def test_every_kind_of_file_gives_its_prompts(
    tmp_path: Path, name: str, save: Callable[[Path], None], options: dict[str, object]
) -> None:
    save(tmp_path / name)
    prompts = open_prompts(tmp_path / name, num_test=1, seed=1, **options)
    held_out = prompts.test.captions
    assert len(held_out) == 1 and prompts.train.captions == [text for text in TEXTS if text not in held_out]
    assert prompts.report() == {"train": len(prompts.train), "test": 1, "skipped": {}, "noted": {}}


def test_items_have_an_id_and_a_caption(tmp_path: Path) -> None:
    json_file(TEXTS)(tmp_path / "p.json")
    prompts = open_prompts(tmp_path / "p.json", num_test=2)
    for split in (prompts.train, prompts.test):
        items = [split[i] for i in range(len(split))]
        assert all(item.image is None for item in items)
        assert [item.caption for item in items] == split.captions == [split.caption(i) for i in range(len(split))]
        assert len({item.id for item in items}) == len(items)
        with pytest.raises(IndexError):
            split[len(split)]
    assert alignment_of(prompts, torch.zeros(1, 3, 8, 8), ["x"]) is None
    assert guards_of(prompts, torch.zeros(1, 3, 8, 8), ["x"]) == {}


@given(
    texts=st.lists(
        st.sampled_from([f"{article} {thing}" for article in ("a", "A", "the") for thing in "uvwxyz"]), min_size=2
    ),
    num_test=st.integers(1, 30),
    seed=st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_the_split_is_complete_disjoint_and_keeps_duplicates_in_training(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], num_test: int, seed: int
) -> None:
    path = tmp_path_factory.mktemp("prompts") / "p.json"
    json_file(texts)(path)
    different = {text.lower() for text in texts}
    if len(different) < 2:
        with pytest.raises(UserError, match=r"1 different prompts leave .* what works: two different prompts or more"):
            open_prompts(path, num_test=num_test, seed=seed)
        return
    prompts = open_prompts(path, num_test=num_test, seed=seed)
    held_out = {text.lower() for text in prompts.test.captions}
    assert len(prompts.test) == len(held_out) == min(num_test, len(different) // 2)
    assert prompts.train.captions == [text for text in texts if text.lower() not in held_out]
    assert held_out <= different


def test_what_is_held_out_depends_on_the_texts_and_the_seed_and_not_on_their_order(tmp_path: Path) -> None:
    texts = [f"prompt {i}" for i in range(40)]
    found = {}
    for key, order, seed in (("a", texts, 0), ("b", texts[::-1], 0), ("c", texts, 1)):
        json_file(order)(tmp_path / f"{key}.json")
        found[key] = set(open_prompts(tmp_path / f"{key}.json", num_test=10, seed=seed).test.captions)
    assert found["a"] == found["b"] != found["c"]


def test_a_test_file_is_held_out_and_its_prompts_are_left_out_of_training(tmp_path: Path) -> None:
    json_file(TEXTS)(tmp_path / "p.json")
    text_file("TWO  dogs\nnew\ntwo dogs\nlast\n")(tmp_path / "t.txt")
    prompts = open_prompts(tmp_path / "p.json", test_path=tmp_path / "t.txt", num_test=2)
    assert prompts.test.captions == ["TWO dogs", "new"]
    assert prompts.train.captions == TEXTS[:-1]
    assert prompts.report()["skipped"] == {prompting.ALSO_TEST: {"count": 1, "examples": ["'two dogs'"]}}


def test_what_is_no_prompt_is_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text_file('{"text": "a"}\n{"text": ""}\n{broken\n{"text": null}\n"b"\n7\n{"other": "c"}\n')(tmp_path / "p.jsonl")
    prompts = open_prompts(tmp_path / "p.jsonl")
    assert everything(prompts) == ["a", "b"]
    assert prompts.report()["skipped"] == {
        prompting.NO_TEXT: {"count": 4, "examples": ["p.jsonl:2", "p.jsonl:4", "p.jsonl:6"]},
        prompting.BAD_LINE: {"count": 1, "examples": ["p.jsonl:3"]},
    }
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "4 entry without a prompt" in record.message


def bytes_file(*lines: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(b"\n".join(lines))


def broken_parquet(path: Path) -> None:
    given = pa.array([b"a", b"caf\xe9", b"b"])
    pq.write_table(pa.table({"prompt": pa.StringArray.from_buffers(3, *given.buffers()[1:3])}), path)


LATIN = "café".encode("latin-1")


@pytest.mark.parametrize(
    ("name", "save", "reason", "where"),
    [
        ("p.jsonl", bytes_file(b'"a"', b'{"prompt":"\\ud83d lone"}', b'"b"'), BAD_CHARACTERS, "2"),
        ("p.jsonl", bytes_file(b'"a"', b'"\\u0000"', b'"b"'), BAD_CHARACTERS, "2"),
        ("p.jsonl", bytes_file(b'"a"', b'"' + LATIN + b'"', b'"b"'), NOT_TEXT, "2"),
        ("p.jsonl", bytes_file(b'"a"', b'{"text": "x", "text": "y"}', b'"b"'), prompting.BAD_LINE, "2"),
        ("p.jsonl", bytes_file(b'"a"', b"[" * 100_000, b'"b"'), prompting.BAD_LINE, "2"),
        ("p.txt", bytes_file(b"a", LATIN, b"b"), NOT_TEXT, "2"),
        ("p.txt", bytes_file(b"a", b"x\0y", b"b"), NOT_TEXT, "2"),
        ("p.csv", bytes_file(b"caption", b"a", b"a cat, sitting on a mat", b"b"), CELLS, "3"),
        ("p.csv", bytes_file(b"caption", b"a", LATIN, b"b"), NOT_TEXT, "3"),
        ("p.csv", bytes_file(b"caption", b"a", b'"open', b"b"), QUOTES, "3"),
        ("p.csv", bytes_file(b"id,caption", b"1,a", b"2", b"3,b"), CELLS, "3"),
        ("p.parquet", broken_parquet, prompting.NO_TEXT, "1"),
        ("p.parquet", parquet_file(prompt=["a", "x\0y", "b"]), BAD_CHARACTERS, "1"),
        ("p.json", text_file('["a", "\\ud83d lone", "b"]'), BAD_CHARACTERS, "1"),
    ],
)
def test_an_entry_that_cannot_be_read_costs_itself(
    tmp_path: Path, name: str, save: Callable[[Path], None], reason: str, where: str
) -> None:
    save(tmp_path / name)
    prompts = open_prompts(tmp_path / name)
    assert everything(prompts) == ["a", "b"]
    assert prompts.report()["skipped"] == {reason: {"count": 1, "examples": [f"{name}:{where}"]}}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "text"), [("p.csv", CSV), ("p.txt", "\n".join(TEXTS)), ("p.json", json.dumps(TEXTS))])
def test_files_that_name_their_encoding_are_read(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert set(everything(open_prompts(tmp_path / name))) == set(TEXTS)


def test_the_fingerprint_depends_on_the_prompts_only(tmp_path: Path) -> None:
    json_file(TEXTS)(tmp_path / "p.json")
    text_file("\n".join(TEXTS))(tmp_path / "p.txt")
    json_file([*TEXTS, "one more"])(tmp_path / "q.json")
    first, again, other = (open_prompts(tmp_path / name, num_test=1) for name in ("p.json", "p.txt", "q.json"))
    assert first.train.fingerprint == again.train.fingerprint != other.train.fingerprint
    assert first.train.fingerprint != first.test.fingerprint


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        (
            "p.json",
            lambda path: None,
            "no such file; what works: a file of prompts (.json, .jsonl, .txt, .csv, .parquet)",
        ),
        ("p.json", Path.mkdir, "a folder; what works: a file of prompts"),
        ("p.docx", Path.touch, "another kind of file; what works: a file of prompts"),
        (
            "p.json",
            Path.touch,
            "cannot be read (Expecting value: line 1 column 1 (char 0)); what works: UTF-8 JSON, a list",
        ),
        ("p.json", json_file(7), "cannot be read (neither a list nor columns); what works"),
        ("p.json", json_file({"x": ["a"]}), "cannot be read (no key caption or prompt or text among x); what works"),
        ("p.json", json_file([1, None]), "no prompts [not used: 2 entry without a prompt (p.json:0, p.json:1)]; what"),
        ("p.txt", Path.touch, "no prompts; what works: UTF-8, one prompt a line"),
        (
            "p.txt",
            lambda path: path.write_bytes(b"\xff\xfe\x00"),
            "no prompts [not used: 1 text that is not UTF-8, ",
        ),
        (
            "p.csv",
            text_file("a,b\n1,2\n"),
            "cannot be read (no column caption or prompt or text among a, b; data.column=",
        ),
        ("p.csv", Path.touch, "cannot be read (no header); what works"),
        ("p.parquet", Path.touch, "cannot be read ("),
        ("p.parquet", parquet_file(other=["a"]), "cannot be read (no column caption or prompt or text among other"),
    ],
)
def test_a_file_that_gives_nothing_says_what_where_and_what_works(
    tmp_path: Path, name: str, save: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / name
    save(path)
    json_file(TEXTS)(tmp_path / "good.json")
    for setting, arguments in (
        ("path", {"path": path}),
        ("test_path", {"path": tmp_path / "good.json", "test_path": path}),
    ):
        with pytest.raises(UserError) as found:
            open_prompts(**arguments)
        assert str(found.value).startswith(f"data.{setting}={path}: {message}")
        assert "\n" not in str(found.value)


def test_a_number_of_held_out_prompts_below_one_is_refused(tmp_path: Path) -> None:
    json_file(TEXTS)(tmp_path / "p.json")
    with pytest.raises(UserError, match=r"data\.num_test=0; what works: 1 or more"):
        open_prompts(tmp_path / "p.json", num_test=0)
