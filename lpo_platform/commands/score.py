"""lpo-score: the score file by which Multi-Preference Consistent Filtering chooses its pairs (arXiv:2502.01051).

For every row of a preference dataset, in its order: whether one picture won, and the winner's aesthetic, CLIP and VQA
score minus the loser's. Each score has its own store, so a killed run continues where it was, and another model for one
score leaves the other two as they are.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from lpo_platform.commands.build import create, located, plain
from lpo_platform.commands.job import CACHE
from lpo_platform.commands.job_log import quiet, say
from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.store import Problem, Store
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.score_file import COLUMNS, Scores, write_scores
from lpo_platform.data.source import Preference, Preferences
from lpo_platform.hardware.hardware import Hardware
from lpo_platform.models.weights import digest
from lpo_platform.rewards.reward import Reward, checked
from lpo_platform.runs.files import fingerprint

NAMES = ("aesthetic", "clip", "vqa")  # in the order of the gaps in COLUMNS
VERSION = 1  # raise it when a score changes its meaning
PART = 256  # pairs that are stored together; what a killed run has to do again is less than that
CHUNK = 16  # pairs that are read ahead together

Row = tuple[Preference | None, str]  # the row, or the reason why it cannot be read


class PairRows(Preferences, Protocol):
    """A split of preferences that knows its rows without reading their pictures.

    Attributes:
        positions: (N,), the number of each item's row in the files.
        preferred: (N,), the probability that the first picture is preferred.
        num_rows: rows in the files, including those that are no item.
    """

    positions: np.ndarray
    preferred: np.ndarray
    num_rows: int


def score(cfg: DictConfig, folder: Path) -> Path:
    """Writes `<folder>/scores.csv` and returns its path; what cannot be read has empty gaps and is reported."""
    quiet()
    hardware: Hardware = create(cfg.hardware)
    split = _split(cfg)
    nodes = {name: node for name, node in plain(cfg.scores).items() if node is not None}
    stores = {name: store_of(split, name, node, CACHE / "scores") for name, node in nodes.items()}

    def reward_of(name: str) -> Reward:
        with located(f"scores.{name}"):
            reward = create(nodes[name])
            return reward.to(hardware.device) if isinstance(reward, torch.nn.Module) else reward

    compute(split, stores, reward_of, workers=hardware.num_workers)
    scores, findings = collect(split, stores)
    path = folder / "scores.csv"
    write_scores(path, scores)
    _tell(path, scores, findings, [name for name in NAMES if name not in nodes])
    return path


def store_of(split: PairRows, name: str, node: dict, folder: Path) -> Store:
    """The store of one score: its key is the data, the settings of the model and the contents of its files."""
    settings = {key: _identity(value) for key, value in node.items() if key != "batch"}
    return Store(folder, fingerprint("score", VERSION, name, split.fingerprint, settings), len(split))


def missing(store: Store) -> list[range]:
    """The parts of which pairs are neither scored nor known to be unreadable."""
    parts = [range(i, min(i + PART, store.total)) for i in range(0, store.total, PART)]
    return [part for part in parts if any(store.read(i) is None and i not in store.problems for i in part)]


@torch.no_grad()
def compute(split: PairRows, stores: dict[str, Store], reward_of: Callable[[str], Reward], *, workers: int = 0) -> None:
    """Adds to the stores what they lack, with a progress bar; every picture is read once for all scores.

    A pair has `score` (2,) float32, or the reason why it cannot be read. reward_of: makes the reward of a score that
    lacks pairs. Raises UserError with the name of a reward that returns something else than finite numbers.
    """
    lacking = {name: missing(store) for name, store in stores.items()}
    rewards = {name: reward_of(name) for name, parts in lacking.items() if parts}
    parts = sorted(set().union(*lacking.values()), key=lambda part: part.start)
    chunks = [range(i, min(i + CHUNK, part.stop)) for part in parts for i in range(part.start, part.stop, CHUNK)]
    done = len(split) - sum(map(len, parts))
    try:
        with tqdm(total=len(split), initial=done, desc="scores", unit="pair") as bar:
            rows = _read_ahead(split, chunks, workers)
            for part in parts:
                wanted = [name for name in stores if part in lacking[name]]
                scores: dict[str, list[Tensor]] = {name: [] for name in wanted}
                problems: dict[int, Problem] = {}
                there: list[int] = []
                for start in range(part.start, part.stop, CHUNK):
                    chunk = list(enumerate(next(rows), start))
                    pairs = [pair for _, (pair, _) in chunk if pair is not None]
                    there += [i for i, (pair, _) in chunk if pair is not None]
                    problems |= {i: (why, f"row {split.positions[i]}") for i, (pair, why) in chunk if pair is None}
                    for name in wanted:
                        scores[name].append(score_pairs(name, rewards[name], pairs))
                    bar.update(len(chunk))
                for name in wanted:
                    stores[name].write(there, {"score": torch.cat(scores[name])}, problems)
    finally:
        for store in stores.values():
            store.close()


def score_pairs(name: str, reward: Reward, pairs: Sequence[Preference]) -> Tensor:
    """(n, 2) float32 on the CPU: the score of either picture."""
    if not pairs:
        return torch.empty(0, 2)
    images = torch.cat([pair.images for pair in pairs])
    prompts = [pair.caption for pair in pairs for _ in range(2)]
    return checked(name, reward(images, prompts), len(images)).cpu().float().view(-1, 2)


def collect(split: PairRows, stores: dict[str, Store]) -> tuple[Scores, Findings]:
    """The score file's rows, one for each row of the files, and what could not be read.

    The gap of a tie is stored as its absolute value, which is what filtering compares with a threshold.
    """
    positions, preferred = np.asarray(split.positions), np.asarray(split.preferred)
    different, gaps = np.zeros(split.num_rows, bool), np.full((split.num_rows, len(NAMES)), np.nan)
    different[positions] = preferred != 0.5
    findings, problems = Findings(), {}
    for name, store in stores.items():
        pairs = np.full((len(split), 2), np.nan)
        for i in range(len(split)):
            if (found := store.read(i)) is not None:
                pairs[i] = found["score"]
        gaps[positions, NAMES.index(name)] = winner_less_loser(*pairs.T, preferred)
        problems |= store.problems
    for _, problem in sorted(problems.items()):
        findings.skip(*problem)
    return Scores(different, gaps), findings


def winner_less_loser(first: np.ndarray, second: np.ndarray, preferred: np.ndarray) -> np.ndarray:
    """Scores (N,) of both pictures and the probability that the first is preferred -> gaps (N,); |gap| for a tie."""
    gap = first - second
    return np.where(preferred == 0.5, np.abs(gap), np.sign(preferred - 0.5) * gap)


def _split(cfg: DictConfig) -> PairRows:
    """The training split, whole. Raises UserError for data or scores that this command cannot work with."""
    unknown = sorted(set(cfg.scores) - set(NAMES))
    if unknown or all(cfg.scores[name] is None for name in cfg.scores):
        what = f"scores.{unknown[0]}: no column of a score file" if unknown else "scores: nothing to compute"
        raise UserError(f"{what}; what works: {', '.join(NAMES)}")
    if cfg.data.get("scores") is not None:
        raise UserError("data.scores: this command makes the score file, and filtered rows would be missing; remove it")
    split = create(cfg.data, resolution=cfg.resolution).train
    if not all(hasattr(split, name) for name in PairRows.__annotations__):
        raise UserError("data: these are no pairs with a preference; what works: data=image_pairs data.path=<folder>")
    return split


def _read_ahead(split: PairRows, chunks: Iterable[range], workers: int) -> Iterator[list[Row]]:
    """The rows of each chunk, while the next one is being read in threads."""

    def read(i: int) -> Row:
        try:
            pair = split[i]
        except ValueError as error:
            return None, str(getattr(error, "reason", error))
        if len(pair.images) != 2:
            raise UserError(f"{pair.id}: {len(pair.images)} pictures; a score file is about pairs")
        return pair, ""

    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        before: list[Future[Row]] | None = None
        for chunk in chunks:
            reading = [pool.submit(read, i) for i in chunk]
            if before is not None:
                yield [row.result() for row in before]
            before = reading
        if before is not None:
            yield [row.result() for row in before]


def _identity(value: object) -> object:
    """The contents of the file or folder that a setting names, else the setting itself."""
    try:
        return digest(value) if isinstance(value, str) else value
    except OSError:  # a text too long to be a path
        return value


def _tell(path: Path, scores: Scores, findings: Findings, left_out: list[str]) -> None:
    empty = int(np.isnan(scores.gaps).any(1).sum())
    kept = ", ".join(f"{strategy}: {int(scores.consistent(strategy).sum())}" for strategy in (1, 2, 3))
    say(" | ".join(filter(None, [f"{len(scores)} rows, {empty} of them with empty cells", findings.line()])))
    for name in left_out:
        say(f"{COLUMNS[1 + NAMES.index(name)]} is empty, by scores.{name}=null; filtering drops such rows")
    say(f"rows that each strategy keeps  {kept}\nscores  {path}")
