"""Attributes of videos: the item side of every ranking."""

from entities import video

from catalog.declare import (
    Array,
    Float64,
    Int64,
    String,
    batch_view,
    entity_id,
    feature,
    hashed,
    identity,
    log_buckets,
    vocab,
)

VIDEO_TYPES = ["NORMAL", "AD", "UNKNOWN"]
UPLOAD_TYPES = [
    "LongImport",
    "Web",
    "ShortImport",
    "Kmovie",
    "LongPicture",
    "UNKNOWN",
    "PictureSet",
    "LongCamera",
    "ShortCamera",
    "ShareFromOtherApp",
    "FollowShoot",
    "AiCutVideo",
    "LipsSync",
    "PhotoCopy",
]

videos = batch_view(
    "videos",
    video,
    "sources/videos.parquet",
    [
        entity_id(video, identity(8_192)),
        feature("author_id", Int64, hashed(32_768)),
        feature("music_id", Int64, hashed(32_768, sentinels=[0])),
        feature("music_type", Float64, identity(12)),
        feature("video_type", String, vocab(VIDEO_TYPES)),
        feature("upload_type", String, vocab(UPLOAD_TYPES)),
        feature("video_duration", Float64, log_buckets(32, low=5_000, high=600_000)),
        feature("server_width", Float64, log_buckets(12, low=270, high=2_400)),
        feature("server_height", Float64, log_buckets(12, low=448, high=2_400)),
        feature("tag", Array(Int64), identity(128), capacity=3),
    ],
)
