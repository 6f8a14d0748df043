"""Streamed views of items: fed from the topic re-keyed by item, and from no other."""

from __future__ import annotations

import pytest
from feast import KafkaSource

from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    HOUR,
    actions,
    actions_by_item,
    count,
    feature_service,
    log_buckets,
    streamed_view,
)
from schemas.errors import DeclarationError
from tests.catalog.declarations import user, video

CLICKS = count("clicks_1h", "click", HOUR, log_buckets(8, low=1, high=100))


def of_video(source: KafkaSource) -> Definitions:
    view = streamed_view("video_activity", video, source, [CLICKS])
    return Definitions((user, video), (view,), (feature_service("ranking", [view]),))


def test_an_item_view_is_fed_from_the_re_keyed_topic() -> None:
    plan = compile_plan(of_video(actions_by_item("actions")))
    view = plan.view("video_activity")
    assert (view.entity, view.source) == ("item", "actions.by-item")
    assert [slot.feature for slot in plan.service("ranking").item_slots] == ["clicks_1h"]


def test_an_item_view_on_the_topic_keyed_by_user_is_refused() -> None:
    with pytest.raises(DeclarationError) as caught:
        compile_plan(of_video(actions("actions")))
    assert str(caught.value) == (
        "video_activity.source: needs a topic keyed by item, got actions, keyed by user; "
        'declare source=actions_by_item("actions")'
    )


def test_a_user_view_on_the_topic_keyed_by_item_is_refused() -> None:
    with pytest.raises(DeclarationError) as caught:
        streamed_view("user_activity", user, actions_by_item("actions"), [CLICKS])
    assert str(caught.value) == (
        "user_activity.source: needs a topic keyed by user, got actions.by-item, keyed by item; "
        'declare source=actions("actions")'
    )
