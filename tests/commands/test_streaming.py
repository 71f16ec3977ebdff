"""A training on rows that are made as it reads them: the same weights, bit for bit, whatever was kept before."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lpo_platform.commands import build, fit
from lpo_platform.commands.doctor.first_step import Checkup
from lpo_platform.commands.job import Job, assemble, method_of
from lpo_platform.config import compose
from lpo_platform.config.schema import CONF
from lpo_platform.data.prepared import rounds
from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.runs.files import read_lines
from lpo_platform.tracking.callbacks.checkpoint import newest
from lpo_platform.tracking.callbacks.throughput import WAITING

WORDS = [
    "task=canny", "hardware=cpu", "logger=none", "method.batch=4", "hardware.micro_batch=2", "callbacks.every=2",
    "callbacks.samples=0", "callbacks.sentinel=null", "data.num_train=9", "model.num_inference_steps=2",
]  # fmt: skip
METHODS = {
    "cpo": ["method=cpo", "method.steps=6"],
    "control": ["method=control", "method.steps=6"],
    "dpo_control": ["method=dpo_control", "method.steps=4", "method.group=2", "reward=toy", "method.gap=-1"],
}


def job_of(*words: str) -> Job:
    return assemble(OmegaConf.create(compose.compose("train", [*WORDS, *words], [], CONF).values))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Stop(Checkup):
    """Ends a training after some micro-batches, in the middle of a round."""

    left: int | None = None

    def on_train_batch_end(self, *watched: object) -> None:
        super().on_train_batch_end(*watched)
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise RuntimeError("ended")


class Trial:
    """Trainings of one job, which all begin with the same weights."""

    def __init__(self, *words: str) -> None:
        self.job = job_of(*words)
        self.start = copy.deepcopy(self.job.policy.learning.state_dict())

    def train(self, folder: Path, keep: str = "auto", stop: int | None = None) -> dict[str, Tensor]:
        self.job.policy.learning.load_state_dict(self.start)
        self.job.policy.references.clear()
        self.job.cfg.data.cache = keep
        settings, checkup = build.create(self.job.cfg.callbacks), Stop(folder, averaged=True)
        checkup.left = stop
        evaluator = build.create(self.job.cfg.metrics)
        fit.fit(self.job, method_of(self.job), self.job.rows(), evaluator, settings, folder, checkup=checkup)
        return torch.load(newest(folder / "checkpoints"), weights_only=True)["state_dict"]


# of the three only cpo draws what it trains on, one by one; the others run with the slow tests
TRIALS = [name if name == "cpo" else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("method", TRIALS)
def test_the_weights_do_not_depend_on_what_was_kept(here: Path, method: str) -> None:
    trial = Trial(*METHODS[method])
    streamed = trial.train(here / "streamed", "none")
    assert not list(Path("outputs/cache").rglob("*.safetensors"))
    with pytest.raises(RuntimeError, match="ended"):
        trial.train(here / "resumed", stop=7)
    runs = {"resumed": trial.train(here / "resumed")}
    shares = [row[WAITING] for row in read_lines(here / "resumed" / "metrics.jsonl") if WAITING in row]
    assert len(shares) > 1 and all(0 <= share < 1 for share in shares)
    kept = sorted(Path("outputs/cache").rglob("*.safetensors"))
    assert kept
    for file in kept[::2]:
        file.unlink()
    runs["half kept"] = trial.train(here / "half")
    again = sorted(Path("outputs/cache").rglob("*.safetensors"))
    assert len(again) == len(kept)
    runs["kept"] = trial.train(here / "kept")
    assert sorted(Path("outputs/cache").rglob("*.safetensors")) == again
    for name, weights in runs.items():
        assert weights.keys() == streamed.keys() != set(), name
        assert all(torch.equal(weights[key], value) for key, value in streamed.items()), name


@pytest.mark.parametrize("method", TRIALS)
def test_samples_do_not_depend_on_the_number_of_processes(
    here: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    job = job_of(*METHODS[method], "data.cache=none")

    def read(size: int) -> dict[int, dict[str, Tensor]]:
        """What each of so many processes reads, by position."""
        samples: dict[int, dict[str, Tensor]] = {}
        for rank in range(size):
            monkeypatch.setattr(rounds, "world", lambda rank=rank: (rank, size))
            own = Rounds(job.rows(), job.needs(), batch=4, micro_batch=1, steps=4, every=4, seed=0)
            for batch in own.batches(range(4)):
                samples[int(batch["position"])] = batch
        return samples

    alone = read(1)
    for size in (2, 4):
        several = read(size)
        assert sorted(several) == sorted(alone) == list(range(16))
        assert all(torch.equal(several[p][n], column) for p, batch in alone.items() for n, column in batch.items())


def test_what_is_prepared_is_what_a_training_reads(here: Path) -> None:
    """As lpo-prepare does, in its order; the training then makes nothing."""
    job = job_of("method=control", "method.steps=2", "data.num_train=30")
    rows = job.rows()
    wanted = job.read_of(rows)
    assert len(wanted) == 8
    rows.fill(wanted)
    rows.close()
    again = job.rows()
    assert {row for row in range(30) if row in again.store} == set(wanted.tolist())
    again.what = replace(again.what, encode=None)
    reading = Rounds(again, job.needs(), batch=4, micro_batch=2, steps=2, every=2, seed=job.cfg.seed)
    assert len(list(reading.batches(range(2)))) == 4


def test_losers_are_drawn_by_the_starting_weights_however_late(here: Path) -> None:
    job = job_of("method=cpo", "method.steps=6", "data.cache=none")
    before = job.rows()[0]["loser"]
    method_of(job)
    with torch.no_grad():
        for weight in job.policy.trainable().values():
            weight += 0.1 * torch.randn_like(weight)
    job.policy.train()
    assert torch.equal(job.rows()[0]["loser"], before) and job.policy.training
    job.policy.references.clear()
    assert not torch.equal(job.rows()[0]["loser"], before)
