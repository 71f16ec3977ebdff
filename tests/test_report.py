"""The report page of a synthetic run folder: complete, partial and hostile."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lpo_platform import record
from lpo_platform.evaluation.statistics import compare
from lpo_platform.tracking.report import (
    compose_defaults,
    duration,
    smoothed,
    split_metrics,
    thinned,
    ticks,
    write_report,
)

CHOICES = {"model": "tiny", "method": "cpo", "task": "canny", "control": "controlnet", "data": "toy"}


class Page(HTMLParser):
    """Collects tags, text and every address that a browser would load."""

    VOID = frozenset({"meta", "img", "br", "line", "circle", "polyline"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.words += data


def scene(generator: np.random.Generator, *, noise: float, seed: int, side: int) -> np.ndarray:
    """A drawn shape, blurred by noise that stands for a model's mistakes: (side, side, 3) uint8."""
    shape = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(int(v) for v in shape.integers(150, 255, 3)))
    draw, color = ImageDraw.Draw(image), tuple(int(v) for v in shape.integers(0, 150, 3))
    x, y, r = (int(v) for v in shape.integers(side // 4, side // 2, 3))
    (draw.ellipse if seed % 2 else draw.rectangle)((x - r // 2, y - r // 2, x + r // 2, y + r // 2), fill=color)
    pixels = np.asarray(image, dtype=np.float64) + generator.normal(0, noise, (side, side, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def edges(pixels: np.ndarray) -> np.ndarray:
    gray = pixels.astype(np.float64).mean(axis=2)
    strength = np.hypot(*np.gradient(gray))
    return np.repeat(np.where(strength > 18, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def make_run(folder: Path, *, pictures: int = 16, side: int = 64, steps: int = 300, count: int = 128) -> Path:
    """A finished run as the platform leaves it, with plausible numbers."""
    generator = np.random.default_rng(0)
    config = {
        "name": None, "seed": 0, "resume": None,
        "model": {"_target_": "lpo_platform.models.tiny.load", "resolution": side, "guidance": 3.0},
        "task": {"_target_": "lpo_platform.tasks.canny.Canny", "low": 0.1, "high": 0.2},
        "method": {"_target_": "lpo_platform.methods.cpo.CPO", "loss": "hard", "beta": 2500.0, "steps": steps},
        "optim": {"lr": 1e-05},
    }  # fmt: skip
    record.start(folder, config, ["/somewhere/bin/lpo-train", "method=cpo", "task=canny", "optim.lr=1e-5"])
    (folder / ".hydra").mkdir()
    record.write_json(folder / ".hydra" / "hydra.yaml", {"hydra": {"runtime": {"choices": CHOICES}}})

    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            noise = generator.normal(0, 0.06)
            row = {"step": step, "time": step * 0.3, "epoch": step // 50}
            row |= {"train/loss": 0.35 + 0.4 * np.exp(-step / 60) + noise, "train/grad_norm": 0.2 + abs(noise)}
            row |= {"train/lr": 1e-5 * min(1, step / 30), "cpo/difference": -0.002 * step / steps + noise / 50}
            row |= {"cpo/implicit_accuracy": 0.5 + 0.4 * (1 - np.exp(-step / 80)) + noise / 2}
            row |= {"perf/train_seconds": 0.29, "perf/images_per_second": 52.0 + noise}
            file.write(json.dumps(row) + "\n")

    base = generator.beta(5, 5, count)
    f1 = (base, (base + generator.normal(0.06, 0.09, count)).clip(0, 1))
    text = generator.beta(8, 3, count)
    alignment = (text, (text + generator.normal(0.0, 0.05, count)).clip(0, 1))
    before = {"canny/f1": f1[0], "text/alignment": alignment[0], "image/distance": 40 * f1[0]}
    after = {"canny/f1": f1[1], "text/alignment": alignment[1], "image/distance": 40 * f1[0] + 1 + 3 * (f1[1] - f1[0])}
    better = {"canny/f1": True, "text/alignment": True, "image/distance": False}
    (folder / "evaluation").mkdir()
    with (folder / "evaluation" / "items.jsonl").open("w") as file:
        for i in range(count):
            item = {
                "id": f"{i:05d}",
                "caption": f"a large {['red', 'blue', 'green'][i % 3]} circle left of a small square",
            }
            item |= {f"{n}/before": float(before[n][i]) for n in before}
            item |= {f"{n}/after": float(after[n][i]) for n in after}
            file.write(json.dumps(item) + "\n")

    for i in range(pictures):
        clean = scene(generator, noise=0, seed=i, side=side)
        drawn = {
            "before": scene(generator, noise=22, seed=i, side=side),
            "after": scene(generator, noise=7, seed=i, side=side),
        }
        all_pictures = {"condition": edges(clean), **drawn, **{f"detected_{n}": edges(p) for n, p in drawn.items()}}
        for name, pixels in all_pictures.items():
            (folder / "samples" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "samples" / name / f"{i}.png")

    metrics = compare(before, after, better, resamples=2000)
    record.finish(folder, metrics, count, 148.2, {"export": folder / "export"}, seed=0)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("cpo-tiny-canny") / "2026-01-01_00-00-00")


def test_the_page_holds_everything_and_loads_nothing(run: Path) -> None:
    text = write_report(run).read_text()
    page = Page(text)
    assert page.open == [] and page.handlers == []
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text).replace("http-equiv", "")
    assert page.tags.count("img") == 16 * 5
    assert "CPO raised canny/f1 from" in page.words
    assert "Elsewhere it cost something: image/distance +1." in page.words
    for words in ("better", "worse", "unclear", "train/loss", "cpo/implicit_accuracy", "2 min 28 s", "method=cpo"):
        assert words in page.words
    assert "lpo-train method=cpo task=canny optim.lr=1e-5" in page.words
    assert len(text) < 3_000_000


def test_numbers_of_the_table_are_those_of_the_result(run: Path) -> None:
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    words = Page(write_report(run).read_text()).words
    assert f"{metrics['canny/f1']['before']:.3f}" in words and f"{metrics['canny/f1']['after']:.3f}" in words


@pytest.mark.parametrize(
    "missing",
    [
        "resolved.yaml",
        "env.json",
        "metrics.jsonl",
        "result.json",
        "evaluation/items.jsonl",
        ".hydra/hydra.yaml",
        "samples",
    ],
)
def test_a_missing_file_is_said_and_the_rest_still_renders(tmp_path: Path, missing: str) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    target = folder / missing
    (target.rename(tmp_path / "gone") if target.is_dir() else target.unlink())
    page = Page(write_report(folder).read_text())
    assert page.open == [] and "Before and after" in page.words and "Environment" in page.words


def test_an_empty_folder_still_gives_a_page(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text())
    assert "This run recorded no before and after." in page.words
    for words in ("result.json holds no metrics", "samples/ holds no pictures", "env.json is missing"):
        assert words in page.words


def test_damaged_files_do_not_stop_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    (folder / "samples" / "after" / "0.png").write_bytes(b"not a picture")
    (folder / "samples" / "before" / "1.png").unlink()
    (folder / "resolved.yaml").write_text("a: [1,\nb: ${")
    (folder / "env.json").write_text("[]")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "time": 1, "train/loss": null}\n{"step": 21, "ti')
    words = Page(write_report(folder).read_text()).words
    assert "unreadable" in words and "missing" in words and "resolved.yaml is missing" in words


def test_nothing_from_the_run_becomes_markup(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=2, steps=20, count=10)
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$title"
    rows = record.read_lines(folder / "evaluation" / "items.jsonl")
    lines = [json.dumps({**row, "caption": evil}) for row in rows]
    (folder / "evaluation" / "items.jsonl").write_text("\n".join(lines))
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": s, "time": 1.0, evil: 1.0 + s}) + "\n" for s in (30, 31))
    result = json.loads((folder / "result.json").read_text())
    result["metrics"][evil] = result["metrics"]["canny/f1"]
    result |= {"command": ["lpo-train", evil], "seed": evil}
    record.write_json(folder / "result.json", result)
    record.write_json(folder / "env.json", {"versions": {evil: evil}, "machine": {"cpu": evil}})
    record.write_text(folder / "resolved.yaml", record.resolved_yaml({"a": evil}))
    page = Page(write_report(folder).read_text())
    assert page.tags.count("script") == 1 and page.handlers == [] and "x" not in page.addresses
    assert page.words.count(evil) >= 4


def test_failed_and_running_runs_say_so(tmp_path: Path) -> None:
    record.start(tmp_path, {"seed": 1}, ["lpo-train"])
    assert "This run has no result yet." in Page(write_report(tmp_path).read_text()).words
    record.fail(tmp_path, "the GPU ran out of memory")
    assert "This run failed: the GPU ran out of memory" in Page(write_report(tmp_path).read_text()).words


def test_large_pictures_are_scaled_down_and_only_tiny_ones_drawn_with_hard_pixels(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", pictures=1, side=1024, steps=5, count=4)
    text = write_report(folder).read_text()
    assert "data:image/webp" in text and "class=tiny" not in text and len(text) < 1_000_000


def test_difference_to_the_defaults_lists_what_was_changed(tmp_path: Path) -> None:
    defaults = compose_defaults(CHOICES)
    assert defaults is not None and "hydra" not in defaults
    changed = {**defaults, "seed": 7}
    folder = make_run(tmp_path / "run", pictures=1, steps=5, count=4)
    record.write_text(folder / "resolved.yaml", record.resolved_yaml(changed))
    words = Page(write_report(folder).read_text()).words
    assert "Differs from the defaults of these options in 1 value" in words
    record.write_text(folder / "resolved.yaml", record.resolved_yaml(defaults))
    assert "Every value is the default" in Page(write_report(folder).read_text()).words


def test_the_optimised_metric_is_the_tasks_and_the_rest_are_guards() -> None:
    names = {"text/alignment": 1, "canny/f1": 2, "canny/recall": 3}
    assert split_metrics(names, "canny") == ("canny/f1", ["text/alignment", "canny/recall"])
    assert split_metrics(names, None) == ("text/alignment", ["canny/f1", "canny/recall"])


def test_chart_arithmetic() -> None:
    assert smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    points = [(i, float(i == 777)) for i in range(5000)]
    kept = thinned(points)
    assert len(kept) <= 402 and (777, 1.0) in kept and kept[0] == points[0] and kept[-1] == points[-1]
    for low, high in [(0.0, 1.0), (-3.2, 7.9), (1e-5, 3e-5), (2.0, 2.0), (0.0, 0.0), (120, 180000)]:
        marks = ticks(low, high)
        slack = 1e-9 * max(abs(low), abs(high))
        assert marks[0] - slack <= low <= high <= marks[-1] + slack and 2 <= len(marks) <= 7
    assert [duration(s) for s in (9.34, 125, 11520)] == ["9.3 s", "2 min 05 s", "3 h 12 min"]
