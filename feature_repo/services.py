"""What each model sees: the slots of its tensors, in this order."""

from activity import user_activity, video_activity
from users import users
from videos import videos

from catalog.declare import (
    boundaries,
    contains,
    cross,
    feature_service,
    identity,
    position,
    ratio,
    share,
)

RATES = boundaries([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
SHARES = boundaries([0.01, 0.06, 0.11, 0.21, 0.31, 0.51])
PLACES = boundaries([0, 1, 2, 5, 10, 20])  # -1, not there at all, lies below the first

#: Of the user: how often an impression of the last week became a click, a long view, a like.
USER_RATES = [
    cross(
        f"{name}_rate_7d",
        ratio(f"user_activity:{counted}_7d", "user_activity:impressions_7d", prior=p, weight=20),
        RATES,
    )
    for name, counted, p in (
        ("click", "clicks", 0.35),
        ("long_view", "long_views", 0.25),
        ("like", "likes", 0.02),
    )
]

#: Of the candidate: the same over all who were shown it, and of the last day the clicks.
VIDEO_RATES = [
    cross(
        f"video_{name}_rate_{window}",
        ratio(
            f"video_activity:{counted}_{window}",
            f"video_activity:impressions_{window}",
            prior=prior,
            weight=20,
        ),
        RATES,
    )
    for name, counted, window, prior in (
        ("click", "clicks", "7d", 0.4),
        ("click", "clicks", "1d", 0.4),
        ("long_view", "long_views", "7d", 0.3),
        ("like", "likes", "7d", 0.02),
        ("finish", "finishes", "7d", 0.2),
    )
]

#: Of the user and the candidate: what the recent plays and likes say of this video, its author and
#: its first tag.
RECENTS = [
    cross("video_played", contains("user_activity:last_videos", "videos:video_id"), identity(2)),
    cross("video_place", position("user_activity:last_videos", "videos:video_id"), PLACES),
    cross("author_played", contains("user_activity:last_authors", "videos:author_id"), identity(2)),
    cross("author_played_share", share("user_activity:last_authors", "videos:author_id"), SHARES),
    cross("tag_played", contains("user_activity:last_tags", "videos:tag_1"), identity(2)),
    cross("tag_share", share("user_activity:last_tags", "videos:tag_1"), SHARES),
    cross("tag_place", position("user_activity:last_tags", "videos:tag_1"), PLACES),
    cross("author_liked", contains("user_activity:liked_authors", "videos:author_id"), identity(2)),
    cross("author_share", share("user_activity:liked_authors", "videos:author_id"), SHARES),
    cross("author_place", position("user_activity:liked_authors", "videos:author_id"), PLACES),
]

ranking = feature_service(
    "ranking",
    [users, user_activity, videos, video_activity],
    crosses=[
        *USER_RATES,
        cross(
            "aspect",
            ratio("videos:server_width", "videos:server_height"),
            boundaries([0.5, 0.6, 0.8, 1.0, 1.3, 1.7]),
        ),
        *VIDEO_RATES,
        *RECENTS,
    ],
)
