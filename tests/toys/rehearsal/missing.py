"""Takes a configuration file of the hub away, each in turn: its recipe ends in one message that names the model."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from toys.rehearsal.run import Row, metrics_of

import lpo_platform as lpo
from lpo_platform.commands.build import evaluator_of
from lpo_platform.commands.job import assemble, method_of
from lpo_platform.config.errors import UserError, users
from lpo_platform.models.hub import look

REPEATED = ("special_tokens_map.json", "generation_config.json")
"""What tokenizer_config.json and config.json have, too, so that nothing changes without them."""
UNUSED = {("models/laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "config.json")}
"""PickScore takes the processor from there, which looks at it and does not need it."""


def faults(rows: Iterable[Row], cache: Path) -> Iterator[str]:
    """One line for each file without which a recipe does not end as it should; each file is tried once."""
    tried: set[tuple[str, str]] = set()
    for row in rows:
        for name, file in row.configurations():
            if (name, file) not in tried | UNUSED and Path(file).name not in REPEATED:
                tried.add((name, file))
                with without(cache, name, file):
                    fault = _fault(row, name, file)
                if fault:
                    yield f"{row.title} without {name}/{file}: {fault}"


@contextmanager
def without(cache: Path, name: str, file: str) -> Iterator[None]:
    """The hub lacks a file meanwhile, which was never downloaded."""
    (link,) = (cache / name.replace("/", "--")).glob(f"snapshots/*/{file}")
    target = link.readlink()
    link.unlink()
    look.cache_clear()
    try:
        yield
    finally:
        link.symlink_to(target)
        look.cache_clear()


def _fault(row: Row, name: str, file: str) -> str:
    """Why the recipe did not end in one message, '' if it did."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            _load(row)
    except Exception as error:
        error = users(error)
        text = str(error)
        identity = name.split("/", 1)[1]  # or the folder of the cache that is named after it
        named = (identity in text or identity.replace("/", "--") in text) and Path(file).name in text
        fine = isinstance(error, UserError) and named and len(text.splitlines()) == 1
        return "" if fine else f"{type(error).__name__}: {text}"
    return "nothing happened"


def _load(row: Row) -> None:
    """Builds all that the training and the evaluation of a recipe are made of, and ends before a step is taken."""
    job = assemble(lpo.compose(*row.words))
    for words in ([], metrics_of(row.protocol)):
        cfg = lpo.compose(*row.words, *words)
        evaluator_of(cfg, job.policy.adapter, replace(job, cfg=cfg).eval_task)
    method_of(job)
