"""Values for Feast's clients: what they may name. Values and statuses: tests/catalog, predictor."""

from __future__ import annotations

import pytest

from aggregation.online import online_feature
from schemas.errors import PlanError
from tests.aggregation.plans import users_view


def test_a_feature_that_the_plan_does_not_have_is_refused() -> None:
    view = users_view()
    with pytest.raises(PlanError, match=rf"{view.name}\.gone: needs a feature of the plan"):
        online_feature(view, "gone")
