"""What workers say in their logs of what they did."""

from __future__ import annotations

import pytest

from streams.folding import FoldCounts
from streams.reporting import EVERY_S, Reporter


def test_a_line_is_told_when_it_is_due_and_news(caplog: pytest.LogCaptureFixture) -> None:
    now_s, counts = 100.0, FoldCounts()
    reporter = Reporter(lambda: f"stored: {counts}", lambda: now_s)
    with caplog.at_level("INFO", "encore.streams"):
        counts.folded = 3
        reporter.look()
        assert caplog.messages == [], "not due yet"
        now_s += EVERY_S
        reporter.look()
        assert caplog.messages == [
            "stored: folded=3, repeated=0, late=0, future=0, rows_written=0, conflicts=0,"
            " saturated=0, deleted=0"
        ]
        now_s += 3 * EVERY_S
        reporter.look()
        assert len(caplog.messages) == 1, "nothing was done since"
        counts.late = 1
        reporter.look()
        assert len(caplog.messages) == 1, "the next look is due ten seconds after the last"
        now_s += EVERY_S
        reporter.look()
        assert "late=1" in caplog.messages[1]
        reporter.end()
        assert caplog.messages[1:] == [caplog.messages[1]] * 2, "the last line is always told"
