"""The same histories with micro-batches cut into parts of two rows, three of them under way."""

from __future__ import annotations

import pytest

from streams import folding
from tests.simulation.run import generate


@pytest.mark.parametrize("seed", range(4))
def test_parts_under_way_at_once_keep_every_rule(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(folding, "ROWS_AT_ONCE", 2)
    outcome = generate(1_000 + seed, 500)
    assert outcome.error is None
    assert outcome.rows_checked > 0
