"""The Python in docs/features.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from catalog import declare
from catalog.compiler import Definitions, compile_plan
from catalog.declare import feature_service, identity
from tests.catalog.declarations import Repo, user, video

PAGE = Path(__file__).parent.parent.parent / "docs" / "features.md"


def test_the_examples_declare_what_compiles() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {name: getattr(declare, name) for name in declare.__all__}
    views = Repo().views()
    names |= {"user": user, "video": video, "users": views["users"], "videos": views["videos"]}
    names |= dict.fromkeys(("COUNTS", "PLAY_MS", "VIDEO_COUNTS"), identity(100))
    for block in blocks:
        exec(block, names)
    activity, of_videos = names["user_activity"], names["video_activity"]
    service = feature_service("ranking", [activity, of_videos])
    declared = (activity, of_videos, views["videos"])
    plan = compile_plan(Definitions((user, video), declared, (service,)))
    aligned = [slot.aligned for slot in plan.service("ranking").sequences]
    assert aligned == ["", *["last_plays"] * 5]
