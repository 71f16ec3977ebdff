"""Takes a configuration file of the hub away, each in turn: its recipe ends in one message that names the model."""

import contextlib
import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from toys.rehearsal.run import Row

import lpo_platform as lpo
from lpo_platform.config.errors import UserError
from lpo_platform.models.hub import look


def faults(rows: Iterable[Row], cache: Path, folder: Path) -> Iterator[str]:
    """One line for each file without which a recipe does not end as it should; each file is tried once."""
    tried: set[tuple[str, str]] = set()
    for row in rows:
        for name, file in row.configurations():
            if (name, file) not in tried:
                tried.add((name, file))
                with without(cache, name, file):
                    fault = _fault(row, name, folder / "missing")
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


def _fault(row: Row, name: str, folder: Path) -> str:
    """Why the recipe did not end in one message, '' if it did."""
    identity = name.split("/", 1)[1]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            lpo.train(*row.words, folder=folder)
    except UserError as error:
        text = str(error)
        return "" if identity in text and len(text.splitlines()) == 1 else f"the message is {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing happened"
