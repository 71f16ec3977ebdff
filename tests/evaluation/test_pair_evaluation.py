"""Pair accuracy and the correlation with published scores, against counting by hand and numpy."""

import numpy as np
import pytest
import torch

from lpo_platform.config.errors import UserError
from lpo_platform.evaluation.evaluator import Evaluation
from lpo_platform.evaluation.pairs import ACCURACY, PairEvaluator
from lpo_platform.methods.lrm import pair_accuracy


def test_accuracy_counts_pairs_and_gives_half_for_ties() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    labels = torch.full((2, 3, 3), 0.5)
    labels[0, 0, 1], labels[0, 0, 2], labels[0, 1, 2] = 1.0, 0.7, 1.0  # right, right by its lean, wrong
    labels[1, 0, 2] = 0.0  # (0, 1) tied in both, (0, 2) wrong, (1, 2) tied in the label
    assert torch.allclose(pair_accuracy(scores, labels), torch.tensor([2 / 3, (0.5 + 0.0 + 0.5) / 3]))
    assert torch.allclose(pair_accuracy(torch.zeros(1, 2), torch.tensor([[[0.5, 1.0], [0.0, 0.5]]])), torch.tensor(0.5))


def test_some_timestep_is_measured() -> None:
    with pytest.raises(UserError, match=r"^metrics\.timesteps=\[\]: .*; what works: at least one$"):
        PairEvaluator(timesteps=())


def evaluation(gap: np.ndarray, accuracy: float, clip: np.ndarray) -> Evaluation:
    rows = len(gap)
    unknown = torch.full((rows,), torch.nan)
    scores = {ACCURACY: torch.full((rows,), accuracy), "gap/lrm": torch.from_numpy(gap).float()}
    return Evaluation(
        scores | {"gap/aesthetic": unknown, "gap/clip": torch.from_numpy(clip).float(), "gap/vqa": unknown}
    )


def test_correlation_is_numpys_where_the_gap_is_known_and_absent_where_it_is_not() -> None:
    rng = np.random.default_rng(0)
    clip = rng.normal(size=200)
    untrained, trained = rng.normal(size=200), clip + rng.normal(size=200)
    clip[::7] = np.nan
    metrics = PairEvaluator().compare(evaluation(untrained, 0.5, clip), evaluation(trained, 0.6, clip))
    assert set(metrics) == {ACCURACY, "lrm/correlation/clip"}
    known, found = ~np.isnan(clip), metrics["lrm/correlation/clip"]
    assert found["before"] == pytest.approx(np.corrcoef(untrained[known], clip[known])[0, 1], abs=1e-5)
    assert found["after"] == pytest.approx(np.corrcoef(trained[known], clip[known])[0, 1], abs=1e-5)
    assert found["ci95"][0] > 0
    assert metrics[ACCURACY]["difference"] == pytest.approx(0.1, abs=1e-6)
