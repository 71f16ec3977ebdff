"""A file of prompts as a data option, for methods that draw their own pictures."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from lpo_platform.config.errors import UserError
from lpo_platform.config.numbers import Count, Seed
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.source import ENOUGH, Sample, too_few
from lpo_platform.data.tables.hub import local_file
from lpo_platform.data.tables.parquet import values_of
from lpo_platform.runs.csv_rows import Bad, table
from lpo_platform.runs.files import fingerprint
from lpo_platform.runs.given_files import BAD_CHARACTERS, NOT_TEXT, clean, json_of, lines_of, read_bytes, text_of

logger = logging.getLogger(__name__)

KEYS = ("caption", "prompt", "text")
NO_TEXT = "entry without a prompt"
BAD_LINE = "line that is not JSON"
ALSO_TEST = "prompt that is held out, left out of training"

Entry = tuple[str, object]  # where it stands, and what should be a text, or Bad


class PromptList:
    """One split; the samples have no picture."""

    def __init__(self, prompts: list[Sample]) -> None:
        self._prompts = prompts
        self.fingerprint = fingerprint("prompts", [[prompt.id, prompt.caption] for prompt in prompts])

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} prompts, number {i} was asked for")
        return self._prompts[i]

    def caption(self, i: int) -> str:
        return self[i].caption

    @property
    def captions(self) -> list[str]:
        """Every prompt, in order."""
        return [prompt.caption for prompt in self._prompts]


class Prompts:
    """The prompts of a file. `train` has them in order, with duplicates; `test` has none twice; no prompt is in both.

    White space is collapsed. Prompts that differ only in white space or capitals are the same prompt.

    Args:
        path: a file, or one of a hub data set as <hub id>::<file>: .json (texts, objects as in LPO's
            4k_training_prompts.json, or an object of columns), .jsonl, .txt (one prompt per line), .csv or .parquet.
        test_path: a file of held-out prompts; null holds out prompts of `path`.
        num_test: how many prompts are held out. With test_path they are the first of that file. Without it they are
            different prompts of `path`, at most half of them, chosen by a hash of seed and text.
        column: of the text; null takes the first of caption, prompt, text.
        seed: of that choice.
        resolution: side of the pictures to draw. Nothing here depends on it.

    Raises:
        UserError: a file cannot be read, or nothing is left.
    """

    gives: ClassVar[tuple[str, ...]] = ("prompts",)
    paths: ClassVar[dict[str, str]] = {"path": "file or hub file", "test_path": "file or hub file"}

    def __init__(
        self,
        path: str | Path,
        test_path: str | Path | None = None,
        num_test: Count = 200,
        column: str | None = None,
        seed: Seed = 0,
        *,
        resolution: Count,
    ) -> None:
        if num_test < 1:
            raise UserError(f"data.num_test={num_test}; what works: 1 or more")
        self.path = Path(path)
        self._findings = Findings()
        texts = read_texts("data.path", path, column, self._findings)
        if test_path is None:
            different = _different(texts)
            order = sorted(different, key=lambda key: hashlib.sha256(f"{seed}|{key}".encode()).hexdigest())
            held_out = [different[key] for key in order[: min(num_test, len(order) // 2)]]
        else:
            found = read_texts("data.test_path", test_path, column, self._findings)
            held_out = list(_different(found).values())[:num_test]
        keys = {_key(text) for text in held_out}
        kept = [text for text in texts if _key(text) not in keys]
        if test_path is not None:
            for text in texts:
                if _key(text) in keys:
                    self._findings.skip(ALSO_TEST, repr(text[:40]))
        if not kept or not held_out:
            raise UserError(
                f"data.path={path}: {len(_different(texts))} different prompts leave {len(kept)} to train on and "
                f"{len(held_out)} to hold out; what works: two different prompts or more"
            )
        self.train = _split("train", kept)
        self.test = _split("test", held_out)
        works = f"more prompts, and data.num_test={ENOUGH} or more"
        found = list(filter(None, [too_few(len(self.test), works), self._findings.line()]))
        counts = f"{self.path}: {len(self.train)} prompts to train on, {len(self.test)} held out"
        logger.log(logging.WARNING if found else logging.INFO, "%s", " | ".join([counts, *found]))

    def report(self) -> dict[str, object]:
        """Counts, and `skipped` by reason with up to 3 examples."""
        counts = {"train": len(self.train), "test": len(self.test)}
        return {**counts, **self._findings.report()}


def read_texts(setting: str, path: str | Path, column: str | None, findings: Findings) -> list[str]:
    """The prompts of a file, in order; entries without one are reported. Raises UserError with the key `setting`."""
    where = f"{setting}={path}"
    file = local_file(setting, str(path))
    reader = READERS.get(file.suffix.lower())
    if reader is None or not file.is_file():
        what = "no such file" if not file.exists() else "a folder" if file.is_dir() else "another kind of file"
        raise UserError(f"{where}: {what}; what works: a file of prompts ({', '.join(READERS)})")
    names = KEYS if column is None else (column,)
    prompts = []
    try:
        for position, entry in reader(file, names):
            said = "" if isinstance(entry, Bad) else clean(entry)
            if said:
                prompts.append(said)
            else:
                findings.skip(_problem(entry), f"{file.name}:{position}")
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{where}: cannot be read ({reason}); what works: {WORKS[file.suffix.lower()]}") from error
    if not prompts:
        details = f" [{findings.line()}]" if findings.line() else ""
        raise UserError(f"{where}: no prompts{details}; what works: {WORKS[file.suffix.lower()]}")
    return prompts


def _problem(entry: object) -> str:
    """Why an entry gives no prompt."""
    if isinstance(entry, Bad):
        return entry
    return BAD_CHARACTERS if isinstance(entry, str) and entry.strip() else NO_TEXT


def _key(text: str) -> str:
    return text.casefold()


def _different(texts: list[str]) -> dict[str, str]:
    """Key -> its first spelling, in order."""
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(_key(text), text)
    return first


def _split(name: str, texts: list[str]) -> PromptList:
    return PromptList([Sample(f"{name}-{i:06d}", None, text) for i, text in enumerate(texts)])


def _text_of(entry: object, names: tuple[str, ...]) -> object:
    """The text of an entry that is one, or an object with one of the names."""
    if isinstance(entry, dict):
        return next((entry[name] for name in names if isinstance(entry.get(name), str)), None)
    return entry


def _json(file: Path, names: tuple[str, ...]) -> Iterator[Entry]:
    content = json_of(text_of(read_bytes(file)))
    if isinstance(content, dict):
        name = next((name for name in names if name in content), None)
        if name is None:
            raise ValueError(f"no key {' or '.join(names)} among {', '.join(list(content)[:8])}")
        content = content[name]
        content = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise ValueError("neither a list nor columns")
    for number, entry in enumerate(content):
        yield str(number), _text_of(entry, names)


def _jsonl(file: Path, names: tuple[str, ...]) -> Iterator[Entry]:
    for number, line in _txt(file, names):
        try:
            yield number, line if isinstance(line, Bad) else _text_of(json_of(line), names)
        except ValueError:
            yield number, Bad(BAD_LINE)


def _txt(file: Path, names: tuple[str, ...]) -> Iterator[Entry]:
    """The lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(lines_of(read_bytes(file)), 1):
        if line is None or line.strip():
            yield str(number), Bad(NOT_TEXT) if line is None else line


def _csv(file: Path, names: tuple[str, ...]) -> Iterator[Entry]:
    header, rows = table(read_bytes(file))
    name = _column(header, names)
    for number, row in rows:
        yield str(number), row if isinstance(row, Bad) else row[name]


def _parquet(file: Path, names: tuple[str, ...]) -> Iterator[Entry]:
    name = _column(pq.read_schema(file).names, names)
    texts = values_of(pq.read_table(file, columns=[name], partitioning=None)[name])
    return ((str(number), text) for number, text in enumerate(texts))


def _column(there: list[str], names: tuple[str, ...]) -> str:
    name = next((name for name in names if name in there), None)
    if name is None:
        raise ValueError(f"no column {' or '.join(names)} among {', '.join(there[:8])}; data.column=<name> chooses one")
    return name


READERS: dict[str, Callable[[Path, tuple[str, ...]], Iterator[Entry]]] = {
    ".json": _json,
    ".jsonl": _jsonl,
    ".txt": _txt,
    ".csv": _csv,
    ".parquet": _parquet,
}
WORKS = {
    ".json": "UTF-8 JSON, a list of texts or of objects with a caption, or an object of columns",
    ".jsonl": "UTF-8, on each line a text in quotes or an object with a caption",
    ".txt": "UTF-8, one prompt a line",
    ".csv": "UTF-8 with a header that names the column caption",
    ".parquet": "a table with a column caption",
}
