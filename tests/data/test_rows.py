"""Rows made ahead of their use: the same whatever is kept, whoever reads them and wherever a run begins."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.order import Order
from lpo_platform.data.prepared.readers import Readers
from lpo_platform.data.prepared.rows import Keeping, Preparation, Rows
from lpo_platform.data.prepared.store import Store
from lpo_platform.data.source import Sample
from lpo_platform.data.tables.decode import Unusable


class Source:
    """Pictures of one colour; some are broken."""

    def __init__(self, total: int, broken: Sequence[int] = ()) -> None:
        self.total, self.broken, self.seen = total, broken, []

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, i: int) -> Sample:
        self.seen.append(i)
        if i in self.broken:
            raise Unusable(f"row {i}", "broken")
        return Sample(str(i), torch.full((3, 4, 4), (i % 256) / 255), "x")


class Made(Rows):
    """Rows that note in which groups they are made."""

    def __init__(self, source: Source, folder: Path, keep: str, *, workers: int = 0, **options: object) -> None:
        self.groups: list[int] = []

        def encode(samples: list[Sample]) -> dict[str, Tensor]:
            self.groups.append(len(samples))
            return {"x": torch.stack([s.image for s in samples]), "name": torch.tensor([int(s.id) for s in samples])}

        what = Preparation(source, "k" * 64, encode, "rows", **options)
        super().__init__(
            what, Store(folder, what.key, len(source)), Readers(source, workers=workers), group=4, keeping=Keeping(keep)
        )


def names(rows: Rows, order: Order, positions: Sequence[int]) -> list[int]:
    found = []
    for row in rows.read(order, positions):
        assert torch.equal(row["x"], torch.full((3, 4, 4), (int(row["name"]) % 256) / 255))
        found.append(int(row["name"]))
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", ["auto", "all", "none"])
def test_the_order_is_the_runs_whatever_is_kept(tmp_path: Path, keep: str, workers: int) -> None:
    order = Order(11, 29, seed=0)
    expected = [order.row(p) for p in range(29)]
    rows = Made(Source(11), tmp_path, keep, workers=workers)
    assert names(rows, order, range(29)) == expected
    assert set(rows.groups) == {4}
    rows.close()
    kept = {row for row in range(11) if row in Store(tmp_path, "k" * 64, 11)}
    assert (
        kept == {"auto": {row for row in range(11) if order.reads[row] > 1}, "all": set(range(11)), "none": set()}[keep]
    )
    again = Made(Source(11), tmp_path, keep)
    assert names(again, order, range(5, 29)) == expected[5:]
    assert bool(again.groups) == (keep == "none" or len(kept) < 11)


def test_a_row_that_is_read_once_is_not_kept(tmp_path: Path) -> None:
    rows, order = Made(Source(20), tmp_path, "auto"), Order(20, 20, seed=0)
    names(rows, order, range(20))
    rows.close()
    assert not list(tmp_path.rglob("*.safetensors"))
    names(Made(Source(20), tmp_path, "all"), order, range(6))
    half = Made(Source(20), tmp_path, "auto")
    assert names(half, order, range(20)) == [order.row(p) for p in range(20)]
    assert sum(half.groups) < 20 + 4


@pytest.mark.parametrize("keep", ["auto", "none"])
def test_broken_rows_are_replaced_by_the_next_and_counted(tmp_path: Path, keep: str) -> None:
    broken, order = (2, 3, 7), Order(9, 30, seed=1)
    expected = []
    for position in range(30):
        row = next(r for skipped in range(9) if (r := order.row(position, skipped)) not in broken)
        expected.append(row)
    for start in (0, 13):  # whoever finds them first
        rows = Made(Source(9, broken), tmp_path, keep)
        assert names(rows, order, range(start, 30)) == expected[start:]
        assert rows.findings.line() == "not used: 3 broken (row 2, row 3, row 7)"
        rows.close()
    with pytest.raises(UserError, match=r"none of the 3 rows can be used \[not used: 3 broken"):
        names(Made(Source(3, (0, 1, 2)), tmp_path / "all", keep), Order(3, 3, seed=0), range(3))


def test_rows_that_are_left_out_when_they_are_known_are_replaced_too(tmp_path: Path) -> None:
    def odd(row: dict[str, Tensor]) -> str:
        return "" if int(row["name"]) % 2 else "even"

    order = Order(8, 24, seed=0)
    for _ in range(2):
        rows = Made(Source(8), tmp_path, "auto", accepts=odd)
        found = names(rows, order, range(24))
        assert all(name % 2 for name in found) and set(found) == {1, 3, 5, 7}
        rows.close()


def test_no_more_is_read_ahead_than_the_workers_need(tmp_path: Path) -> None:
    source = Source(1000)
    rows, order = Made(source, tmp_path, "auto"), Order(1000, 1000, seed=0)
    reading = iter(rows.read(order, range(1000)))
    for given in range(1, 50):
        next(reading)
        assert len(source.seen) <= given + rows.group
        assert len(reading._made) <= rows.group and len(reading._seen) <= 2 * rows.group


def test_every_row_is_made_in_the_order_of_the_run(tmp_path: Path) -> None:
    source, order = Source(12, broken=(5,)), Order(12, 7, seed=2)
    rows = Made(source, tmp_path, "auto")
    rows.fill(order.distinct())
    assert source.seen == order.distinct().tolist()
    found = rows.usable(order.distinct())
    assert [int(found[i]["name"]) for i in range(len(found))] == [r for r in order.distinct().tolist() if r != 5]
    run = Made(source, tmp_path, "auto")
    assert names(run, order, range(7)) and not run.groups


def test_a_full_store_grows_no_more(tmp_path: Path) -> None:
    rows, order = Made(Source(40), tmp_path, "all"), Order(40, 40, seed=0)
    rows.keeping = Keeping("all", most=4000)
    assert names(rows, order, range(40)) == [order.row(p) for p in range(40)]
    rows.close()
    assert 0 < sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) < 8000


def test_what_a_worker_cannot_read_ends_the_run_in_one_message(tmp_path: Path) -> None:
    class Gone(Source):
        def __getitem__(self, i: int) -> Sample:
            raise UserError(f"{i}.png: gone")

    with pytest.raises(UserError, match=r"^\d.png: gone$"):
        names(Made(Gone(3), tmp_path, "auto", workers=1), Order(3, 3, seed=0), range(3))


def test_workers_are_started_where_reading_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for expected, share, workers in ((10, 1, 0), (10**9, 1, 7), (10**9, 4, 1), (10**9, 8, 0)):
        readers = Readers(Source(4), share=share, expected=expected)
        readers._most = 8 // share - 1
        assert [s.id for s in readers.read([0, 1]).result()] == ["0", "1"] and readers.workers == workers
    assert Readers(Source(4), workers=3, expected=0).workers == 3


def test_tensors_come_from_a_worker_as_they_are() -> None:
    class Kinds(Source):
        def __getitem__(self, i: int) -> list[Tensor]:
            return [
                torch.rand(3, 4),
                torch.arange(5),
                torch.full((2, 2), 7 / 255),
                torch.tensor([float("nan"), 1.0]),
                torch.zeros(0),
            ]

    readers = Readers(Kinds(1), workers=1)
    (found,) = readers.read([0]).result()
    readers.close()
    assert [t.dtype for t in found] == [torch.float32, torch.int64, *[torch.float32] * 3]
    assert torch.equal(found[2], torch.full((2, 2), 7 / 255)) and found[3].isnan().tolist() == [True, False]
    assert found[0].shape == (3, 4) and found[4].shape == (0,)
