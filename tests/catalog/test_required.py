"""Views that a service cannot do without: from the declaration into the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from catalog.compiler import Definitions, compile_plan
from catalog.declare import feature_service
from schemas.errors import DeclarationError
from schemas.plan import dump_plan, load_plan
from tests.catalog.declarations import Repo


def declared(*required: str) -> Definitions:
    """Views are named by themselves or by their names."""
    repo = Repo()
    views = {
        name: view[repo.selection[name]] if name in repo.selection else view
        for name, view in repo.views().items()
    }
    named = [views.get(name, name) if at else name for at, name in enumerate(required)]
    service = feature_service("ranking", list(views.values()), required=named)
    return replace(repo.definitions(), services=(service,))


def test_required_views_are_in_the_plan_and_change_no_fingerprint() -> None:
    plain = compile_plan(Repo().definitions())
    plan = compile_plan(declared("videos", "user_activity"))
    service = plan.service("ranking")
    assert service.required == ("user_activity", "videos")  # in the order of their first use
    assert load_plan(dump_plan(plan)) == plan
    without = replace(service, required=())
    assert without.fingerprint == service.fingerprint
    assert "required" not in dump_plan(plain)


def test_a_view_that_the_service_does_not_read_is_refused() -> None:
    with pytest.raises(DeclarationError, match=r"ranking.required: needs views that the service"):
        compile_plan(declared("playlists"))
    service = feature_service("ranking", ["users"], required=["users", "users"])
    with pytest.raises(DeclarationError, match="each once: users, got 'users,users'"):
        compile_plan(replace(Repo().definitions(), services=(service,)))
