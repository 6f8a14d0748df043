"""Within its span a row's values are the same at any time, and just behind it they may not be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.cache.validity import ALWAYS, NEVER, Spans, Validity
from aggregation.features import Features
from aggregation.finalise import Finaliser
from aggregation.fold import fold
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import Rows, empty_rows
from tests.aggregation.cache.worlds import clicks
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import small_view, videos_view
from tests.aggregation.strategies import T0, histories

IDS = np.array([0, 1, 2], np.int64)
VIEWS = (functions_view(), functions_view(6_000), small_view(), small_view(3_000))


def rows_after(view: ViewPlan, history: Any) -> Rows:
    actions, row, sent_ms = history
    rows = empty_rows(layout_of(view), IDS)
    fold(view, rows, row, actions, sent_ms)
    return rows


def said(features: Features, row: int) -> list[Any]:
    """All that is said of one row, floats by their bits."""
    out: list[Any] = [bool(features.expired[row])]
    for name in sorted(features.values):
        out.append((features.values[name][row].tobytes(), bool(features.null[name][row])))
    return out + [int(features.lengths[name][row]) for name in sorted(features.lengths)]


@settings(max_examples=150, deadline=None)
@given(
    view=st.sampled_from(VIEWS),
    history=histories(),
    now_ms=st.integers(T0 - 2_000, T0 + 40_000),
    some=st.sets(st.integers(0, 40), min_size=1),
    draws=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_values_hold_throughout_their_span(
    view: ViewPlan, history: Any, now_ms: int, some: set[int], draws: list[float]
) -> None:
    names = {view.features[each % len(view.features)].name for each in some}
    rows = rows_after(view, history)
    finaliser = Finaliser(view, names)
    spans, now = Validity(view, names)(rows, now_ms), finaliser(rows, now_ms)
    for row in range(len(IDS)):
        start = max(int(spans.from_ms[row]), now_ms - 60_000)
        stop = min(int(spans.until_ms[row]), now_ms + 60_000) - 1
        assert start <= now_ms <= stop
        for other_ms in (start, stop, *(start + int(draw * (stop - start)) for draw in draws)):
            assert said(finaliser(rows, other_ms), row) == said(now, row)


def span(view: ViewPlan, names: set[str], history: Any, now_ms: int) -> tuple[int, int]:
    spans = Validity(view, names)(rows_after(view, history), now_ms)
    return int(spans.from_ms[0]), int(spans.until_ms[0])


def test_a_window_changes_when_its_oldest_tile_leaves() -> None:
    history = clicks(T0, T0 + 1_500)
    assert span(small_view(), {"click_5s"}, history, T0 + 2_100) == (T0 + 2_000, T0 + 5_000)
    assert span(small_view(), {"click_2s"}, history, T0 + 2_100) == (T0 + 2_000, T0 + 3_000)
    late = span(small_view(), {"click_5s"}, history, T0 + 9_000)
    assert late == (T0 + 9_000, NEVER)  # empty from here on, not before


def test_an_entry_of_the_future_ends_a_span() -> None:
    history = clicks(T0, T0 + 700)
    assert span(small_view(), {"clicks_author"}, history, T0 + 100) == (T0, T0 + 700)
    assert span(small_view(), {"click_ages"}, history, T0 + 100) == (T0 + 100, T0 + 101)


def test_what_is_empty_or_batch_holds_always() -> None:
    names = {feature.name for feature in small_view().features}
    assert span(small_view(), names, clicks(), T0) == (ALWAYS, NEVER)
    batch = videos_view()
    spans = Validity(batch, {"video_id"})(empty_rows(layout_of(batch), IDS), T0)
    assert spans.until_ms.tolist() == [NEVER] * 3


def test_a_row_holds_to_its_ttl_and_from_there_always() -> None:
    history = clicks(T0)
    assert span(small_view(3_000), {"clicks_author"}, history, T0 + 9) == (T0, T0 + 3_001)
    assert span(small_view(3_000), {"click_5s"}, history, T0 + 3_001) == (T0 + 3_001, NEVER)


def test_a_kind_that_is_not_known_holds_for_its_own_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aggregation.cache.validity._TILED", ("window",))
    view = functions_view()
    spans: Spans = Validity(view, {"mean_ms"})(empty_rows(layout_of(view), IDS), T0)
    assert spans.fleeting.all()
    assert spans.until_ms.tolist() == [T0 + 1] * 3
