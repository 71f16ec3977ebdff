"""Training rows with all frozen parts computed: read from the store where they are kept, else computed when needed."""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from lpo_platform.config.errors import UserError
from lpo_platform.data.prepared.order import Order
from lpo_platform.data.prepared.readers import Readers
from lpo_platform.data.prepared.store import Columns, Problem, Store
from lpo_platform.data.reading_report import Findings
from lpo_platform.data.tables.decode import Unusable
from lpo_platform.hardware.distributed import deal, everywhere, lead, wait
from lpo_platform.hardware.transfer import stack

Keep = Literal["auto", "all", "none"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """What is frozen of the rows of a source, and how it is computed.

    Attributes:
        source: gives the item of a row; one that cannot be used raises Unusable.
        key: identifies what is computed.
        encode: the columns of some items, which depend on each item alone.
        title: of the progress bar.
        numbers: the items of the source that are rows; None for all.
        weights: how much each item counts in the loss; None for equally, without a column.
        accepts: why a row with these columns is left out, empty for one that is used; None uses all.
    """

    source: Any
    key: str
    encode: Callable[[list[Any]], Columns]
    title: str
    numbers: np.ndarray | None = None
    weights: Tensor | None = None
    accepts: Callable[[Columns], str] | None = None


@dataclass(frozen=True)
class Keeping:
    """Which rows the store keeps.

    Attributes:
        rows: `auto` keeps what the run will read again, `all` everything, `none` nothing; none does not look into the
            store either.
        most: bytes that the store may have.
        processes: that add to it.
    """

    rows: Keep = "auto"
    most: float = float("inf")
    processes: int = 1


class Rows(Dataset):
    """The rows of a preparation. Frozen parts always compute `group` rows at once, so a row does not depend on the rows
    that it is computed with.

    Attributes:
        waited: seconds that readers of rows have waited for items and for the store.
        making: seconds in which rows were computed.
    """

    def __init__(
        self, what: Preparation, store: Store, readers: Readers, *, group: int, keeping: Keeping = Keeping()
    ) -> None:  # fmt: skip
        self.what, self.store, self.readers, self.group, self.keeping = what, store, readers, max(2, group), keeping
        self.numbers = np.arange(len(what.source)) if what.numbers is None else what.numbers
        self.weights = None if what.weights is None else what.weights[self.numbers]
        self._found = store.size
        self.findings = Findings()
        self.waited = self.making = 0.0
        self._left_out: dict[int, Problem] = {}
        self._said = ""
        self._note_problems()

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Columns:
        """One row, computed now if it is not kept. Raises Unusable."""
        number = int(self.numbers[row])
        found = self.find(number) or self.make([number], self.readers.read([number]).result()).get(number)
        if found is None:
            reason, where = self.problem(number)
            raise Unusable(where, reason)
        return found

    def order(self, positions: int, seed: int) -> Order:
        """The order in which a run of `positions` samples reads the rows."""
        if self.what.numbers is None:
            return Order.of(self.what.source, positions, seed)
        return Order(len(self), positions, seed)

    def read(self, order: Order, positions: Iterable[int]) -> Iterator[Columns]:
        """The rows at some positions of an order, one after the other; the next ones are being read meanwhile."""
        return Ahead(self, order, positions)

    def fill(self, rows: np.ndarray | None = None) -> None:
        """Computes and keeps those of these rows (None: all) that the store lacks; the processes share the work."""
        numbers = self.numbers if rows is None else self.numbers[rows]
        missing = [int(n) for n in numbers if n not in self.store and n not in self.store.problems]
        parts = deal([missing[i : i + self.group] for i in range(0, len(missing), self.group)])
        done = len(numbers) - len(missing)
        with tqdm(total=len(numbers), desc=self.what.title, unit="row", initial=done) as bar:
            for group, items in self.readers.ahead(parts):
                self.make(group, items, keep=group)
                bar.update(everywhere(len(group), bar.total - bar.n))
        self.store.flush()
        wait()
        self._note_problems()

    def usable(self, rows: np.ndarray | None = None) -> "Chosen":
        """Those of these rows (None: all) that are kept and can be used. Raises UserError if there are none."""
        rows = np.arange(len(self)) if rows is None else rows
        rows = [row for row in rows.tolist() if self._there(int(self.numbers[row]))]
        self._say()
        if len(self) and not rows:
            raise self.nothing_left()
        return Chosen(self, rows)

    def _there(self, number: int) -> bool:
        """Whether find() finds it. The columns are read only where `accepts` depends on them."""
        if self.what.accepts is not None:
            return self.find(number) is not None
        return number in self.store and not self.problem(number)

    def find(self, number: int) -> Columns | None:
        """The kept columns of an item of the source; None where it is not kept or cannot be used."""
        found = None if self.problem(number) or self.keeping.rows == "none" else self.store.read(number)
        return found if found is None or self._accepted(number, found) else None

    def problem(self, number: int) -> Problem | None:
        return self._left_out.get(number)

    def make(self, numbers: list[int], items: list[Any], keep: Sequence[int] = ()) -> dict[int, Columns]:
        """Computes the columns of the items that can be used, and hands those of `keep` to the store."""
        started = time.perf_counter()
        made = self._make(numbers, items, keep)
        self.making += time.perf_counter() - started
        return made

    @torch.no_grad()
    def _make(self, numbers: list[int], items: list[Any], keep: Sequence[int]) -> dict[int, Columns]:
        for item in items:
            if isinstance(item, UserError):
                raise item
        problems = {n: (item.reason, item.where) for n, item in zip(numbers, items, strict=True) if _broken(item)}
        whole = [(n, item) for n, item in zip(numbers, items, strict=True) if not _broken(item)]
        made: dict[int, Columns] = {}
        if whole:
            numbers, items = map(list, zip(*whole, strict=True))
            padded = items + items[:1] * (self.group - len(items))
            columns = {n: column[: len(items)].contiguous() for n, column in self.what.encode(padded).items()}
            made = {n: {name: column[i] for name, column in columns.items()} for i, n in enumerate(numbers)}
        kept = {number: row for number, row in made.items() if number in keep}
        if (kept or problems) and self._room():
            names = next(iter(kept.values()), ())
            columns = {name: stack([row[name] for row in kept.values()]) for name in names}
            self.store.write(list(kept), columns, problems)
        for number, problem in problems.items():
            self._leave_out(number, problem)
        return {number: row for number, row in made.items() if self._accepted(number, row)}

    def nothing_left(self) -> UserError:
        return UserError(f"none of the {len(self)} rows can be used [{self.findings.line()}]")

    def close(self) -> None:
        """Ends the workers, writes what is to be kept, and says which rows were not used."""
        self.readers.close()
        self.store.close()
        self._note_problems()
        self._say()

    def _accepted(self, number: int, row: Columns) -> bool:
        why = self.what.accepts(row) if self.what.accepts else ""
        if why:
            self._leave_out(number, (why, str(number)))
        return not why

    def _leave_out(self, number: int, problem: Problem) -> None:
        if number not in self._left_out:
            self._left_out[number] = problem
            self.findings.skip(*problem)

    def _note_problems(self) -> None:
        """Leaves out the items that cannot be used according to the store, also by other processes and earlier runs."""
        self.store.refresh()
        for number in sorted(set(self.store.problems) - set(self._left_out)):
            self._leave_out(number, self.store.problems[number])

    def _say(self) -> None:
        """Logs what was left out, unless it has been logged already."""
        line = self.findings.line()
        if lead() and line != self._said:
            log.warning("%s", line)
        self._said = line

    def _room(self) -> bool:
        """Whether the store may grow. The other processes add as much as this one."""
        added = (self.store.size - self._found) * self.keeping.processes
        return self.keeping.rows != "none" and self._found + added < self.keeping.most


class Chosen(Dataset):
    """Some of the rows, as a data set."""

    def __init__(self, rows: Rows, chosen: Sequence[int]) -> None:
        self.rows, self.chosen = rows, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, place: int) -> Columns:
        return self.rows[self.chosen[place]]


class Ahead(Iterator[Columns]):
    """Rows in the order of a run. Workers read some groups ahead; a group is computed when its first row is needed."""

    def __init__(self, rows: Rows, order: Order, positions: Iterable[int]) -> None:
        self.rows, self.order, self._positions = rows, order, iter(positions)
        self._seen: deque[int] = deque()  # positions that were looked at and whose rows were not given yet
        self._uses: Counter[int] = Counter()  # of an item at these positions
        self._keep: dict[int, bool] = {}  # whether it is read again after the first of them
        self._wanted: list[int] = []  # items to be made, less than a group
        self._reading: deque[tuple[list[int], Any]] = deque()
        self._made: dict[int, Columns] = {}

    def __next__(self) -> Columns:
        started, making = time.perf_counter(), self.rows.making
        self._look_ahead()
        if not self._seen:
            raise StopIteration
        position = self._seen.popleft()
        row = self._row(position)
        self.rows.waited += time.perf_counter() - started - (self.rows.making - making)
        number = self._number(position)
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._uses[number], self._keep[number]
        for made in [made for made in self._made if made not in self._uses]:
            del self._made[made]
        return row

    def _look_ahead(self) -> None:
        """Asks for as many groups as keep the workers busy, and looks at no more positions than that takes."""
        depth, group = self.rows.readers.depth, self.rows.group
        self.rows.store.look_again()
        while len(self._reading) < depth and len(self._seen) < (depth + 1) * group:
            position = next(self._positions, None)
            if position is None:
                break
            self._look(position)
            if len(self._wanted) == group:
                self._read()

    def _look(self, position: int) -> None:
        number = self._number(position)
        self._seen.append(position)
        self._uses[number] += 1
        self._keep.setdefault(number, self.rows.keeping.rows == "all" or self.order.again(position))
        known = number in self._made or self.rows.problem(number) or self._asked(number)
        if not known and not (self.rows.keeping.rows != "none" and number in self.rows.store):
            self._wanted.append(number)

    def _row(self, position: int) -> Columns:
        """The row at a position, or the next one that can be used."""
        for skipped in range(self.order.rows):
            found = self._item(self._number(position, skipped))
            if found is not None:
                return found
        raise self.rows.nothing_left()

    def _item(self, number: int) -> Columns | None:
        while not self.rows.problem(number):
            found = self._made.get(number) or self.rows.find(number)
            if found is not None:
                return found
            if self.rows.problem(number):
                break
            if number not in self._wanted and not self._asked(number):
                self._wanted.append(number)
            if number in self._wanted:
                self._read()
            while self._asked(number):
                self._make()
        return None

    def _asked(self, number: int) -> bool:
        return any(number in group for group, _ in self._reading) or number in self._wanted

    def _read(self) -> None:
        self._reading.append((self._wanted, self.rows.readers.read(self._wanted)))
        self._wanted = []

    def _make(self) -> None:
        """Computes the oldest group that was asked for."""
        group, items = self._reading.popleft()
        keep = [number for number in group if self._keep.get(number, self.rows.keeping.rows == "all")]
        made = self.rows.make(group, items.result(), keep)
        self._made |= made

    def _number(self, position: int, skipped: int = 0) -> int:
        return int(self.rows.numbers[self.order.row(position, skipped)])


def _broken(item: Any) -> bool:
    return isinstance(item, Unusable)
