"""Rounds: the order of a run is a function of its seed, however it is cut into epochs, batches and processes."""

from types import SimpleNamespace

import torch
from toys.readable import Readable

from lpo_platform.data.prepared.rounds import Rounds
from lpo_platform.diffusion import noise


class Rows(Readable):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"row": torch.tensor(row), "unused": torch.tensor(0)}


def read(*, every: int, micro_batch: int, seed: int = 0) -> tuple[list[int], list[int], list[int]]:
    """Rows, positions and batch sizes of a run of 5 steps of 4."""
    rounds = Rounds(Rows(), ("row",), batch=4, micro_batch=micro_batch, steps=5, every=every, seed=seed)
    rows, positions, sizes = [], [], []
    for epoch in range(rounds.num_rounds):
        rounds.trainer = SimpleNamespace(current_epoch=epoch)
        for batch in rounds.train_dataloader():
            assert set(batch) == {"row", "position"}
            rows += batch["row"].tolist()
            positions += batch["position"].tolist()
            sizes.append(len(batch["row"]))
    return rows, positions, sizes


def test_order_does_not_depend_on_how_it_is_cut() -> None:
    whole, cut = read(every=5, micro_batch=4), read(every=2, micro_batch=2)
    assert whole[:2] == cut[:2]
    assert whole[1] == list(range(20))
    assert whole[2] == [4] * 5 and cut[2] == [2] * 10


def test_every_pass_holds_every_row_in_another_order() -> None:
    rows, _, _ = read(every=5, micro_batch=4)
    assert sorted(rows[:7]) == sorted(rows[7:14]) == list(range(7))
    assert rows[:7] != rows[7:14]
    assert rows != read(every=5, micro_batch=4, seed=1)[0]


def test_noise_belongs_to_the_key() -> None:
    together = noise.normal([3, 4], (2, 2), seed=0, stream="a")
    alone = noise.normal([4], (2, 2), seed=0, stream="a")
    assert torch.equal(together[1:], alone)
    others = [noise.normal([4], (2, 2), seed=seed, stream=stream) for seed, stream in ((1, "a"), (0, "b"))]
    assert not any(torch.equal(alone, other) for other in others)


def test_noise_has_the_distribution_it_claims() -> None:
    draws = noise.normal(range(2000), (10,), seed=0, stream="a")
    assert abs(draws.mean().item()) < 0.03 and abs(draws.std().item() - 1) < 0.02
    times = noise.integers(range(5000), 1000, seed=0, stream="a")
    assert times.min() >= 0 and times.max() < 1000 and abs(times.float().mean().item() - 499.5) < 15
