"""data=captioned: every layout gives the same rows, annotations become conditions, what is broken is named."""

import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor
from toys.rows import LAYOUTS, Row, png, scene, write

from lpo_platform.commands.job import Job, assemble
from lpo_platform.commands.prepare import prepare as prepare_command
from lpo_platform.config import compose
from lpo_platform.config.errors import UserError
from lpo_platform.config.schema import CONF
from lpo_platform.data import captioned
from lpo_platform.data.captioned import Captioned, CaptionedRows
from lpo_platform.data.prepared.export import export_pairs
from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.data.prepared.rows import Chosen
from lpo_platform.data.source import Sample, first
from lpo_platform.data.tables import decode, json_lines, webdataset
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.data.toy import Toy
from lpo_platform.data.truth import control_of, truth_of
from lpo_platform.evaluation.evaluator import Evaluator
from lpo_platform.tasks.canny import Canny
from lpo_platform.tasks.palette import published
from lpo_platform.tasks.pose import Pose
from lpo_platform.tasks.seg_ade20k import SegAde20k
from lpo_platform.tasks.seg_coco import SegCoco
from lpo_platform.tasks.skeleton import draw

NUMBER = 12
PREPARE = [sys.executable, "-c", "from lpo_platform.commands import main; main.prepare()"]


def row(i: int, **changes: object) -> Row:
    return {"image": png(scene(i)), "text": f"caption {i}", "seg": png(scene(100 + i))} | changes


def opened(path: Path, *, resolution: int = 16, **options: object) -> Captioned:
    return Captioned(str(path), cache_folder=None, resolution=resolution, **options)


def everything(data: Captioned) -> dict[str, Any]:
    return {s.caption: s for split in (data.train, data.test) for s in first(split, len(split))}


def resized(data: bytes, resample: Image.Resampling, side: int = 16) -> Tensor:
    image = Image.open(io.BytesIO(data)).convert("RGB").resize((side, side), resample)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_rows(tmp_path: Path, layout: str) -> None:
    rows = [row(i) for i in range(NUMBER)]
    data = opened(write(tmp_path, rows, layout), condition="seg", loser="seg", num_test=3, task=Canny())
    found = everything(data)
    assert (len(data.train), len(data.test)) == (NUMBER - 3, 3) and set(found) == {
        f"caption {i}" for i in range(NUMBER)
    }
    for i, wanted in enumerate(rows):
        sample = found[f"caption {i}"]
        assert torch.equal(sample.image, resized(wanted["image"], Image.Resampling.BICUBIC))
        assert torch.equal(sample.condition, resized(wanted["seg"], Image.Resampling.BICUBIC))
        assert torch.equal(sample.condition, sample.loser)
    again = opened(tmp_path, condition="seg", loser="seg", num_test=3, task=Canny())
    assert again.train.fingerprint == data.train.fingerprint
    assert opened(tmp_path, num_test=3).train.fingerprint != data.train.fingerprint
    assert [data.train.caption(i) for i in range(9)] == [again.train[i].caption for i in range(9)]


def test_a_single_file_and_files_that_name_no_split_are_found(tmp_path: Path) -> None:
    write(tmp_path / "a", [row(i) for i in range(4)], "jsonl", split="anything")
    assert len(everything(opened(tmp_path / "a"))) == 4
    with pytest.raises(UserError, match="there are no files"):
        opened(tmp_path / "a", test={"split": "validation"})
    (file, _) = sorted((tmp_path / "a").glob("*.jsonl"))
    assert len(everything(opened(file))) == 2


def test_a_held_out_split_may_lie_elsewhere_and_name_its_columns(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [row(i) for i in range(3)], "parquet")
    other = [{"image": png(scene(i)), "prompt": f"test {i}"} for i in range(4)]
    held_out = write(tmp_path / "test", other, "tar", split="validation")
    test = {"path": str(held_out), "split": "validation", "caption": "prompt", "condition": None}
    data = opened(train, condition="seg", test=test, num_train=2, task=Canny())
    assert [data.train.caption(i) for i in range(len(data.train))] == ["caption 0", "caption 1"]
    assert [s.caption for s in first(data.test, 9)] == [f"test {i}" for i in range(4)]
    assert data.test[0].condition is None and data.train[0].condition is not None
    with pytest.raises(UserError, match=r"data.test.colour: no such column; what works: path, split, image"):
        opened(train, test={"colour": "x"})


def test_no_caption_is_on_both_sides_and_the_choice_is_the_seeds(tmp_path: Path) -> None:
    folder = write(tmp_path, [row(i, text=f"caption {i // 2}") for i in range(NUMBER)], "parquet")
    data = opened(folder, num_test=2)
    sides = [{s.caption for s in first(split, 99)} for split in (data.train, data.test)]
    assert not sides[0] & sides[1] and [len(s) for s in sides] == [4, 2] and len(data.test) == 4
    choices = {tuple(s.caption for s in first(opened(folder, num_test=2, seed=seed).test, 99)) for seed in range(8)}
    assert len(choices) > 1


def test_the_task_names_columns_and_without_one_no_condition_is_read(tmp_path: Path) -> None:
    rows = [row(i) | {"winner_canny": png(scene(50 + i))} for i in range(4)]
    data = opened(write(tmp_path, rows, "parquet"), condition="winner_{task}", task=Canny())
    assert torch.equal(data.train[0].condition, resized(rows[int(data.train.caption(0)[-1])]["winner_canny"], 3))
    assert opened(tmp_path, condition="winner_{task}", labels="nowhere").train[0].condition is None
    with pytest.raises(UserError, match=r"file without a required column .*winner_pose"):
        opened(tmp_path, condition="winner_{task}", task=Pose(pretrained=False, people=None))


# What is broken.


@pytest.mark.parametrize("layout", LAYOUTS)
def test_broken_rows_are_named_and_not_fatal(tmp_path: Path, layout: str) -> None:
    rows = [row(i) for i in range(NUMBER)]
    rows[3] |= {"image": b"no picture", "text": "bad picture"}
    rows[5] |= {"seg": png(scene(1, width=8)), "text": "tiny condition"}
    rows[7] |= {"text": "  "}
    data = opened(write(tmp_path, rows, layout), condition="seg", num_test=2, task=Canny())
    place = {
        "parquet": "train-00001-of-00002.parquet, row 1", "arrow": "train-00001-of-00002.arrow, row 1",
        "tar": "train-000001.tar: 11", "jsonl": "train-00001-of-00002.jsonl:2",
    }[layout]  # fmt: skip
    assert data.report()["skipped"] == {captioned.NO_CAPTION: {"count": 1, "examples": [f"train-0000007 in {place}"]}}
    assert set(everything(data)) == {f"caption {i}" for i in range(NUMBER)} - {"caption 3", "caption 5", "caption 7"}
    reasons = {}
    for split in (data.train, data.test):
        for i in range(len(split)):
            try:
                split[i]
            except Unusable as error:
                reasons[error.where.split(" in ")[0]] = error.reason
    assert reasons == {"train-0000003 image": decode.BROKEN, "train-0000005 seg": "picture smaller than 16 px"}


def test_lines_that_are_no_rows_and_pictures_that_are_gone(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(6)], "jsonl")
    file = sorted(tmp_path.glob("*.jsonl"))[0]
    file.write_text(file.read_text() + '[1]\n{"image": "x.png"}\n{"image": "gone.png", "text": "gone", "seg": "x"}\n\n')
    data = opened(tmp_path, num_test=1)
    assert data.report()["skipped"] == {
        json_lines.BAD_LINE: {"count": 1, "examples": [f"{file.name}:4"]},
        json_lines.INCOMPLETE: {"count": 1, "examples": [f"{file.name}:5 has no text"]},
    }
    assert set(everything(data)) == {f"caption {i}" for i in range(6)}


def test_an_archive_that_was_cut_short_serves_up_to_there(tmp_path: Path) -> None:
    write(tmp_path, [row(i) for i in range(8)], "tar")
    file = sorted(tmp_path.glob("*.tar"))[1]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "train-000002.tar").write_bytes(b"no archive at all, but long enough to have a header" * 20)
    data = opened(tmp_path, num_test=1)
    assert {f"caption {i}" for i in range(5)} <= set(everything(data)) < {f"caption {i}" for i in range(8)}
    assert data.report()["noted"] == {webdataset.CUT: {"count": 1, "examples": [file.name]}}
    assert webdataset.UNREADABLE in data.report()["skipped"]


def test_an_archive_is_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "data", [row(i) for i in range(6)], "tar")
    before = Captioned(str(folder), cache_folder=str(tmp_path / "index"), resolution=16)
    monkeypatch.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
    after = Captioned(str(folder), cache_folder=str(tmp_path / "index"), resolution=16)
    assert torch.equal(before.train[1].image, after.train[1].image)


# Annotations.


def ade_row(labels: np.ndarray) -> Row:
    """Of label numbers (H, W), in the published colours, where road and skyscraper are one grey."""
    return {"seg": png(Image.fromarray(published("ade20k").numpy()[labels])), "seg_map": labels.tolist()}


def test_label_colours_stay_label_colours_unless_asked_otherwise(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 151, (30, 40))
    folder = write(tmp_path, [row(i, **ade_row(labels)) for i in range(4)], "parquet")
    task, known = SegAde20k(pretrained=False), {tuple(c) for c in published("ade20k").tolist()}

    def foreign(**options: object) -> int:
        condition = opened(folder, condition="seg", resolution=64, task=task, **options).train[0].condition
        return sum(tuple(c) not in known for c in condition.mul(255).round().int().flatten(1).T.tolist())

    assert foreign() == 0 and foreign(bicubic_labels=True) > 1000


def test_a_label_map_tells_road_from_skyscraper_and_colours_do_not(tmp_path: Path) -> None:
    labels = np.full((32, 32), 49)
    labels[:8], labels[8:16] = 7, 0
    folder = write(tmp_path, [row(i, **ade_row(labels)) for i in range(4)], "parquet")
    task, images = SegAde20k(pretrained=False), torch.zeros(1, 3, 32, 32)

    def maps(**columns: str) -> Tensor:
        sample = opened(folder, resolution=32, task=task, **columns).train[0]
        return truth_of([sample], task, images)[0][0, 0]

    by_colour = torch.from_numpy(np.where(labels == 49, 7, labels)).float()
    assert torch.equal(maps(condition="seg", labels="seg_map"), torch.from_numpy(labels).float())
    assert torch.equal(maps(condition="seg"), by_colour)
    sample = opened(folder, resolution=32, task=task, labels="seg_map").train[0]
    assert torch.equal(task.parse(control_of([sample], task, images)), truth_of([sample], task, images)[0])


def test_labels_that_count_other_classes_are_refused(tmp_path: Path) -> None:
    classes = np.random.default_rng(0).integers(0, 133, (32, 32))
    values = classes.copy()
    values[:4] = 255
    rows = [row(i, seg=png(Image.fromarray(published("coco").numpy()[classes])), map=png_map(values)) for i in range(4)]
    folder, task = write(tmp_path, rows, "tar"), SegCoco(pretrained=False)

    def maps(**options: object) -> Tensor:
        sample = opened(folder, resolution=32, condition="seg", labels="map", task=task, **options).train[0]
        return truth_of([sample], task, sample.image[None])[0][0, 0]

    assert torch.equal(maps(label_offset=1), torch.from_numpy(np.where(values == 255, 0, classes + 1)).float())
    with pytest.raises(Unusable, match=r"labels and condition show different things; data.label_offset"):
        maps()


def png_map(labels: np.ndarray) -> bytes:
    return png(Image.fromarray(labels.astype(np.uint8)))


def test_people_are_squashed_as_their_picture_is(tmp_path: Path) -> None:
    """Two people, who could not be read back from their drawing."""
    people = np.zeros((2, 17, 3))
    people[..., 0], people[..., 1] = np.arange(17) * 2 + np.array([[0], [5]]), np.arange(17) + np.array([[0], [12]])
    people[..., 2] = 2
    people[0, 0, 2], people[0, 1, 2] = 0, 1
    rows = [row(i, pose=people.tolist() if i else []) for i in range(4)]
    task = Pose(pretrained=False, people=None, resolution=64)
    found = everything(opened(write(tmp_path, rows, "parquet"), resolution=64, labels="pose", task=task))
    samples = [found["caption 0"], found["caption 1"]]
    maps, control = truth_of(samples, task, torch.stack([s.image for s in samples]))
    wanted = torch.from_numpy(people).float() * torch.tensor([64 / 40, 64 / 30, 1])
    wanted[..., 2] = 1
    wanted[0, 0] = 0
    assert torch.allclose(maps[1], wanted) and not maps[0].any()
    assert torch.equal(control[1], draw(wanted, 64))
    assert torch.isnan(task.score(maps, maps)["pose/oks"][0]) and task.score(maps, maps)["pose/oks"][1] == 1


def test_what_the_winner_leaves_black_the_loser_does_too() -> None:
    task = SegCoco(detector="toy")
    images = torch.stack([Toy(2, 2).test[i].image for i in range(2)])
    control = task.render(task.detect(images))
    control[..., :20, :] = 0
    worse = task.worse(images.flip(3), control)
    found = task.render(task.detect(images.flip(3)))
    assert not worse[..., :20, :].any() and torch.equal(worse[..., 20:, :], found[..., 20:, :])


# Through the commands, with the embedded model.


def toy_rows(number: int) -> list[Row]:
    toy, task = Toy(number, 2), SegCoco(detector="toy")
    samples = [toy.train[i] for i in range(number)]
    images = torch.stack([s.image for s in samples])
    pictures = {
        "image": images,
        "winner": task.render(task.detect(images)),
        "loser": task.render(task.detect(images.flip(3))),
    }

    def encoded(image: Tensor) -> bytes:
        return png(Image.fromarray(image.mul(255).round().byte().permute(1, 2, 0).numpy()))

    return [
        {name: encoded(column[i]) for name, column in pictures.items()} | {"prompt": f"{s.caption}, number {i}"}
        for i, s in enumerate(samples)
    ]


def configuration(*overrides: str) -> DictConfig:
    words = ["task=seg_coco", "hardware=cpu", "control.weights=unet", "data.num_test=2", *overrides]
    return OmegaConf.create(compose.compose("prepare", words, [], CONF).values)


@cache
def started(method: str) -> Job:
    return assemble(configuration(f"method={method}"))


def job(path: str, method: str = "cpo", loser: str | None = "loser", **options: object) -> Job:
    """The method on the pairs of a folder, with the embedded model."""
    start, columns = started(method), {"caption": "prompt", "condition": "winner", "loser": loser, "num_test": 2}
    return replace(start, data=opened(Path(path), resolution=64, task=start.task, **columns | options))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_annotated_pairs_are_prepared_as_they_are_and_exported_the_same(
    here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = toy_rows(9)
    rows[4]["image"] = b""
    write(here / "data", rows, "parquet")
    cfg = configuration("method=cpo", "data=cpo_pairs", "data.path=data", "export=out")
    with caplog.at_level(logging.WARNING):
        prepare_command(cfg, here)
    left = f"not used: 1 {decode.NO_PICTURE} (train-0000004 image in train-00001-of-00002.parquet, row 0)"
    assert left in caplog.text
    (file,) = (here / "out").iterdir()
    written = file.stat().st_mtime_ns
    work = job("data")
    export_pairs(work.data.train, before := made(work), here / "out")
    assert file.stat().st_mtime_ns == written

    table = pq.read_table(here / "out")
    assert table.column_names == ["image", "prompt", "winner", "loser"] and len(table) == 6
    assert json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["winner"] == {"_type": "Image"}
    by_caption = {r["prompt"]: r for r in rows}
    for line in table.to_pylist():
        for name in ("image", "winner", "loser"):
            ours, theirs = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in (
                line[name]["bytes"], by_caption[line["prompt"]][name]
            ))  # fmt: skip
            assert (ours == theirs).all(), name
    after = made(job("out"))
    sides = [{r.rows.what.source.caption(i): r.rows[i] for i in r.chosen} for r in (before, after)]
    both = set(sides[0]) & set(sides[1])
    assert len(both) >= 2
    for a, b in ([side[caption] for side in sides] for caption in both):
        assert set(a) == {"moments", "text", "control", "loser"} and all(torch.equal(a[n], b[n]) for n in a)
    with pytest.raises(UserError, match=r"export=.*out: holds another dataset \(train-00000-of-00001.parquet\)"):
        export_pairs(job("out").data.train, after, here / "out")


def made(work: Job) -> Chosen:
    """All rows that can be used, made and kept."""
    rows = work.rows()
    rows.fill()
    return rows.usable()


def test_losers_are_drawn_only_where_there_are_none(here: Path) -> None:
    write(here / "data", toy_rows(5), "tar")
    own, drawn = (job("data", num_train=1, loser=loser).rows()[0] for loser in ("loser", None))
    assert torch.equal(own["control"], drawn["control"]) and own["loser"].shape == drawn["loser"].shape
    assert not torch.equal(own["loser"], drawn["loser"])
    assert "loser" not in job("data", "control").rows()[0]


def test_one_of_several_captions_is_drawn_by_position(here: Path) -> None:
    rows = toy_rows(6)
    texts = [[rows[(i + k) % 6]["prompt"] for k in range(1 + i % 3)] for i in range(6)]
    write(here / "data", [r | {"prompt": texts[i]} for i, r in enumerate(rows)], "parquet")
    work = job("data", "control")
    rows, embed = work.rows(), work.policy.adapter.embed
    train = work.data.train
    wanted = {r: embed(work.policy.adapter.tokenize(list(train[r].captions))) for r in range(len(rows))}
    seen: dict[int, set[int]] = {}
    texts = []
    for batch, micro_batch in ((4, 4), (8, 2)):
        rounds = Rounds(rows, ("text",), batch=batch, micro_batch=micro_batch, steps=120 // batch, every=5, seed=1)
        texts.append(torch.cat([part["text"] for part in rounds.batches(range(rounds.steps))]))
    assert torch.equal(*texts)
    for position, text in enumerate(texts[0]):
        number = rounds.order.row(position)
        (found,) = ((wanted[number] - text).abs().flatten(1).amax(1) < 1e-5).nonzero().flatten().tolist()
        seen.setdefault(number, set()).add(found)
    assert seen == {number: set(range(len(wanted[number]))) for number in range(len(rows))}


def test_a_run_on_annotated_data_reports_its_own_metric(here: Path) -> None:
    """The target of the evaluation is the annotation, not what a detector finds in the picture."""
    write(here / "data", toy_rows(6), "parquet")
    work = job("data", condition="loser", loser=None)
    samples = first(work.data.test, 2)
    drawing = Evaluator(num_steps=1).draw(work.policy, samples, work.task)
    assert torch.equal(drawing.control, torch.stack([s.condition for s in samples]))
    found = work.task.detect(torch.stack([s.image for s in samples]).flip(3))
    assert torch.equal(drawing.target, found)  # as toy_rows made the losers
    assert not torch.equal(found, work.task.detect(torch.stack([s.image for s in samples])))


@pytest.mark.dist
def test_two_processes_prepare_what_one_does(here: Path) -> None:
    rows = toy_rows(9) * 30
    rows = [r | {"prompt": f"{r['prompt']} {i}"} for i, r in enumerate(rows)]
    rows[200]["image"] = b"broken"
    write(here / "data", rows, "parquet")
    words = ["method=control", "task=seg_coco", "control.weights=unet", "data=cpo_pairs", "data.path=data"]
    words += ["data.loser=null", "data.num_test=2", "data.cache_folder=null"]
    words += ["hardware=ddp", "hardware.devices=2", "hardware.accelerator=cpu"]
    done = subprocess.run([*PREPARE, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "267 training samples are ready" in done.stderr, done.stderr
    assert done.stderr.count(decode.BROKEN) == 1, done.stderr
    work = job("data", "control", loser=None)
    before = made(work)
    together = {row: before.rows[row] for row in before.chosen}
    shutil.rmtree(before.rows.store.folder)
    after = made(work)
    assert len(after) == 267 and set(together) == set(after.chosen)
    for row, alone in ((row, after.rows[row]) for row in after.chosen):
        assert set(alone) == set(together[row]) and all(torch.equal(alone[n], together[row][n]) for n in alone)


def test_training_adds_phrases_to_captions_and_nothing_else_sees_them(tmp_path: Path) -> None:
    folder, phrases = write(tmp_path, [row(i) for i in range(12)], "parquet"), [f"p{i}" for i in range(11)]
    options = {"num_test": 2, "phrases": phrases, "suffix": "realistic, sharp"}
    data, again, other = (opened(folder, **options, **more) for more in ({}, {}, {"num_phrases": 2}))
    drawn = []
    for sample, same in zip(everything_of(data.train), everything_of(again.train), strict=True):
        caption, *added = sample.told.removesuffix(", realistic, sharp").rsplit(", ", 3)
        assert caption == sample.caption and len(set(added)) == 3 and set(added) <= set(phrases)
        assert same.told == sample.told and sample.told.endswith(", realistic, sharp")
        drawn.append(tuple(added))
    assert len(set(drawn)) > len(drawn) // 2
    assert all(sample.prompt is None and sample.told == sample.caption for sample in everything_of(data.test))
    plain = opened(folder, num_test=2)
    assert len({d.train.fingerprint for d in (data, other, plain)}) == 3
    assert data.test.fingerprint == plain.test.fingerprint
    with pytest.raises(UserError, match=r"data.num_phrases=12; what works: 1 to 11"):
        opened(folder, phrases=phrases, num_phrases=12)


def everything_of(rows: CaptionedRows) -> list[Sample]:
    return [rows[i] for i in range(len(rows))]
