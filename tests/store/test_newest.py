"""Batch rows by their event time: which views take them, and what is said when others keep winning.

What is written when is held by tests/catalog/test_materialize.py and tests/predictor.
"""

from __future__ import annotations

import pytest

from schemas.errors import PlanError
from store.newest import ATTEMPTS, require_batch, still_changing
from tests.aggregation.plans import small_view, users_view


def test_a_windowed_view_is_no_batch_view() -> None:
    require_batch(users_view())
    with pytest.raises(PlanError, match=r"needs a batch view, got a windowed view.*send actions"):
        require_batch(small_view())


def test_the_refusal_after_lost_attempts_says_how_many_rows() -> None:
    told = str(still_changing(users_view(), 3))
    assert f"within {ATTEMPTS} attempts, got 3 rows that other writers kept changing" in told
