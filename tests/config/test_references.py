"""Texts name files that exist: here, or in a repository of the papers' authors."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("lpo_platform", "conf", "launchers", "tests")
FILE = re.compile(r"(?<![\w./<>:$\"-])((?:\.\./)*(?:[\w.-]+/)+[\w-]+\.(?:py|md))\b")
ELSEWHERE = {
    "ZonglinL/CPO": (
        "controlnets/controlnet.py", "eval/eval.py", "eval/eval_dino.py", "eval/eval_poses.py", "train/canny_tools.py",
        "train/reward_CPO.py", "train/reward_CPO_DINO.py", "train/reward_DINO.py", "train/reward_control_original.py",
    ),
    "liming-ai/ControlNet_Plus_Plus": ("train/reward_control.py",),
    "Kwai-Kolors/LPO": ("lpo/train_scripts/train_lpo.py", "evaluation/general_score_pap_val.py"),
    "cocodataset/cocoapi": ("pycocotools/cocoeval.py",),
    "djghosh13/geneval": ("evaluation/evaluate_images.py", "evaluation/summary_scores.py"),
    "Karine-Huang/T2I-CompBench": (
        "BLIPvqa_eval/BLIP_vqa.py", "CLIPScore_eval/CLIP_similarity.py", "3_in_1_eval/3_in_1.py",
    ),
}  # fmt: skip
WRITTEN = {"outputs/sweeps/mine/sweep.md"}  # by a sweep of a test


def texts() -> list[Path]:
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".yaml", ".md")]
    return [path for path in [*found, ROOT / "README.md"] if path != Path(__file__)]


def names() -> set[str]:
    """Every file of the rooms, under each end of its path that has a folder."""
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.*"):
            parts = path.relative_to(ROOT).parts
            found |= {"/".join(parts[start:]) for start in range(len(parts) - 1)}
    return found


def test_every_file_that_a_text_names_exists() -> None:
    known = names() | WRITTEN | {file for files in ELSEWHERE.values() for file in files}
    missing = [
        f"{path.relative_to(ROOT)}:{number} {file}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for file in FILE.findall(line)
        if file.replace("../", "") not in known
    ]
    assert missing == []


def test_the_search_finds_what_is_missing() -> None:
    found = {
        "(notes/cpo.md section 1)": ["notes/cpo.md"],
        "see data/mpcf.py.": ["data/mpcf.py"],
        "`../rewards/README.md`": ["../rewards/README.md"],
        "https://a.org/b/c.py": [],
        "<run>/x.md": [],
    }
    assert {line: FILE.findall(line) for line in found} == found
    assert "rewards/README.md" in names() and not {"notes/cpo.md", "data/mpcf.py"} & names()
