"""What a user did, and what was done to a video, lately. A feature more is a line more."""

from entities import user, video

from catalog.declare import (
    DAY,
    HOUR,
    WEEK,
    actions,
    actions_by_item,
    boundaries,
    column,
    count,
    last_n,
    log_buckets,
    mean,
    only,
    recent,
    smoothed,
    streamed_view,
    total,
)

COUNTS = log_buckets(20, low=1, high=1_000)
#: From a minute to a week.
AGES = log_buckets(16, low=60_000, high=7 * 24 * 3_600_000)
PLAY_MS = log_buckets(24, low=1_000, high=24 * 3_600_000)
#: Of single plays.
EACH_MS = log_buckets(16, low=1_000, high=300_000)
RATES = boundaries([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8])

user_activity = streamed_view(
    "user_activity",
    user,
    actions("actions"),
    [
        count("impressions_1h", "impression", HOUR, COUNTS),
        count("impressions_1d", "impression", DAY, COUNTS),
        count("impressions_7d", "impression", WEEK, COUNTS),
        count("plays_1h", "play", HOUR, COUNTS),
        count("plays_1d", "play", DAY, COUNTS),
        count("plays_7d", "play", WEEK, COUNTS),
        count("clicks_1h", "click", HOUR, COUNTS),
        count("clicks_1d", "click", DAY, COUNTS),
        count("clicks_7d", "click", WEEK, COUNTS),
        count("likes_1h", "like", HOUR, COUNTS),
        count("likes_1d", "like", DAY, COUNTS),
        count("likes_7d", "like", WEEK, COUNTS),
        count("long_views_1h", "long_view", HOUR, COUNTS),
        count("long_views_1d", "long_view", DAY, COUNTS),
        count("long_views_7d", "long_view", WEEK, COUNTS),
        total("play_ms_1h", "play.value", HOUR, PLAY_MS),
        total("play_ms_1d", "play.value", DAY, PLAY_MS),
        total("play_ms_7d", "play.value", WEEK, PLAY_MS),
        mean("play_ms_mean_7d", "play.value", WEEK, EACH_MS),
        count("half_minutes_7d", only("play", "value >= 30000"), WEEK, COUNTS),
        smoothed("half_minute_rate_7d", "half_minutes_7d", "plays_7d", RATES, prior=0.2, weight=20),
        recent(
            "last_plays",
            "play",
            30,
            [
                column("last_videos", "item", shares="videos:video_id"),
                column("last_authors", "author", shares="videos:author_id"),
                column("last_tags", "tag", shares="videos:tag"),
                column("last_play_ms", "value", log_buckets(12, low=1_000, high=120_000)),
                column("last_play_ages", "age_ms", AGES),
            ],
        ),
        last_n("liked_authors", "like.author", 20, shares="videos:author_id"),
    ],
)

VIDEO_COUNTS = log_buckets(24, low=1, high=10_000)

video_activity = streamed_view(
    "video_activity",
    video,
    actions_by_item("actions"),
    [
        count("impressions_1h", "impression", HOUR, VIDEO_COUNTS),
        count("impressions_1d", "impression", DAY, VIDEO_COUNTS),
        count("impressions_7d", "impression", WEEK, VIDEO_COUNTS),
        count("plays_1h", "play", HOUR, VIDEO_COUNTS),
        count("plays_1d", "play", DAY, VIDEO_COUNTS),
        count("plays_7d", "play", WEEK, VIDEO_COUNTS),
        count("clicks_1h", "click", HOUR, VIDEO_COUNTS),
        count("clicks_1d", "click", DAY, VIDEO_COUNTS),
        count("clicks_7d", "click", WEEK, VIDEO_COUNTS),
        count("likes_1h", "like", HOUR, VIDEO_COUNTS),
        count("likes_1d", "like", DAY, VIDEO_COUNTS),
        count("likes_7d", "like", WEEK, VIDEO_COUNTS),
        count("finishes_1h", "finish", HOUR, VIDEO_COUNTS),
        count("finishes_1d", "finish", DAY, VIDEO_COUNTS),
        count("finishes_7d", "finish", WEEK, VIDEO_COUNTS),
        count("long_views_1h", "long_view", HOUR, VIDEO_COUNTS),
        count("long_views_1d", "long_view", DAY, VIDEO_COUNTS),
        count("long_views_7d", "long_view", WEEK, VIDEO_COUNTS),
    ],
)
