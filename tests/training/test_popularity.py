from __future__ import annotations

import numpy as np
import pytest

from training.popularity import Popularity


def test_rates_are_smoothed_towards_the_mean() -> None:
    model = Popularity.fit(
        np.array([5, 5, 9, 9, 9]), np.array([1, 1, 0, 0, 0], bool), strength=10.0
    )
    scores = model.score(np.array([9, 5, 7, -1]))
    assert model.mean == pytest.approx(0.4)
    assert scores == pytest.approx([4 / 13, 6 / 12, 0.4, 0.4])


def test_nothing_seen_scores_the_same_everywhere() -> None:
    model = Popularity.fit(np.zeros(0, np.int64), np.zeros(0, bool))
    assert model.score(np.array([1, 2])).tolist() == [0.0, 0.0]
