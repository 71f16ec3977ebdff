"""The pictures of several runs on one sheet."""

from pathlib import Path

from PIL import Image

from lpo_platform.tracking.report.collage import GAP, SIDE, TITLE, collage


def run(folder: Path, colours: dict[str, str], *, size: int, count: int = 3) -> Path:
    for kind, colour in colours.items():
        (folder / "samples" / kind).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (size, size), colour).save(folder / "samples" / kind / f"{number}.png")
    return folder


def test_each_run_is_a_block_with_its_kinds_from_above(tmp_path: Path) -> None:
    first = run(tmp_path / "a", {"condition": "red", "before": "lime", "after": "blue"}, size=10)
    second = run(tmp_path / "b", {"before": "yellow", "after": "cyan"}, size=10)
    sheet = collage([("first", first), ("second", second)], columns=2)
    assert sheet.size == (2 * (2 * (10 + GAP) + 2 * GAP), TITLE + 3 * (10 + GAP))
    step, right = 10 + GAP, 2 * (10 + GAP) + 2 * GAP
    at = lambda x, y: sheet.getpixel((GAP + x + 5, TITLE + y * step + 5))  # noqa: E731
    assert [at(step, row) for row in range(3)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert [at(right, row) for row in range(3)] == [(255, 255, 0), (0, 255, 255), (255, 255, 255)]


def test_large_pictures_are_made_small_and_runs_without_pictures_left_out(tmp_path: Path) -> None:
    large = run(tmp_path / "large", {"before": "red"}, size=4 * SIDE, count=1)
    sheet = collage([("large", large), ("none", tmp_path / "nothing")], columns=1)
    assert sheet.size == (SIDE + GAP + 2 * GAP, TITLE + SIDE + GAP)
    assert collage([("none", tmp_path / "nothing")]) is None
