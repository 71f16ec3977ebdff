"""The folder option on real files of every kind: what is used, what is refused, and that both are said."""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lpo_platform.config.errors import UserError
from lpo_platform.data import caption_files as naming
from lpo_platform.data import picture_files as reading
from lpo_platform.data.caption_files import words
from lpo_platform.data.folder import Folder
from lpo_platform.data.source import alignment_of
from lpo_platform.runs.given_files import NOT_TEXT, PICTURES

Save = Callable[[Path], None]


def colours(seed: int, width: int = 40, height: int = 30) -> np.ndarray:
    """A smooth (height, width, 3) uint8 picture, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(colours(seed, width, height))


def fill(folder: Path, number: int, suffix: str = ".png") -> None:
    for i in range(number):
        picture(i).save(folder / f"thing {chr(97 + i % 26)} {i}{suffix}")


def open_folder(path: Path, resolution: int = 16, **options: object) -> Folder:
    return Folder(path, cache_folder=None, resolution=resolution, **options)


def everything(folder: Folder) -> dict[str, tuple[torch.Tensor, str]]:
    sources = (folder.train, folder.test)
    samples = [source[i] for source in sources for i in range(len(source))]
    return {sample.id: (sample.image, sample.caption) for sample in samples}


def counts(folder: Folder, kind: str) -> dict[str, int]:
    return {reason: row["count"] for reason, row in folder.report()[kind].items()}


# Kinds of files.


def gray(path: Path) -> None:
    picture(1).convert("L").save(path)


def two_colours(path: Path) -> None:
    picture(2).convert("1").save(path)


def rgba(path: Path) -> None:
    image = picture(3).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(path)


def gray_alpha(path: Path) -> None:
    image = picture(4).convert("LA")
    image.putalpha(100)
    image.save(path)


def palette(path: Path) -> None:
    picture(5).quantize(16).save(path)


def transparent_palette(path: Path) -> None:
    picture(6).quantize(16).save(path, transparency=0)


def colour_key(path: Path) -> None:
    image = picture(7)
    image.save(path, transparency=image.getpixel((0, 0)))


def cmyk(path: Path) -> None:
    picture(8).convert("CMYK").save(path)


def animated(path: Path) -> None:
    picture(9).save(path, save_all=True, append_images=[picture(10), picture(11)])


def sixteen_bits(path: Path) -> None:
    Image.fromarray(colours(12)[:, :, 0].astype(np.uint16) * 257).save(path)


def floats(path: Path) -> None:
    Image.fromarray(colours(13)[:, :, 0].astype(np.float32) / 255).save(path)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(14).save(path, exif=exif)


def plain(path: Path) -> None:
    picture(15).save(path)


def two_views(path: Path) -> None:
    picture(18).save(path, "MPO", save_all=True, append_images=[picture(19)])


def pages(path: Path) -> None:
    picture(16).save(path, save_all=True, append_images=[picture(17)])


KINDS: list[tuple[str, Save, str | None]] = [
    ("gray.png", gray, reading.GRAYSCALE),
    ("gray.jpg", gray, reading.GRAYSCALE),
    ("bits.png", two_colours, reading.GRAYSCALE),
    ("alpha.png", rgba, reading.TRANSPARENT),
    ("alpha.webp", rgba, reading.TRANSPARENT),
    ("alpha.tif", rgba, reading.TRANSPARENT),
    ("gray-alpha.png", gray_alpha, reading.TRANSPARENT),
    ("palette.png", palette, None),
    ("palette.gif", palette, None),
    ("palette-alpha.png", transparent_palette, reading.TRANSPARENT),
    ("palette-alpha.gif", transparent_palette, reading.TRANSPARENT),
    ("key.png", colour_key, reading.TRANSPARENT),
    ("cmyk.jpg", cmyk, reading.CMYK),
    ("cmyk.tif", cmyk, reading.CMYK),
    ("animated.gif", animated, reading.ANIMATED),
    ("animated.webp", animated, reading.ANIMATED),
    ("animated.png", animated, reading.ANIMATED),
    ("pages.tif", pages, reading.ANIMATED),
    ("deep.png", sixteen_bits, reading.DEEP),
    ("deep.tif", sixteen_bits, reading.DEEP),
    ("float.tif", floats, reading.DEEP),
    ("two-views.jpg", two_views, None),
    ("turned.jpg", turned, reading.TURNED),
    ("turned.webp", turned, reading.TURNED),
    *((f"plain{suffix}", plain, None) for suffix in PICTURES),
    ("UPPER.JPG", plain, None),
]


@pytest.mark.parametrize(("name", "save", "note"), KINDS, ids=[kind[0] for kind in KINDS])
@pytest.mark.parametrize("crop", ["squash", "center"])
def test_every_kind_gives_a_picture_and_its_note(
    tmp_path: Path, name: str, save: Save, note: str | None, crop: str
) -> None:
    fill(tmp_path, 2)
    save(tmp_path / name)
    folder = open_folder(tmp_path, crop=crop)
    samples = everything(folder)
    assert len(samples) == 3
    for image, _ in samples.values():
        assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and image.is_contiguous()
        assert image.min() >= 0 and image.max() <= 1
    assert counts(folder, "noted") == ({note: 1} if note else {})
    assert counts(folder, "skipped") == {}
    again = everything(open_folder(tmp_path, crop=crop))
    assert all(torch.equal(image, again[key][0]) for key, (image, _) in samples.items())


def sample_of(folder: Path, name: str, resolution: int = 30, **options: object) -> torch.Tensor:
    return everything(open_folder(folder, resolution, **options))[name][0]


def test_squash_is_bicubic_with_antialias_of_the_whole_picture(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    picture(20, 90, 50).save(tmp_path / "x.png")
    expected = picture(20, 90, 50).resize((16, 16), Image.Resampling.BICUBIC)
    found = sample_of(tmp_path, "x.png", 16)
    assert torch.equal(found, torch.from_numpy(np.array(expected)).permute(2, 0, 1).float() / 255)


def test_center_keeps_proportions(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    pixels = np.zeros((30, 90, 3), np.uint8)
    pixels[:, 30:60] = 255
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert sample_of(tmp_path, "x.png", crop="center").min() == 1
    assert sample_of(tmp_path, "x.png", crop="squash").min() == 0


def test_transparency_becomes_white_and_orientation_is_applied(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    Image.new("RGBA", (20, 20), (200, 10, 10, 0)).save(tmp_path / "clear.png")
    assert sample_of(tmp_path, "clear.png").min() == 1
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, :24] = 255  # white on the left as stored: orientation 6 turns that to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    found = sample_of(tmp_path, "turned.png", 32)
    assert found[:, :12].min() > 0.9 and found[:, 20:].max() < 0.1


def test_sixteen_bits_keep_their_tones(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    ramp = np.tile(np.linspace(0, 32768, 32), (32, 1)).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = sample_of(tmp_path, "ramp.png", 32)
    assert torch.allclose(found[0, 0], torch.linspace(0, 0.5, 32), atol=0.01)


def test_a_large_jpeg_read_in_reduced_form_is_the_same_picture(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    picture(21, 1600, 1200).save(tmp_path / "large.jpg", quality=95)
    with Image.open(tmp_path / "large.jpg") as image:
        whole = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)) / 255
    assert reading.decode(tmp_path / "large.jpg", side=32).image.size == (200, 150)
    found = sample_of(tmp_path, "large.jpg", 32).permute(1, 2, 0).numpy()
    assert np.abs(found - whole).max() < 0.02


# What cannot be used.


def truncated(path: Path) -> None:
    whole = path.with_name("whole" + path.suffix)
    picture(22, 200, 200).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def nonsense(path: Path) -> None:
    path.write_bytes(b"this is no picture")


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n")


def broken_link(path: Path) -> None:
    path.symlink_to("nowhere.png")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**34)


def tiny(path: Path) -> None:
    picture(23, 200, 15).save(path)


def huge(path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(path)


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


@pytest.mark.parametrize(
    ("name", "save", "reason"),
    [
        ("t.png", truncated, reading.UNREADABLE),
        ("t.jpg", truncated, reading.UNREADABLE),
        ("t.webp", truncated, reading.UNREADABLE),
        ("t.bmp", truncated, reading.UNREADABLE),
        ("t.tif", truncated, reading.UNREADABLE),
        ("n.jpg", nonsense, reading.UNREADABLE),
        ("empty.png", Path.touch, reading.UNREADABLE),
        ("eps.png", postscript, reading.UNREADABLE),
        ("link.png", broken_link, reading.UNREADABLE),
        ("pipe.png", pipe, reading.SPECIAL),
        ("sparse.png", sparse, reading.LARGE),
        ("tiny.png", tiny, reading.TINY),
        ("huge.png", huge, reading.HUGE),
        ("bomb.png", bomb, reading.HUGE),
        ("notes.md", nonsense, "not a picture file"),
        ("alone.txt", nonsense, "not a picture file"),
    ],
)
def test_what_cannot_be_used_is_counted_with_its_name_and_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, save: Save, reason: str
) -> None:
    fill(tmp_path, 3)
    (tmp_path / "below").mkdir()
    save(tmp_path / "below" / name)
    with caplog.at_level(logging.INFO):
        folder = open_folder(tmp_path)
    assert folder.report()["skipped"] == {reason: {"count": 1, "examples": [f"below/{name}"]}}
    assert len(everything(folder)) == 3
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"1 {reason} (below/{name})" in record.message and "\n" not in record.message


def test_a_clean_folder_gives_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 12)
    with caplog.at_level(logging.INFO):
        open_folder(tmp_path, test_fraction=0.5)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.message == f"{tmp_path}: 12 pictures, 6 to train on, 6 held out"


def test_reasons_carry_a_count_and_three_examples(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 3)
    for i in range(5):
        nonsense(tmp_path / f"bad{i}.png")
    folder = open_folder(tmp_path)
    row = folder.report()["skipped"][reading.UNREADABLE]
    assert row == {"count": 5, "examples": ["bad0.png", "bad1.png", "bad2.png"]}
    assert "5 unreadable or truncated (bad0.png, bad1.png, bad2.png, ...)" in caplog.text


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder that everybody may enter, while the test runs without the rights of root."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            for folder in Path(name).glob("*/"):
                os.chmod(folder, 0o700)
            os.seteuid(user)


def test_files_and_folders_without_permission_are_counted(as_nobody: Path) -> None:
    fill(as_nobody, 3)
    picture(9).save(as_nobody / "secret.png")
    (as_nobody / "thing a 0.txt").write_text("a caption")
    (as_nobody / "closed").mkdir()
    picture(8).save(as_nobody / "closed" / "x.png")
    for name in ("secret.png", "thing a 0.txt", "closed"):
        os.chmod(as_nobody / name, 0)
    row = open_folder(as_nobody).report()["skipped"][reading.FORBIDDEN]
    assert row == {"count": 3, "examples": ["closed/", "secret.png", "thing a 0.txt"]}


def test_a_file_that_disappears_later_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    folder = open_folder(tmp_path)
    (tmp_path / folder.train[0].id).unlink()
    with pytest.raises(UserError, match=r"thing . \d\.png: .*no longer can be"):
        folder.train[0]


def nothing(path: Path) -> None:
    path.mkdir()


def only_text(path: Path) -> None:
    path.mkdir()
    (path / "a.md").write_text("x")


def only_broken(path: Path) -> None:
    path.mkdir()
    nonsense(path / "a.png")


def only_one(path: Path) -> None:
    path.mkdir()
    fill(path, 1)


def one_twice(path: Path) -> None:
    only_one(path)
    picture(0).save(path / "again.bmp")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"data\.path=.*p: .* does not exist \(.* does\); what works: a folder with pictures"),
        (Path.touch, r"data\.path=.* is a file; what works: its folder, data\.path="),
        (nothing, r"there are no pictures; what works: two different pictures of at least 16 px .*\.png"),
        (only_text, r"there are no pictures \[not used: 1 not a picture file \(a\.md\)\]; what works"),
        (only_broken, r"none of the pictures can be used \[.*1 unreadable or truncated \(a\.png\)\]; what works"),
        (only_one, r"there is only one picture, .*another to hold out; what works: two different pictures"),
        (one_twice, r"there is only one picture, .*same picture as another file.*; what works"),
    ],
)
def test_a_folder_that_gives_nothing_says_what_where_and_what_works(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "p")
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path / "p")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "json"}, "data.captions=json; what works: auto, jsonl, table, sidecar, filename"),
        ({"crop": "middle"}, "data.crop=middle; what works: squash, center"),
        ({"test_fraction": 1.0}, "data.test_fraction=1.0; what works: between 0 and 1"),
        ({"captions": "jsonl"}, "there are no captions for data.captions=jsonl .*; what works: data.captions=auto"),
    ],
)
def test_options_that_do_not_work_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    fill(tmp_path, 3)
    with pytest.raises(UserError, match=message):
        open_folder(tmp_path, **options)


# Captions.


def test_captions_come_from_lines_then_text_files_then_names(tmp_path: Path) -> None:
    for i, name in enumerate(("a red car 1.png", "IMG_0042.png", "c.png", "d.png")):
        picture(i).save(tmp_path / name)
    (tmp_path / "below").mkdir()
    picture(9).save(tmp_path / "below" / "e.jpg")
    (tmp_path / "c.txt").write_text("\ufeff a  cat\non a mat \n", encoding="utf-8")
    (tmp_path / "d.txt").write_text("overruled")
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "d.png", "text": "a dog"}\n\n{"image": "below\\\\e.jpg", "caption": ["an egg", "other"]}\n'
    )
    (tmp_path / "below" / "z.jsonl").write_text('{"file": "e.jpg", "prompt": "overruled"}\n')
    folder = open_folder(tmp_path)
    assert {key: caption for key, (_, caption) in everything(folder).items()} == {
        "a red car 1.png": "a red car",
        "IMG_0042.png": "",
        "c.png": "a cat on a mat",
        "d.png": "a dog",
        "below/e.jpg": "an egg",
    }
    assert folder.report()["captions"] == {"filename": 1, "none": 1, "sidecar": 1, "jsonl": 2}
    assert counts(folder, "noted") == {naming.NO_CAPTION: 1}
    forced = {
        kind: {key: row[1] for key, row in everything(open_folder(tmp_path, captions=kind)).items()}
        for kind in ("jsonl", "sidecar", "filename")
    }
    assert forced["jsonl"]["c.png"] == "" and forced["jsonl"]["d.png"] == "a dog"
    assert forced["sidecar"]["d.png"] == "overruled" and forced["sidecar"]["a red car 1.png"] == ""
    assert forced["filename"]["a red car 1.png"] == "a red car"


def test_bad_caption_lines_and_names_are_counted(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    rows = [
        "{not json",
        "[1, 2]",
        '{"text": "no file"}',
        '{"file_name": "thing a 0.png"}',
        '{"file_name": "missing.png", "text": "x"}',
        '{"file_name": "../outside.png", "text": "x"}',
        json.dumps({"file_name": str(tmp_path / "thing b 1.png"), "text": "by its absolute path"}),
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(rows))
    (tmp_path / "other.jsonl").write_bytes(b"\xff\xfe\x00")
    folder = open_folder(tmp_path)
    assert counts(folder, "skipped") == {naming.BAD_LINE: 4, naming.NO_SUCH_FILE: 2, NOT_TEXT: 1}
    examples = folder.report()["skipped"][naming.NO_SUCH_FILE]["examples"]
    assert examples == ["captions.jsonl:5 missing.png", "captions.jsonl:6 ../outside.png"]
    assert everything(folder)["thing b 1.png"][1] == "by its absolute path"


def test_names_with_composed_and_decomposed_letters_meet(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    picture(5).save(tmp_path / "cafe\u0301.png")
    (tmp_path / "captions.jsonl").write_text('{"file_name": "caf\u00e9.png", "text": "coffee"}', encoding="utf-8")
    assert everything(open_folder(tmp_path))["cafe\u0301.png"][1] == "coffee"


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("a_red-car_001", "a red car"),
        ("RedCar2", "Red Car"),
        ("photo of a dog", "photo of a dog"),
        ("IMG_20240102_123456", ""),
        ("DSC01234", ""),
        ("0007", ""),
        ("3f2a9bc1d4", ""),
        ("550e8400-e29b-41d4-a716-446655440000", ""),
        ("decade", "decade"),
        ("x", ""),
        ("犬", "犬"),
    ],
)
def test_words_of_a_file_name(stem: str, caption: str) -> None:
    assert words(stem) == caption


# The split and its fingerprint.


@given(
    contents=st.lists(st.integers(0, 7), min_size=2, max_size=16).filter(lambda seeds: len(set(seeds)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 5),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_split_is_disjoint_by_content_and_complete(
    tmp_path_factory: pytest.TempPathFactory, contents: list[int], fraction: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("split")
    for i, number in enumerate(contents):
        picture(number).save(path / f"{i}{('.png', '.bmp', '.tif')[i % 3]}")
    folder = open_folder(path, test_fraction=fraction, seed=seed)
    sides = [[source[i] for i in range(len(source))] for source in (folder.train, folder.test)]
    seen = [{sample.image.numpy().tobytes() for sample in side} for side in sides]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    assert sorted(s.id for side in sides for s in side) == sorted(p.name for p in path.iterdir())


def test_the_split_does_not_depend_on_names_and_depends_on_the_seed(tmp_path: Path) -> None:
    held_out = {}
    for key, prefix, seed in (("a", "a", 0), ("b", "b", 0), ("c", "a", 1)):
        (tmp_path / key).mkdir()
        for i in range(20):
            picture(i).save(tmp_path / key / f"{prefix}{i * 7 % 20}-{i}.png")
        test = open_folder(tmp_path / key, test_fraction=0.25, seed=seed).test
        held_out[key] = {test[i].id.split("-")[1] for i in range(len(test))}
    assert len(held_out["a"]) == 5
    assert held_out["a"] == held_out["b"] != held_out["c"]


def test_the_fingerprint_depends_on_what_determines_the_samples(tmp_path: Path) -> None:
    fill(tmp_path, 4)

    def both(**options: object) -> tuple[str, str]:
        folder = open_folder(tmp_path, **{"resolution": 16, **options})
        return folder.train.fingerprint, folder.test.fingerprint

    first = both()
    assert first == both() and first[0] != first[1]
    variants = {first, both(resolution=32), both(crop="center"), both(seed=1)}
    (tmp_path / "thing a 0.txt").write_text("another caption")
    variants.add(both())
    picture(99).save(tmp_path / "thing a 0.png")
    variants.add(both())
    assert len(variants) == 6


# The stored look.


def test_pictures_that_did_not_change_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in", 4)
    nonsense(tmp_path / "in" / "bad.png")
    tiny(tmp_path / "in" / "tiny.png")
    read: list[str] = []

    def counting(path: Path) -> reading.Look:
        read.append(path.name)
        return look(path)

    look = reading.look
    monkeypatch.setattr(reading, "look", counting)

    def reopen() -> tuple[list[str], Folder]:
        read.clear()
        return read, Folder(tmp_path / "in", cache_folder=tmp_path / "cache", resolution=16)

    first = reopen()[1].report()
    assert len(read) == 6
    names, second = reopen()
    assert names == ["bad.png"] and second.report() == first
    picture(50).save(tmp_path / "in" / "thing a 0.png")
    assert sorted(reopen()[0]) == ["bad.png", "thing a 0.png"]
    (stored,) = (tmp_path / "cache").iterdir()
    stored.write_text("{broken")
    assert len(reopen()[0]) == 6


def test_a_cache_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "in").mkdir()
    fill(tmp_path / "in", 2)
    (tmp_path / "file").write_text("")
    folder = Folder(tmp_path / "in", cache_folder=tmp_path / "file", resolution=16)
    assert len(everything(folder)) == 2
    assert "cannot be written" in caplog.text


def test_linked_folders_are_read_once_even_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    fill(tmp_path / "in", 2)
    picture(30).save(tmp_path / "elsewhere" / "far away.png")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in")
    assert set(everything(open_folder(tmp_path / "in"))) == {"thing a 0.png", "thing b 1.png", "link/far away.png"}


def test_the_scan_of_many_pictures_is_parallel_and_complete(tmp_path: Path) -> None:
    fill(tmp_path, 300, ".jpg")
    folder = open_folder(tmp_path)
    assert (len(folder.train), len(folder.test)) == (270, 30)
    assert alignment_of(folder, torch.zeros(1, 3, 8, 8), ["x"]) is None
