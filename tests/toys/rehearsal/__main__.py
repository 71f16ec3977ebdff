"""Rehearses the recipes of conf/experiment at toy size, by the ids that they state: python -m toys.rehearsal.

A folder gets a local hub of toy-size weights and data sets (toys/published/), and every command at the top of a file of
conf/experiment runs on it, changed in sizes alone: training, evaluation under the protocol of its paper, export, and a
picture by stock diffusers. A table says what each read and trained; the exit code is 1 if one fails.

To add a recipe, write its file with its command on the second line. What is rehearsed follows from that: `<export of
name>` is the export of another recipe, and other words in angle brackets are what `local` in toys/published/hub.py
makes. A hub id that is new gets a line in MODELS or DATA there, with a function that writes its files as they are
published.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

EVERYTHING = "everything"


def main() -> int:
    parser = argparse.ArgumentParser("rehearsal", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="names of recipes, whose first commands run; none for all")
    parser.add_argument("--folder", type=Path, help="what is made stays there; a temporary folder by default")
    parser.add_argument("--missing", action="store_true", help="also without each configuration file of the hub")
    parser.add_argument("--json", type=Path, help="the table as a file, too")
    asked = parser.parse_args()
    if asked.folder is not None:
        asked.folder.mkdir(parents=True, exist_ok=True)
        return _in(asked.folder.absolute(), asked)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        return _in(Path(folder), asked)


def _in(folder: Path, asked: argparse.Namespace) -> int:
    cache = folder / "hub"
    cache.mkdir(exist_ok=True)
    os.environ |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}  # before they are read
    from toys.rehearsal import missing, table

    json = asked.json and asked.json.absolute()
    os.chdir(folder)  # caches of data lie in outputs/
    rows = table.rehearse_all(folder, cache, asked.recipes)
    table.show(rows, json)
    lacking = list(missing.faults(rows, cache)) if asked.missing else []
    for line in lacking:
        print(line)
    return int(any(row.fault for row in rows) or bool(lacking))


if __name__ == "__main__":
    sys.exit(main())
