"""The command lpo-export: what a run trained, in a form for others, read back and compared before it counts."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lpo_platform.commands.export.trained import FORMS, SUFFIXES, Trained, check_form, find, first_form
from lpo_platform.commands.terminal import VERSION
from lpo_platform.config.errors import UserError, hint, users
from lpo_platform.config.paths import runs_named
from lpo_platform.runs import files

KEYS = {
    "run": "a run folder, or the one above for its latest",
    "to": "the form, or hub: a repository of a model hub",
    "save": "a folder that does not exist yet (default: <run>/exported/<to>)",
    "weights": f"one of {', '.join(SUFFIXES)} (default: those that the run's evaluation judged)",
    "repo": "to=hub: the repository, <owner>/<name>; it is made if it does not exist",
    "private": "to=hub: true for a repository that only you see (default: false)",
    "form": "to=hub: the form that is uploaded (default: the first that can hold what was trained)",
}
OF_THE_HUB = ("repo", "private", "form")
EXAMPLES = f"""keys:

{chr(10).join(f"  {key:12}{words}" for key, words in KEYS.items())}

forms:

{chr(10).join(f"  {form:12}{words}" for form, words in FORMS.items())}

Every form is loaded again by stock diffusers and draws two held-out items at a fixed seed; where a weight or a picture
is not the run's own, nothing is left behind. A model card (README.md) with metrics and lineage lies beside it.
to=hub uploads the same files, with the token of HF_TOKEN or of `hf auth login`. Nothing else asks a hub.

examples:

  lpo-export run=outputs/cpo-tiny-canny to=diffusers                 the newest run's ControlNet
  lpo-export run=outputs/lpo-sd15-none to=comfyui save=for_comfyui   a checkpoint or a LoRA
  lpo-export run=<run> to=merged weights=raw                         the last weights instead of their average
  lpo-export run=<run> to=hub repo=me/canny-cpo private=true         a repository with a model card
"""


def main() -> None:
    """Console command lpo-export."""
    parser = argparse.ArgumentParser(
        "lpo-export", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=VERSION)
    parser.add_argument("settings", nargs="+", metavar="key=value")
    try:
        export(export_settings(parser.parse_args().settings))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        cause = users(error)
        if not isinstance(cause, UserError):
            raise
        print(f"lpo-export: {cause}", file=sys.stderr)
        sys.exit(2)


def export(asked: dict[str, str]) -> Path:
    """The folder that was written, of an upload the run's. A failure leaves nothing."""
    from lpo_platform.commands.terminal import shown

    trained, to = find(asked["run"], asked.get("weights")), asked["to"]
    if to == "hub":
        return _to_hub(trained, asked)
    check_form(trained, to)
    folder = Path(asked.get("save") or trained.run.folder / "exported" / to).expanduser()
    if folder.exists():
        raise UserError(f"{shown(folder)}: is there already; remove it, or name another folder with save=")
    with _written(trained, to, folder) as (partial, check):
        partial.rename(folder)
    print(f"{shown(folder)}: {FORMS[to]}\n  read back by {check}\n  model card  {shown(folder / 'README.md')}")
    return folder


def _to_hub(trained: Trained, asked: dict[str, str]) -> Path:
    """Writes a form into the run's folder, uploads it and takes it away again."""
    from lpo_platform.commands.export import hub
    from lpo_platform.tracking.report.report import title

    to, repo, private = asked.get("form") or first_form(trained), asked["repo"], asked.get("private") == "true"
    check_form(trained, to, key="form")
    folder = trained.run.folder / "exported" / "hub"
    hub.check_access(repo, private=private)
    with _written(trained, to, folder, repo) as (partial, check):
        address = hub.push(partial, repo, private=private, title=title(trained.run))
    print(f"{address}: {FORMS[to]}\n  read back by {check}")
    return trained.run.folder


@contextmanager
def _written(trained: Trained, to: str, folder: Path, place: str | None = None) -> Iterator[tuple[Path, object]]:
    """A form of what was trained at `<folder>.partial`, which is gone at the end, and how it was read back."""
    from lpo_platform.commands.terminal import set_threads, shown

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{shown(partial)}: {error.strerror}") from None
    set_threads()
    try:
        yield partial, _fill(trained, to, partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fill(trained: Trained, to: str, folder: Path, place: str | None) -> object:
    from lpo_platform.commands.export import card, publish

    check = publish.publish(trained, to, folder, card.metadata(trained))
    files.write_text(folder / "README.md", card.card(trained, to, str(check), place or card.HERE))
    files.follow_umask(folder)
    return check


def export_settings(words: list[str]) -> dict[str, str]:
    """The words as a mapping; UserError for one that is none, is unknown or missing."""
    words = runs_named(words)
    if strange := [word for word in words if "=" not in word]:
        raise UserError(f"{strange[0]}: not a setting; write key=value with one of {', '.join(KEYS)}")
    found = dict(word.split("=", 1) for word in words)
    for key in found:
        if key not in KEYS:
            raise UserError(f"{key}: no such key{hint(key, KEYS)}")
    required = {"run": KEYS["run"], "to": f"{', '.join(sorted(FORMS))} or hub"}
    required |= {"repo": KEYS["repo"]} if found.get("to") == "hub" else {}
    for key, works in required.items():
        if not found.get(key):
            raise UserError(f"{key}= is required: {works}")
    foreign = ["save"] if found["to"] == "hub" else OF_THE_HUB
    if wrong := [key for key in foreign if key in found]:
        raise UserError(f"{wrong[0]}=: {'not' if found['to'] == 'hub' else 'only'} with to=hub")
    if found.get("private", "true") not in ("true", "false"):
        raise UserError(f"private={found['private']}: must be true or false")
    return found
