"""The order of a run, against reading it position by position."""

from collections import Counter

import numpy as np
import pytest

from lpo_platform.data.prepared.order import Order


@pytest.mark.parametrize(("rows", "positions"), [(7, 5), (7, 7), (7, 20), (7, 21), (1, 4), (50, 123)])
def test_what_is_known_of_an_order_is_what_reading_it_finds(rows: int, positions: int) -> None:
    order = Order(rows, positions, seed=3)
    read = [order.row(position) for position in range(positions)]
    assert order.reads.tolist() == [Counter(read)[row] for row in range(rows)]
    assert [order.again(p) for p in range(positions)] == [read[p] in read[p + 1 :] for p in range(positions)]
    assert order.distinct().tolist() == list(dict.fromkeys(read))


def test_what_stands_in_the_place_of_a_row_is_the_next_of_its_pass() -> None:
    order = Order(5, 20, seed=0)
    for position in (0, 4, 7):
        start = position // 5 * 5
        passes = [order.row(p) for p in range(start, start + 5)]
        assert [order.row(position, skipped) for skipped in range(5)] == np.roll(passes, -(position % 5)).tolist()


def test_a_million_rows_are_ordered_at_once() -> None:
    order = Order(1_000_000, 2_560_000, seed=0)
    assert order.reads.sum() == 2_560_000 and set(np.unique(order.reads)) == {2, 3}
    assert len(order.distinct()) == 1_000_000 and not order.again(2_559_999)
