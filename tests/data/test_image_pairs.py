"""Pairs of pictures from real parquet and arrow files: what an item is, what is left out, and that it is said."""

import io
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision import transforms
from toys.image_pairs import LABELS, LAYOUTS, SPLITS, R, encoded, fill, parquet_files, row, saved

from lpo_platform.config.errors import UserError
from lpo_platform.config.paths import is_hub_id
from lpo_platform.data import image_pairs as pairing
from lpo_platform.data.image_pairs import ImagePairs
from lpo_platform.data.score_file import Scores, write_scores
from lpo_platform.data.source import alignment_of, guards_of
from lpo_platform.data.tables import parquet
from lpo_platform.data.tables.decode import BROKEN, NO_PICTURE, Unusable


def open_pairs(path: Path | str, **options: object) -> ImagePairs:
    return ImagePairs(path, resolution=R, **options)


def expected(data: bytes) -> torch.Tensor:
    """As torchvision resizes a picture that Pillow opened: bilinear, antialiased, both sides."""
    with Image.open(io.BytesIO(data)) as image:
        square = image.convert("RGB").resize((R, R), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255


def counts(data: ImagePairs, kind: str = "skipped") -> dict[str, int]:
    return {reason: found["count"] for reason, found in data.report()[kind].items()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_every_row_in_order(tmp_path: Path, layout: str) -> None:
    rows = [row(i) for i in range(11)]
    data = open_pairs(fill(tmp_path, rows, layout, files=3, group=2))
    assert (len(data.train), len(data.validation), len(data.test)) == (11, 2, 2)
    assert data.train.captions == [r["caption"] for r in rows] == [data.train.caption(i) for i in range(11)]
    for i, source in enumerate(rows):
        item = data.train[i]
        assert item.id == f"train-{i:07d}" and item.caption == source["caption"] and item.gaps is None
        assert item.images.shape == (2, 3, R, R) and item.images.dtype == torch.float32 and item.images.is_contiguous()
        assert torch.equal(item.images, torch.stack([expected(source["jpg_0"]), expected(source["jpg_1"])]))
        first, second = LABELS[i % 3]
        assert item.labels.tolist() == [[0.5, first], [second, 0.5]] and item.labels.dtype == torch.float32
        assert data.train.weights[i].item() == pytest.approx(1 / (1 + i % 4))
    assert torch.equal(data.test[1].images[0], expected(row(201)["jpg_0"]))
    assert torch.equal(data.validation[0].images[1], expected(row(100)["jpg_1"]))
    with pytest.raises(IndexError):
        data.train[11]
    assert alignment_of(data, torch.zeros(1, 3, 8, 8), ["x"]) is None
    assert guards_of(data, torch.zeros(1, 3, 8, 8), ["x"]) == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_order_threads_and_a_copy_in_another_process_give_the_same(tmp_path: Path, layout: str) -> None:
    rows = [row(i) for i in range(150)]
    data = open_pairs(fill(tmp_path, rows, layout, files=2, group=50)).train
    whole = [data[i].images for i in range(150)]
    for i in np.random.default_rng(0).permutation(150)[:60].tolist():
        assert torch.equal(data[i].images, whole[i])
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a.images, b) for a, b in zip(pool.map(data.__getitem__, range(150)), whole, strict=True))
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[70].images, whole[70]) and copy.fingerprint == data.fingerprint


def test_rows_in_rising_order_open_every_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_pairs(fill(tmp_path, [row(i) for i in range(90)], files=2, group=30)).train
    started = []
    start = parquet.Cursor._start
    monkeypatch.setattr(parquet.Cursor, "_start", lambda cursor, at: (started.append(at[:2]), start(cursor, at)))
    for i in range(0, 90, 2):
        data[i]
        data[max(i - 20, 0)]  # as late as a thread may be
    assert len(started) == len(set(started)) == 4


def test_pictures_of_other_kinds_and_as_datasets_stores_them(tmp_path: Path) -> None:
    rows = [row(0, jpg_0=encoded(0, "PNG"), jpg_1=encoded(1, "WEBP"))]
    data = open_pairs(fill(tmp_path / "a", rows))
    assert torch.equal(data.train[0].images[1], expected(rows[0]["jpg_1"]))
    stored = [row(i, **{k: {"bytes": encoded(2 * i), "path": None} for k in pairing.PICTURES}) for i in range(2)]
    for layout in LAYOUTS:
        fill(tmp_path / layout, stored, layout)
        assert torch.equal(open_pairs(tmp_path / layout).train[1].images[1], expected(encoded(2)))


def test_labels_decide_what_is_used(tmp_path: Path) -> None:
    nothing, labels = {"label_0": None, "label_1": None}, {"label_0": 0.0, "label_1": 0.0}
    odd = [
        row(0, caption=None),
        row(1, caption=" \n"),
        row(2, label_1=None),
        row(3, **nothing),
        row(4, **labels),
        row(5, label_0=2.0, label_1=-1.0),
        row(6, has_label=False),
        row(7, num_example_per_prompt=None),
        row(8, num_example_per_prompt=0),
        row(9),
    ]
    for name in SPLITS:
        parquet_files(tmp_path, name, odd)
    data = open_pairs(tmp_path)
    ids = {name: [split.id(i)[-1] for i in range(len(split))] for name, split in (("t", data.train), ("e", data.test))}
    assert ids == {"t": list("6789"), "e": list("789")}  # only what is evaluated is restricted by has_label
    assert data.train.positions.tolist() == [6, 7, 8, 9] and data.train.num_rows == 10
    assert data.train.preferred.tolist() == [LABELS[i % 3][0] for i in (6, 7, 8, 9)]
    assert len(data.validation) == 3
    assert data.train.weights[1:3].tolist() == [1.0, 1.0]
    assert counts(data) == {pairing.NO_CAPTION: 6, pairing.NO_LABEL: 8, pairing.BAD_LABEL: 6}
    assert counts(data, "noted") == {pairing.NO_COUNT: 6}


def test_optional_columns_may_be_absent(tmp_path: Path) -> None:
    rows = [row(i) for i in range(3)]
    for source in rows:
        del source["has_label"], source["num_example_per_prompt"]
    for name in SPLITS:
        parquet_files(tmp_path, name, rows)
    data = open_pairs(tmp_path)
    assert len(data.test) == 3 and data.train.weights[2] == 1.0


def broken(i: int) -> dict[str, tuple[dict[str, object], str]]:
    whole = encoded(2 * i, width=200, height=200)
    return {
        "nothing": (row(i, jpg_0=None), NO_PICTURE),
        "empty": (row(i, jpg_1=b""), NO_PICTURE),
        "nonsense": (row(i, jpg_0=b"this is no picture"), BROKEN),
        "truncated": (row(i, jpg_1=whole[: len(whole) // 2]), BROKEN),
        "tiny": (row(i, jpg_0=encoded(1, width=8)), "picture smaller than 16 px"),
        "postscript": (row(i, jpg_0=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n"), BROKEN),
    }


@pytest.mark.parametrize("kind", broken(0))
@pytest.mark.parametrize("layout", ["parquet", "saved"])
def test_a_broken_picture_is_unusable_and_its_neighbours_are_not(tmp_path: Path, kind: str, layout: str) -> None:
    bad, reason = broken(1)[kind]
    data = open_pairs(fill(tmp_path, [row(0), bad, row(2)], layout)).train
    assert len(data) == 3 and data.captions[1] == "prompt 0"
    for _ in range(2):
        with pytest.raises(Unusable) as found:
            data[1]
        assert found.value.reason == reason and found.value.where.startswith("train-0000001 jpg_")
        assert isinstance(found.value, ValueError)
        assert pickle.loads(pickle.dumps(found.value)).reason == reason
    assert torch.equal(data[0].images[0], expected(encoded(0))) and torch.equal(data[2].images[0], expected(encoded(4)))


def test_a_bomb_is_unusable(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(file, "PNG")
    data = open_pairs(fill(tmp_path, [row(0, jpg_1=file.getvalue())])).train
    with pytest.raises(Unusable, match=r"picture more than 89 megapixels"):
        data[0]


def test_damage_inside_a_parquet_file_costs_the_rows_behind_it_only(tmp_path: Path) -> None:
    folder = fill(tmp_path, [row(i) for i in range(40)], group=20)
    (path,) = (folder / "data").glob("train-*")
    names = pq.read_schema(path).names
    chunk = pq.read_metadata(path).row_group(1).column(names.index("jpg_0"))
    content = bytearray(path.read_bytes())
    middle = chunk.dictionary_page_offset or chunk.data_page_offset
    content[middle : middle + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    data = open_pairs(folder).train
    found = []
    for i in range(40):
        try:
            data[i]
        except Unusable as error:
            assert error.reason == pairing.LOST and "row group 1" in error.where
            found.append(i)
    assert found == list(range(20, 40))
    data[5]


def test_files_that_cannot_be_used_are_counted_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fill(tmp_path, [row(i) for i in range(8)], files=4)
    paths = sorted((folder / "data").glob("train-*"))
    paths[0].write_bytes(paths[0].read_bytes()[:100])
    paths[1].unlink()
    pq.write_table(pq.read_table(paths[2]).drop(["jpg_1"]), paths[2])
    with caplog.at_level(logging.INFO):
        data = open_pairs(folder)
    assert data.train.captions == ["prompt 3", "prompt 3"]
    assert counts(data) == {parquet.UNREADABLE: 1, parquet.ABSENT: 1, parquet.COLUMN: 1}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "\n" not in record.message
    assert "train-00001-of-00004" in record.message and ": jpg_1" in record.message


def test_a_clean_dataset_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, [row(0), row(1)])
    with caplog.at_level(logging.INFO):
        open_pairs(tmp_path)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == f"{tmp_path}: 2 pairs to train on, 2 held out"


# The score file.

GAPS = np.array(
    [[0.3, 0.01, 0.02], [-0.5, 0.01, 0.02], [0.1, 0.01, 0.01], [-0.2, 0, 0.02], [-0.49, 0.01, 0.02], [-0.9, -0.5, -0.5]]
)


def scored(tmp_path: Path) -> dict[str, object]:
    fill(tmp_path / "d", [row(i) for i in range(6)])
    write_scores(tmp_path / "s.csv", Scores(np.array([True, True, False, True, True, False]), GAPS))
    return {"path": tmp_path / "d", "scores": tmp_path / "s.csv"}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 2, 4, 5]),
        ({"strategy": 1}, [0, 2, 5]),
        ({"strategy": 3}, [0, 1, 2, 4, 5]),
        ({"strategy": None}, [0, 1, 2, 3, 4, 5]),
        ({"absolute_ties": True}, [0, 2, 4]),
        ({"num_train": 3}, [0, 2, 4]),
    ],
)
def test_the_score_file_filters_the_train_split_only(tmp_path: Path, options: dict[str, object], kept: list) -> None:
    data = open_pairs(**scored(tmp_path), **options)
    assert [data.train.id(i) for i in range(len(data.train))] == [f"train-{i:07d}" for i in kept]
    assert (len(data.validation), len(data.test)) == (2, 2) and data.test[0].gaps is None
    for i, number in enumerate(kept):
        item = data.train[i]
        assert torch.equal(item.images[0], expected(encoded(2 * number)))
        sign = -1 if number % 3 == 1 else 1  # the second picture won: first less second is loser less winner
        assert item.gaps == pytest.approx(sign * GAPS[number])


def test_what_was_filtered_is_reported_apart_from_what_is_unusable(tmp_path: Path) -> None:
    options = scored(tmp_path)
    parquet_files(tmp_path / "d", "train", [row(i, **({"caption": None} if i == 1 else {})) for i in range(6)])
    data = open_pairs(**options)
    assert data.report()["filtered"] == 1 and counts(data) == {pairing.NO_CAPTION: 1}


def test_scores_that_disagree_with_the_labels_about_ties_are_noted(tmp_path: Path) -> None:
    options = scored(tmp_path)
    write_scores(tmp_path / "s.csv", Scores(np.array([True, True, True, True, False, False]), GAPS))
    assert counts(open_pairs(**options), "noted") == {pairing.OTHER_TIE: 2}


def test_a_row_without_a_score_is_filtered_and_has_no_gaps(tmp_path: Path) -> None:
    options = scored(tmp_path)
    gaps = GAPS.copy()
    gaps[0, 2] = np.nan
    write_scores(tmp_path / "s.csv", Scores(np.array([True, True, False, True, True, False]), gaps))
    assert open_pairs(**options).train[0].id == "train-0000002"
    assert open_pairs(**options, strategy=None).train[0].gaps is None


def test_a_score_file_of_another_length_is_refused(tmp_path: Path) -> None:
    options = scored(tmp_path)
    write_scores(tmp_path / "s.csv", Scores(np.ones(5, bool), GAPS[:5]))
    with pytest.raises(UserError, match=r"5 rows, but the train split has 6; scores are joined by position"):
        open_pairs(**options)


def test_scores_and_a_file_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    options = scored(tmp_path)
    parquet_files(tmp_path / "d", "train", [row(i) for i in range(6)], files=2)
    (tmp_path / "d" / "data" / "train-00000-of-00001-0123456789abcdef.parquet").unlink()
    (tmp_path / "d" / "data" / "train-00001-of-00002-0123456789abcdef.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"data.scores is joined by position, and a file cannot be used .*train-00001"):
        open_pairs(**options)


# What is refused.


def test_an_empty_result_says_what_where_and_what_works(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"split train: there are no files; what works: train-00000-of-00001.parquet"):
        open_pairs(tmp_path)
    parquet_files(tmp_path, "train", [row(0)])
    with pytest.raises(UserError, match=r"split validation_unique: there are no files; .* or data.validation=null"):
        open_pairs(tmp_path)
    parquet_files(tmp_path, "test_unique", [row(0, has_label=False), row(1, has_label=False)])
    with pytest.raises(
        UserError, match=r"none of its 2 rows can be used .*2 row without a label .*test_unique-0000000"
    ):
        open_pairs(tmp_path, validation=None)
    parquet_files(tmp_path, "test_unique", [row(0)])
    data = open_pairs(tmp_path, validation=None)
    assert data.validation is None and len(data.test) == 1
    write_scores(tmp_path / "s.csv", Scores(np.ones(1, bool), -np.ones((1, 3))))
    with pytest.raises(UserError, match=r"none of its 1 rows can be used .1 filtered out by data.scores"):
        open_pairs(tmp_path, validation=None, scores=tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "none/such/folder"}, "data.path=none/such/folder: no such folder; what works"),
        ({"path": "/none"}, "data.path=/none: no such folder; what works"),
        ({"path": "owner/name"}, "data.path=owner/name: neither a folder here nor a hub dataset that can be fetched"),
        ({"path": __file__}, "is a file; what works: its folder, data.path="),
        ({"test": "train"}, "data.train=train, validation=validation_unique, test=train; what works: different splits"),
        ({"num_train": 0}, "data.num_train=0; what works: 1 or more, or null for all"),
        ({"num_test": -1}, "data.num_test=-1; what works: 1 or more, or null for all"),
        ({"train": "training"}, "split training: there are no files; .* data.train=<name> if the split is called oth"),
    ],
)
def test_options_that_do_not_work_are_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "d", [row(0)])
    with pytest.raises(UserError, match=message) as found:
        open_pairs(**{"path": tmp_path / "d", **options})
    assert "\n" not in str(found.value)


def test_a_hub_id_is_owner_and_name() -> None:
    assert is_hub_id("yuvalkirstain/pickapic_v1")
    assert not any(map(is_hub_id, ("pictures", "./a", "/a/b", "a/b/c", "~/a", "a/b/", "")))


def test_a_split_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [row(0)])
    saved(tmp_path / "copy", "train", [row(0)])
    parquet_files(tmp_path / "other", "test_unique", [row(0)])
    with pytest.raises(UserError, match=r"split test_unique is there twice: .* and .*/other/data/.*; what works: one"):
        open_pairs(tmp_path)


def test_a_column_of_another_kind_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [row(0, label_0="first")])
    with pytest.raises(UserError, match=r"train-00000-of-.*: column label_0: Failed to parse string"):
        open_pairs(tmp_path)


def test_names_of_splits_are_not_taken_for_each_other(tmp_path: Path) -> None:
    for name, number in (("train", 3), ("validation", 4), ("test", 5), ("validation_unique", 6), ("test_unique", 7)):
        parquet_files(tmp_path / "p", name, [row(i) for i in range(number)])
        saved(tmp_path / "s", name, [row(i) for i in range(number)])
    (tmp_path / "s" / "train" / "cache-0123.arrow").write_bytes(b"left by datasets")
    for folder in (tmp_path / "p", tmp_path / "s"):
        data = open_pairs(folder)
        assert (len(data.train), len(data.validation), len(data.test)) == (3, 6, 7)
        assert counts(data) == {}
        assert len(open_pairs(folder, test="test", validation="validation", num_test=2).test) == 2


# The fingerprint.


def test_the_fingerprint_depends_on_what_determines_the_items(tmp_path: Path) -> None:
    options = scored(tmp_path)
    first = open_pairs(**options).train.fingerprint
    again = scored(tmp_path / "moved")
    assert open_pairs(**again).train.fingerprint == first
    data = open_pairs(**options)
    variants = {first, data.test.fingerprint, data.validation.fingerprint}
    variants |= {open_pairs(**options, **more).train.fingerprint for more in ({"strategy": 1}, {"num_train": 2})}
    variants.add(ImagePairs(**options, resolution=2 * R).train.fingerprint)
    variants.add(open_pairs(options["path"]).train.fingerprint)
    rows = [row(i) for i in range(6)]
    rows[5]["jpg_1"] = encoded(999)
    parquet_files(tmp_path / "d", "train", rows)
    variants.add(open_pairs(**options).train.fingerprint)
    assert len(variants) == 8


def test_a_large_file_is_identified_by_its_size_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "WHOLE", 1000)
    monkeypatch.setattr(parquet, "PIECE", 100)
    content = np.random.default_rng(0).bytes(5000)
    found = set()
    for name, changed in {
        "same": content,
        "other name": content,
        "start": b"x" + content[1:],
        "end": content[:-1] + b"x",
        "longer": content + b"x",
        "shifted": content[2000:] + content[:2000],
    }.items():
        (tmp_path / name).write_bytes(changed)
        found.add(parquet.identity(tmp_path / name))
    assert len(found) == 5


def test_diffusion_dpo_crops_the_centre_and_flips_half_of_the_pictures_to_train_on(tmp_path: Path) -> None:
    """As torchvision's Resize of the short side and CenterCrop; seed, row and place decide about each flip."""
    folder = fill(tmp_path, [row(i) for i in range(24)])
    form = transforms.Compose(
        [transforms.Resize(R, transforms.InterpolationMode.BILINEAR), transforms.CenterCrop(R), transforms.ToTensor()]
    )
    plain, flipped, again, other = (
        open_pairs(folder, crop="center", **options)
        for options in ({}, {"flip": True}, {"flip": True}, {"flip": True, "seed": 1})
    )
    mirrored = []
    for i in range(len(plain.train)):
        source = row(int(plain.train.positions[i]))
        wanted = [form(Image.open(io.BytesIO(source[name])).convert("RGB")) for name in ("jpg_0", "jpg_1")]
        torch.testing.assert_close(plain.train[i].images, torch.stack(wanted), rtol=0, atol=0)
        for image, straight in zip(flipped.train[i].images, plain.train[i].images, strict=True):
            mirrored.append(torch.equal(image, straight.flip(2)))
            assert mirrored[-1] or torch.equal(image, straight)
        assert torch.equal(flipped.train[i].images, again.train[i].images)
    assert 0.25 < sum(mirrored) / len(mirrored) < 0.75
    assert any(first != second for first, second in zip(mirrored[::2], mirrored[1::2], strict=True))
    assert torch.equal(flipped.test[0].images, plain.test[0].images)
    prints = {data.train.fingerprint for data in (open_pairs(folder), plain, flipped, other)}
    assert len(prints) == 4 and again.train.fingerprint == flipped.train.fingerprint
    with pytest.raises(UserError, match=r"data.crop=middle; what works: squash, center"):
        open_pairs(folder, crop="middle")
