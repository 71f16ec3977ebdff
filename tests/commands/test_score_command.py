"""lpo-score: gaps of winner less loser for every row in order, resumable, with what cannot be read counted."""

import csv
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor
from toys import rewards as toy_rewards

from lpo_platform.commands.main import run_command
from lpo_platform.commands.score import PART, collect, compute, missing, score, store_of, winner_less_loser
from lpo_platform.commands.terminal import Command
from lpo_platform.config.compose import help_text
from lpo_platform.config.diagnose import diagnose
from lpo_platform.config.errors import UserError
from lpo_platform.config.options import shipped
from lpo_platform.data.image_pairs import ImagePairs
from lpo_platform.data.prepared.store import Store
from lpo_platform.data.score_file import COLUMNS, read_scores
from lpo_platform.data.source import Preference
from lpo_platform.rewards.aesthetic import Aesthetic
from lpo_platform.rewards.clip import Clip
from lpo_platform.rewards.vqa import Vqa

REPO = Path(__file__).resolve().parents[2]
HEAVY = "torch, lightning, diffusers, transformers, numpy, wandb"


@dataclass
class Split:
    """Pairs of 2 px pictures whose brightness is known: row r of the files has r / 1000 and r / 2000.

    Every fifth row of the files is no item, and items at `broken` cannot be read.
    """

    num_rows: int = 700
    broken: tuple[int, ...] = (3, 40)
    reads: list[int] = field(default_factory=list)
    fingerprint: str = "split"

    def __post_init__(self) -> None:
        self.positions = np.array([row for row in range(self.num_rows) if row % 5])
        self.preferred = np.array([(1.0, 0.0, 0.5)[row % 3] for row in self.positions])

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: int) -> Preference:
        self.reads.append(i)
        if i in self.broken:
            raise ValueError("picture unreadable or truncated")
        row, first = float(self.positions[i]), float(self.preferred[i])
        levels = torch.tensor([row / 1000, row / 2000]).view(2, 1, 1, 1)
        return Preference(str(i), "x" * (i % 7), levels.expand(2, 3, 2, 2), torch.tensor([[0.5, first], [0.0, 0.5]]))


def brightness(images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor:
    return images.mean((1, 2, 3))


def length(images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor:
    return torch.tensor([len(prompt) for prompt in prompts])


def contrast(images: Tensor, prompts: list[str], condition: Tensor | None = None) -> Tensor:
    return -brightness(images, prompts)


REWARDS = {"aesthetic": brightness, "clip": length, "vqa": contrast}


def stores_of(split: Split, folder: Path, **nodes: dict) -> dict[str, Store]:
    return {name: store_of(split, name, {"_target_": name, **nodes.get(name, {})}, folder) for name in REWARDS}


def test_the_gap_is_the_winners_score_less_the_losers_and_absolute_for_a_tie() -> None:
    first, second = np.array([3.0, 3.0, 3.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0, 3.0, np.nan])
    preferred = np.array([1.0, 0.0, 0.5, 0.5, 1.0])
    gaps = winner_less_loser(first, second, preferred)
    assert np.array_equal(gaps, [2.0, -2.0, 2.0, 2.0, np.nan], equal_nan=True)


def test_every_row_of_the_files_has_its_place(tmp_path: Path) -> None:
    split = Split()
    stores = stores_of(split, tmp_path)
    compute(split, stores, REWARDS.__getitem__)
    scores, findings = collect(split, stores)
    assert len(scores) == 700
    unreadable = {int(split.positions[i]) for i in split.broken}
    for row in range(700):
        if row % 5 == 0 or row in unreadable:
            assert np.isnan(scores.gaps[row]).all()
            continue
        gap = (1, -1, 1)[row % 3] * row / 2000
        gaps = [gap, 0.0, abs(gap) if row % 3 == 2 else -gap]
        assert scores.gaps[row] == pytest.approx(gaps, abs=1e-6)
    different = [bool(row % 5 and row % 3 < 2) for row in range(700)]
    assert scores.different.tolist() == different
    assert findings.line() == "not used: 2 picture unreadable or truncated (row 4, row 51)"


def test_a_killed_run_goes_on_at_its_last_part(tmp_path: Path) -> None:
    whole = stores_of(Split(), tmp_path / "whole")
    compute(Split(), whole, REWARDS.__getitem__)

    def killed(images: Tensor, prompts: list[str]) -> Tensor:
        if images.max() > 0.6:
            raise KeyboardInterrupt
        return brightness(images, prompts)

    first, again = Split(), Split()
    with pytest.raises(KeyboardInterrupt):
        compute(first, stores_of(first, tmp_path / "cut"), (REWARDS | {"aesthetic": killed}).__getitem__)
    stores = stores_of(again, tmp_path / "cut")
    compute(again, stores, REWARDS.__getitem__)
    assert min(again.reads) == PART and sorted(again.reads) == list(range(PART, len(again)))
    for name, store in stores.items():
        for i in range(len(again)):
            there, expected = store.read(i), whole[name].read(i)
            assert (there is None) == (expected is None) and (there is None or there["score"].equal(expected["score"]))
        assert store.problems == whole[name].problems and set(store.problems) == set(again.broken)

    third = Split()
    compute(third, stores_of(third, tmp_path / "cut"), {}.__getitem__)
    assert third.reads == []


def test_another_model_for_one_score_leaves_the_other_two(tmp_path: Path) -> None:
    split = Split(num_rows=20, broken=())
    compute(split, stores_of(split, tmp_path), REWARDS.__getitem__)
    other = stores_of(split, tmp_path, vqa={"weights": "other"})
    assert {name for name, store in other.items() if missing(store)} == {"vqa"}
    compute(split, other, {"vqa": brightness}.__getitem__)
    assert collect(split, other)[0].gaps[1, 2] == pytest.approx(-1 / 2000, abs=1e-6)
    assert not any(missing(store) for store in stores_of(split, tmp_path, vqa={"batch": 3}).values())


def test_a_model_of_the_same_name_with_other_contents_is_another_model(tmp_path: Path) -> None:
    split, file = Split(num_rows=20), tmp_path / "model.pth"
    keys = []
    for text in ("one", "two", "one"):
        file.write_text(text)
        keys.append(store_of(split, "vqa", {"weights": str(file), "question": "?" * 5000}, tmp_path).folder)
    assert keys[0] == keys[2] != keys[1]


def test_a_reward_that_returns_nan_is_named(tmp_path: Path) -> None:
    split = Split(num_rows=20)
    broken = REWARDS | {"clip": lambda images, prompts: brightness(images, prompts) / 0 * 0}
    with pytest.raises(UserError, match="reward clip: returned NaN or infinity for"):
        compute(split, stores_of(split, tmp_path), broken.__getitem__)


def test_rows_of_more_than_two_pictures_are_refused(tmp_path: Path) -> None:
    class Three(Split):
        def __getitem__(self, i: int) -> Preference:
            return Preference(f"row {i}", "x", torch.rand(3, 3, 2, 2), torch.full((3, 3), 0.5))

    split = Three(num_rows=20)
    with pytest.raises(UserError, match=r"row \d+: 3 pictures; a score file is about pairs"):
        compute(split, stores_of(split, tmp_path), REWARDS.__getitem__)


def png(seed: int, size: tuple[int, int] = (48, 40)) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


ROWS = [  # caption, pictures, labels
    ("a red cat", png(0), png(1), 1.0, 0.0),
    ("a blue dog", png(2), png(3), 0.0, 1.0),
    ("a dog on a cat", png(4), png(5), 0.5, 0.5),
    ("a broken picture", png(6), png(7)[:60], 1.0, 0.0),
    ("no label", png(8), png(9), None, None),
    ("a cat", png(10), png(11), 0.0, 1.0),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of six rows and the three models."""
    root = tmp_path_factory.mktemp("inputs")
    names = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
    (root / "data").mkdir()
    for split, rows in {"train": ROWS, "validation_unique": ROWS[:1], "test_unique": ROWS[:1]}.items():
        columns = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
        pq.write_table(pa.table(columns), root / "data" / f"{split}-00000-of-00001.parquet")
    torch.save(toy_rewards.predictor(), root / "sac+logos+ava1-l14-linearMSE.pth")
    return {
        "data": root / "data",
        "predictor": root / "sac+logos+ava1-l14-linearMSE.pth",
        "clip": toy_rewards.clip(root / "clip"),
        "vqa": toy_rewards.llava(root / "vqa"),
    }


@pytest.fixture
def lpo_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inputs: dict) -> Iterator[Callable[..., int]]:
    """Runs the command in this process, in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    path = list(sys.path)

    def run(*arguments: str) -> int:
        line = [
            f"data.path={inputs['data']}", f"scores.aesthetic.weights={inputs['predictor']}",
            f"scores.aesthetic.clip={inputs['clip']}", f"scores.clip.weights={inputs['clip']}",
            f"scores.vqa.weights={inputs['vqa']}", "resolution=64", "hardware=cpu",
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["lpo-score", *line, *arguments])
        with pytest.raises(SystemExit) as end:
            run_command(Command("lpo-score", "score"))
        return int(end.value.code or 0)

    yield run
    root.handlers[:], root.level = handlers, level
    sys.path[:] = path


FILE = Path("outputs/score-image_pairs/latest/scores.csv")


def test_the_command_writes_what_the_models_say(lpo_score: Callable[..., int], inputs: dict, capsys) -> None:
    assert lpo_score() == 0
    said = capsys.readouterr().err
    assert "6 rows, 2 of them with empty cells | not used: 1 " in said and "(row 3)" in said
    with FILE.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS and len(rows) == 6
    assert [row[0] for row in rows] == ["1", "1", "0", "1", "0", "1"]
    assert rows[3][1:] == ["", "", ""] and rows[4] == ["0", "", "", ""]

    clip = str(inputs["clip"])
    rewards = [Aesthetic(str(inputs["predictor"]), clip), Clip(clip), Vqa(str(inputs["vqa"]))]
    for number in (0, 1, 2, 5):
        caption, *files, first, _ = ROWS[number]
        squares = [Image.open(io.BytesIO(file)).resize((64, 64), Image.Resampling.BILINEAR) for file in files]
        images = torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255 for square in squares])
        for name, reward, cell in zip(COLUMNS[1:], rewards, rows[number][1:], strict=True):
            a, b = reward(images, [caption, caption]).double().tolist()
            gap = abs(a - b) if first == 0.5 else a - b if first > 0.5 else b - a
            assert abs(gap) > 1e-6 and float(cell) == pytest.approx(gap, rel=1e-3, abs=2e-7), (number, name)


def test_the_file_goes_back_into_the_data_and_the_same_command_computes_nothing_again(
    lpo_score: Callable[..., int], inputs: dict, capsys
) -> None:
    assert lpo_score() == 0
    before, stored = FILE.read_bytes(), sorted(Path("outputs/cache/scores").rglob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in stored]
    assert len(stored) == 3
    assert lpo_score("hydra.run.dir=outputs/score-image_pairs/again") == 0
    assert FILE.resolve().parent.name == "again" and FILE.read_bytes() == before
    assert [path.stat().st_mtime_ns for path in stored] == times
    scores = read_scores(FILE, 6)
    data = ImagePairs(inputs["data"], scores=FILE, strategy=None, resolution=64)
    gaps = data.train[1].gaps  # the second picture won
    assert gaps == pytest.approx(tuple(-scores.gaps[1]))


def test_a_score_that_is_null_leaves_its_column_empty_and_says_so(lpo_score: Callable[..., int], capsys) -> None:
    assert lpo_score("scores.vqa=null") == 0
    assert "vqascore_gap is empty, by scores.vqa=null" in capsys.readouterr().err
    gaps = read_scores(FILE, 6).gaps
    assert np.isnan(gaps[:, 2]).all() and np.isfinite(gaps[[0, 1, 2, 5], :2]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scores.vqa.weights=/no/model"], "scores.vqa: weights=/no/model: no such folder"),
        (["scores.aesthetic.weights=no.pth"], "scores.aesthetic: weights=no.pth: no such file; give the file sac+logo"),
        (["scores.clip=null", "scores.vqa=null", "scores.aesthetic=null"], "scores: nothing to compute; what works: a"),
        (["data.scores=old.csv"], "data.scores: this command makes the score file"),
        (["+scores.hps._target_=lpo_platform.rewards.clip.Clip"], "scores.hps: no column of a score file; what works"),
    ],
)
def test_what_cannot_work_is_one_line_and_ends_with_2(
    lpo_score: Callable[..., int], arguments: list[str], message: str, capsys
) -> None:
    Path("old.csv").touch()
    assert lpo_score(*arguments) == 2
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lpo-score: ")]
    assert len(found) == 1 and found[0].startswith(f"lpo-score: {message}")


def test_other_data_is_refused(tmp_path: Path) -> None:
    data = {"_target_": "lpo_platform.data.toy.Toy", "num_train": 4, "num_test": 4}
    hardware = {"_target_": "lpo_platform.hardware.hardware.Hardware"}
    cfg = OmegaConf.create({"data": data, "hardware": hardware, "scores": {"clip": {}}, "resolution": 64})
    with pytest.raises(UserError, match="data: these are no pairs with a preference; what works: data=image_pairs"):
        score(cfg, tmp_path)


def test_a_wrong_command_line_gets_exact_lines() -> None:
    assert diagnose("score", ["data.path=/", "scores.clip.weigths=3", "scores.vqa.dtype=float8"]) == [
        "scores.clip.weigths: Clip has no such option; did you mean 'weights'? "
        "Options: batch, dtype, processor, weights",
        "scores.aesthetic.weights: required by scores; add scores.aesthetic.weights=<value>",
        "scores.vqa.weights: required by scores; add scores.vqa.weights=<value>",
        "scores.vqa.dtype=float8: must be 'float32' or 'bfloat16' or 'float16' or 'auto'",
    ]
    assert diagnose("score", ["scores.vga.weights=1", "resolutoin=64"])[:2] == [
        "scores.vga.weights: scores has no such option; did you mean 'vqa'? Options: aesthetic, clip, vqa",
        "resolutoin: no such key or group; did you mean 'resolution'? Options: data, hardware, resolution, scores",
    ]


def test_help_is_quick_and_its_examples_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the launcher of a clone, which needs no installation."""
    code = (
        "import atexit, runpy, sys\n"
        f"heavy = {HEAVY!r}.split(', ')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['lpo-score', *sys.argv[1:]]\n"
        f"runpy.run_path({str(REPO / 'launchers' / 'score.py')!r}, run_name='__main__')\n"
    )
    ask = [sys.executable, "-c", code]
    done = subprocess.run([*ask, "--help"], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)
    assert (
        done.returncode == 0
        and "HEAVY []" in done.stderr
        and f"  hardware: {', '.join(shipped('hardware'))}\n" in done.stdout
    )
    wrong = subprocess.run([*ask, "dta=x"], cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "dta: no such key or group; did you mean 'data'?" in wrong.stderr
    assert "HEAVY []" in wrong.stderr and list(tmp_path.iterdir()) == []

    monkeypatch.chdir(tmp_path)
    Path("pickapic").mkdir()
    examples = [line for line in help_text("score", []).splitlines() if line.startswith("  lpo-score ")]
    assert len(examples) == 4
    for line in examples:
        words = line.strip().split("   ")[0].split()[1:]
        assert diagnose("score", [word for word in words if "=" in word]) == [], line
