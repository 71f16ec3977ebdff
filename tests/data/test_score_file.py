"""Multi-Preference Consistent Filtering against rows decided by hand, and its score file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpo_platform.config.errors import UserError
from lpo_platform.data.score_file import COLUMNS, Scores, consistent, read_scores, write_scores

ROWS = [  # different_flag, aesthetic, CLIP and VQA gap, kept by strategies 1, 2, 3
    ((1, 0.3, 0.01, 0.02), (True, True, True)),
    ((1, -0.5, 0.01, 0.02), (False, False, True)),
    ((1, -0.49, 0.01, 0.02), (False, True, True)),
    ((1, -0.2, 0.0, 0.02), (False, False, False)),
    ((0, 0.1, 0.01, 0.01), (True, True, True)),
    ((0, 0.25, 0.01, 0.01), (False, False, False)),
    ((0, -0.9, -0.5, -0.5), (True, True, True)),
]


@pytest.mark.parametrize("strategy", [1, 2, 3])
def test_the_verdicts_of_the_specification(strategy: int) -> None:
    flag, *gaps = np.array([row for row, _ in ROWS]).T
    expected = [verdicts[strategy - 1] for _, verdicts in ROWS]
    assert consistent(flag, *gaps, strategy).tolist() == expected
    assert Scores(flag == 1, np.stack(gaps, 1)).consistent(strategy).tolist() == expected


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.5, -1.0, 0.2, 0.03, 0.07, float("nan")]), st.floats(-2, 2, allow_nan=False)
)


@given(rows=st.lists(st.tuples(st.booleans(), NUMBERS, NUMBERS, NUMBERS), max_size=20), absolute=st.booleans())
def test_every_row_gets_the_verdict_of_the_rule_in_words(rows: list[tuple], absolute: bool) -> None:
    columns = np.array(rows, float).reshape(-1, 4).T
    for strategy, lowest in ((1, 0), (2, -0.5), (3, -1)):
        kept = []
        for different, a, c, v in rows:
            if different:
                kept.append(a > lowest and c > 0 and v > 0)
            elif absolute:
                kept.append(-0.2 < a < 0.2 and -0.03 < c < 0.03 and -0.07 < v < 0.07)
            else:
                kept.append(a < 0.2 and c < 0.03 and v < 0.07)
        assert consistent(*columns, strategy, absolute_ties=absolute).tolist() == kept


def test_absolute_ties_drop_a_tie_with_large_negative_gaps() -> None:
    flag, *gaps = np.array([ROWS[-1][0], ROWS[4][0]]).T
    assert consistent(flag, *gaps).tolist() == [True, True]
    assert consistent(flag, *gaps, absolute_ties=True).tolist() == [False, True]


def test_another_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy 4: must be one of 1, 2, 3"):
        consistent(np.ones(1), np.ones(1), np.ones(1), np.ones(1), 4)


def test_a_score_file_is_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=(50, 3))
    gaps[3, 1] = np.nan
    write_scores(tmp_path / "s.csv", Scores(rng.random(50) < 0.5, gaps))
    found = read_scores(tmp_path / "s.csv", rows=50)
    assert np.array_equal(found.gaps, gaps, equal_nan=True)
    assert (tmp_path / "s.csv").read_text().startswith("different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n")


def test_other_columns_and_another_order_do_no_harm(tmp_path: Path) -> None:
    text = (
        "\ufeffcaption,vqascore_gap,different_flag,clipscore_gap,aesthetic_gap\r\n"
        '"a ""cat"",\nred",0.3,1,0.2,0.1\r\n\r\nb,,0.0,nan,-4e-1\r\n'
    )
    (tmp_path / "s.csv").write_bytes(text.encode())
    scores = read_scores(tmp_path / "s.csv")
    assert scores.different.tolist() == [True, False]
    assert np.array_equal(scores.gaps, [[0.1, 0.2, 0.3], [-0.4, np.nan, np.nan]], equal_nan=True)
    assert scores.consistent().tolist() == [True, False]


HEADER = ",".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("different_flag,aesthetic_gap\n1,2\n", "no column clipscore_gap, vqascore_gap; what works: a CSV file with"),
        ("", "no column different_flag, "),
        (f"{HEADER}\n1,0,0,0\n1,high,0,0\n", "line 3, aesthetic_gap: 'high' is not a number"),
        (f"{HEADER}\n1,0,inf,0\n", "line 2, clipscore_gap: 'inf' is not a number"),
        (f"{HEADER}\n2,0,0,0\n", "line 2, different_flag: '2'; what works: 1 for a pair with a winner, 0 for a tie"),
        (f"{HEADER}\n,0,0,0\n", "line 2, different_flag: ''; what works"),
        (f"{HEADER}\n1,0,0\n", "line 2 has 3 values, the header 4"),
        (f"{HEADER}\n1,0,0,0\n", "1 rows, but the train split has 2; scores are joined by position"),
        (f"{HEADER}\n1,0,0,\xff\n", "cannot be read"),
    ],
)
def test_a_score_file_that_does_not_work_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as found:
        read_scores(tmp_path / "s.csv", rows=2)
    assert str(found.value).startswith(f"data.scores={tmp_path / 's.csv'}: {message}")
    assert "\n" not in str(found.value)


def test_a_score_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read \\(No such file or directory\\)"):
        read_scores(tmp_path / "none.csv")
