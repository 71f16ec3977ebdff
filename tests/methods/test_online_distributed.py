"""Online methods on several processes do what they do on one: the same rows, the same steps, the same gradients.

Gradients are averaged over processes as DDP averages them.
"""

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from toys import forked
from toys import lpo as toy_lpo

from lpo_platform.config.errors import UserError
from lpo_platform.hardware.distributed import gather, mean, share, world
from lpo_platform.methods.lpo import LPO
from lpo_platform.models.tuning import Full


class First(toy_lpo.Brightness):
    """Has an opinion about the shortest caption only, so one process has all the pairs."""

    def __call__(self, latents: Tensor, t: Tensor, text: dict[str, Tensor], prompt: Tensor) -> Tensor:
        return super().__call__(latents, t, text, prompt) * (text["offset"][prompt] == len("caption "))


SCENARIOS: dict[str, dict[str, Any]] = {
    "all pairs are valid": {"threshold": (0.0, 0.0), "prompts": 8, "batch": 8},
    "the pairs do not divide": {"threshold": (0.4, 0.9), "prompts": 7, "batch": 8},
    "one process has all the pairs": {"threshold": (0.0, 0.0), "prompts": 5, "batch": 8, "reward": First()},
    "no process has a pair": {"prompts": 4, "batch": 8, "reward": toy_lpo.Brightness(scale=0.0)},
}


def play(scenario: str, accumulation: int) -> dict[str, Any]:
    """A round: its batches on this process, the averaged gradient of each step, and what it reports."""
    options = {"sample_batch": 1, "num_steps": 3, "moved": 0.001, "beta": 20.0} | SCENARIOS[scenario]
    step = toy_lpo.method(Full(), dtype=torch.float64, **options)  # else a batch of another size rounds differently
    batches = step.sample_round(0, toy_lpo.captions(step.prompts), step.batch // world()[1] // accumulation)
    if "weight" not in batches[0]:
        loss = step.training_step(batches[0], 0)
        zero = None if loss is None else torch.cat([g.flatten() for g in _gradient_of(loss, step)])
        return {"batches": batches, "gradients": [], "report": step.round, "zero": zero}
    return {"batches": batches, "gradients": list(gradients(step, batches, accumulation)), "report": step.round}


def _gradient_of(loss: Tensor, step: LPO) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, list(step.policy.trainable().values()))


def gradients(step: LPO, batches: list[dict[str, Tensor]], accumulation: int) -> Iterator[Tensor]:
    """As Lightning accumulates: losses over `accumulation`, a step after the last batch in any case."""
    weights = list(step.policy.trainable().values())
    for start in range(0, len(batches), accumulation):
        for batch in batches[start : start + accumulation]:
            (step.loss(batch)[0] / accumulation).backward()
        gradient = torch.cat([weight.grad.flatten() for weight in weights])
        step.zero_grad()
        if world()[1] > 1:
            dist.all_reduce(gradient)
        yield gradient / world()[1]


def _rank(rank: int, size: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=size)
    found = {name: play(name, accumulation=4 if size == 2 else 1) for name in SCENARIOS}
    found["shares"] = [list(share(range(n))) for n in (4, 5, 7)]
    found["gathered"] = gather({"a": torch.full((rank, 2), rank), "b": torch.arange(rank)})
    found["mean"] = mean({"x": torch.tensor(float(rank))}, rank + 1)
    try:
        toy_lpo.method(prompts=size - 1).sample_round(0, toy_lpo.captions(size - 1), 1)
    except UserError as error:
        found["too few prompts"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: play(name, accumulation=1) for name in SCENARIOS}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.dist)])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of 2 or 4 processes found; on 2, four micro-batches make a step.

    Processes are forked before any of them has computed anything.
    """
    forked.context()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(_rank, (request.param, port, folder), nprocs=request.param, start_method=forked.METHOD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(request.param)]


def rows(batches: list[dict[str, Tensor]]) -> dict[tuple[int, int], dict[str, Tensor]]:
    """What counts, by prompt and step."""
    found = {}
    for batch in batches:
        for i in batch["weight"].nonzero().flatten().tolist():
            columns = {name: column[i] for name, column in batch.items() if name != "weight"}
            key = int(columns.pop("prompt")), int(columns.pop("step"))
            assert key not in found
            found[key] = columns
    return found


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "no process has a pair"])
def test_rows_and_gradients_are_those_of_one_process(alone: dict, together: list[dict], scenario: str) -> None:
    one, many = alone[scenario], [process[scenario] for process in together]
    expected, found = rows(one["batches"]), rows([batch for process in many for batch in process["batches"]])
    assert found.keys() == expected.keys()
    for key, columns in expected.items():
        assert all(torch.equal(found[key][name], value) for name, value in columns.items())
    numbers = [len(process["batches"]) for process in many]
    assert len(set(numbers)) == 1, "a process with fewer batches would leave the others waiting"
    assert len(one["gradients"]) == -(-len(expected) // 8) >= 1
    for process in many:
        assert len(process["gradients"]) == len(one["gradients"])
        for ours, theirs in zip(process["gradients"], one["gradients"], strict=True):
            assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_the_scenarios_are_what_they_say(alone: dict) -> None:
    """24 pairs; a number that neither 2 nor 4 nor the batch divides; the pairs of one prompt."""
    keys = {name: set(rows(found["batches"])) for name, found in alone.items() if found["gradients"]}
    assert len(keys["all pairs are valid"]) == 24
    assert len(keys["the pairs do not divide"]) % 2 == 1 and len(keys["the pairs do not divide"]) > 8
    assert {prompt for prompt, _ in keys["one process has all the pairs"]} == {0}


def test_no_pair_anywhere_is_no_step_anywhere(alone: dict, together: list[dict]) -> None:
    """Processes that DDP waits for hand it zeros for every weight."""
    for process in (alone, *together):
        found = process["no process has a pair"]
        assert len(found["batches"]) == 1 and "weight" not in found["batches"][0]
        assert found["zero"] is None if process is alone else not found["zero"].any()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_report_is_that_of_all_prompts(alone: dict, together: list[dict], scenario: str) -> None:
    expected = {name: value.item() for name, value in alone[scenario]["report"].items()}
    assert {"rollout/valid", "rollout/samples", "reward/mean"} <= expected.keys()
    for process in together:
        found = {name: value.item() for name, value in process[scenario]["report"].items()}
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_shares_are_contiguous_and_complete(together: list[dict]) -> None:
    for i, n in enumerate((4, 5, 7)):
        parts = [process["shares"][i] for process in together]
        assert list(itertools.chain(*parts)) == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_gathered_rows_stand_in_the_order_of_ranks(together: list[dict]) -> None:
    expected = torch.cat([torch.full((rank, 2), rank) for rank in range(len(together))])
    for process in together:
        assert torch.equal(process["gathered"]["a"], expected)
        assert process["gathered"]["b"].tolist() == [i for rank in range(len(together)) for i in range(rank)]


def test_a_mean_weighs_processes_by_their_items(together: list[dict]) -> None:
    size = len(together)
    expected = sum(rank * (rank + 1) for rank in range(size)) / sum(range(1, size + 1))
    assert all(process["mean"]["x"].item() == pytest.approx(expected) for process in together)


def test_fewer_prompts_than_processes_are_refused_by_all(together: list[dict]) -> None:
    size = len(together)
    for process in together:
        assert process["too few prompts"].startswith(f"method.prompts={size - 1}: a round needs at least one for each")
