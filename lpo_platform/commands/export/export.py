"""The command lpo-export: what a run trained, in a form for others, read back and compared before it counts."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from lpo_platform.commands.export.trained import FORMS, SUFFIXES, Trained, check_form, find
from lpo_platform.commands.terminal import VERSION
from lpo_platform.config.errors import UserError, hint, users
from lpo_platform.config.paths import runs_named
from lpo_platform.runs import files

KEYS = {
    "run": "a run folder, or the one above for its latest",
    "to": "the form",
    "save": "a folder that does not exist yet (default: <run>/exported/<to>)",
    "weights": f"one of {', '.join(SUFFIXES)} (default: those that the run's evaluation judged)",
}
EXAMPLES = f"""keys:

{chr(10).join(f"  {key:12}{words}" for key, words in KEYS.items())}

forms:

{chr(10).join(f"  {form:12}{words}" for form, words in FORMS.items())}

Every form is loaded again by stock diffusers and draws two held-out items at a fixed seed; where a weight or a picture
is not the run's own, nothing is left behind. A model card (README.md) with metrics and lineage lies beside it.

examples:

  lpo-export run=outputs/cpo-tiny-canny to=diffusers                 the newest run's ControlNet
  lpo-export run=outputs/lpo-sd15-none to=comfyui save=for_comfyui   a checkpoint or a LoRA
  lpo-export run=<run> to=merged weights=raw                         the last weights instead of their average
"""


def main() -> None:
    """Console command lpo-export."""
    parser = argparse.ArgumentParser(
        "lpo-export", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("settings", nargs="+", metavar="key=value")
    try:
        export(_settings(parser.parse_args().settings))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        cause = users(error)
        if not isinstance(cause, UserError):
            raise
        print(f"lpo-export: {cause}", file=sys.stderr)
        sys.exit(2)


def export(asked: dict[str, str]) -> Path:
    """The folder that was written: first as `<folder>.partial`, which is removed if anything goes wrong."""
    from lpo_platform.commands.terminal import set_threads, shown

    trained, to = find(asked["run"], asked.get("weights")), asked["to"]
    check_form(trained, to)
    folder = Path(asked.get("save") or trained.run.folder / "exported" / to).expanduser()
    if folder.exists():
        raise UserError(f"{shown(folder)}: is there already; remove it, or name another folder with save=")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{shown(partial)}: {error.strerror}") from None
    set_threads()
    try:
        check = _fill(trained, to, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{shown(folder)}: {FORMS[to]}\n  read back by {check}\n  model card  {shown(folder / 'README.md')}")
    return folder


def _fill(trained: Trained, to: str, folder: Path) -> object:
    from lpo_platform.commands.export import card, publish

    check = publish.publish(trained, to, folder, card.metadata(trained))
    files.write_text(folder / "README.md", card.card(trained, to, str(check)))
    files.follow_umask(folder)
    return check


def _settings(words: list[str]) -> dict[str, str]:
    """The words as a mapping; UserError for one that is none, is unknown or missing."""
    words = runs_named(words)
    if strange := [word for word in words if "=" not in word]:
        raise UserError(f"{strange[0]}: not a setting; write key=value with one of {', '.join(KEYS)}")
    found = dict(word.split("=", 1) for word in words)
    for key in found:
        if key not in KEYS:
            raise UserError(f"{key}: no such key{hint(key, KEYS)}")
    *forms, last = sorted(FORMS)
    for key, works in (("run", KEYS["run"]), ("to", f"{', '.join(forms)} or {last}")):
        if not found.get(key):
            raise UserError(f"{key}= is required: {works}")
    return found
