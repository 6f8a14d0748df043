"""The baseline every model must beat: each video's click rate on the training part, smoothed.

`score = (clicks + strength * mean) / (impressions + strength)`: the posterior mean under a Beta
prior centred on the overall rate. A video nobody saw scores the overall rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STRENGTH = 10.0  # impressions the prior is worth


@dataclass(frozen=True)
class Popularity:
    """Smoothed click rates of the items seen in training."""

    item_ids: NDArray[np.int64]  # (V,) ascending
    rates: NDArray[np.float64]  # (V,)
    mean: float

    @classmethod
    def fit(
        cls,
        item_ids: NDArray[np.int64],
        clicked: NDArray[np.bool_],
        strength: float = STRENGTH,
    ) -> Popularity:
        """Learn from exposed examples: item (n,) and whether it was clicked (n,)."""
        mean = float(np.mean(clicked)) if len(clicked) else 0.0
        ids, index = np.unique(item_ids, return_inverse=True)  # (V,) i64, (n,) i64
        shown = np.bincount(index, minlength=len(ids))  # (V,) i64
        clicks = np.bincount(index, weights=clicked, minlength=len(ids))  # (V,) f64
        return cls(ids, (clicks + strength * mean) / (shown + strength), mean)

    def score(self, item_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n,) ids → (n,) rates; unknown items get the mean."""
        if not len(self.item_ids):
            return np.full(len(item_ids), self.mean)
        at = np.minimum(np.searchsorted(self.item_ids, item_ids), len(self.item_ids) - 1)
        return np.where(self.item_ids[at] == item_ids, self.rates[at], self.mean)  # (n,) f64
