"""Attributes of users, as KuaiRand gives them."""

from entities import user

from catalog.declare import (
    Float64,
    Int64,
    String,
    batch_view,
    feature,
    identity,
    log_buckets,
    vocab,
)

ACTIVE_DEGREES = [
    "full_active",
    "high_active",
    "middle_active",
    "low_active",
    "single_low_active",
    "2_14_day_new",
    "day_new",
    "30day_retention",
    "UNKNOWN",
]
FOLLOW_RANGES = [
    "0",
    "(0,10]",
    "(10,50]",
    "(50,100]",
    "(100,150]",
    "(150,250]",
    "(250,500]",
    "500+",
]
FAN_RANGES = [
    "0",
    "[1,10)",
    "[10,100)",
    "[100,1k)",
    "[1k,5k)",
    "[5k,1w)",
    "[1w,10w)",
    "[10w,100w)",
    "[100w,1000w)",
]
FRIEND_RANGES = ["0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+"]
REGISTER_RANGES = ["8-14", "15-30", "31-60", "61-90", "91-180", "181-365", "366-730", "730+"]

users = batch_view(
    "users",
    user,
    "sources/users.parquet",
    [
        feature("user_active_degree", String, vocab(ACTIVE_DEGREES)),
        feature("is_live_streamer", Int64, identity(2, sentinels=[-124])),
        feature("is_video_author", Int64, identity(2)),
        feature("follow_user_num", Int64, log_buckets(24, low=1, high=5_000)),
        feature("follow_user_num_range", String, vocab(FOLLOW_RANGES)),
        feature("fans_user_num", Int64, log_buckets(32, low=1, high=1_000_000)),
        feature("fans_user_num_range", String, vocab(FAN_RANGES)),
        feature("friend_user_num", Int64, log_buckets(24, low=1, high=5_000)),
        feature("friend_user_num_range", String, vocab(FRIEND_RANGES)),
        feature("register_days", Int64, log_buckets(24, low=14, high=3_600)),
        feature("register_days_range", String, vocab(REGISTER_RANGES)),
        feature("onehot_feat1", Int64, identity(7)),
        feature("onehot_feat2", Int64, identity(50)),
        feature("onehot_feat3", Int64, identity(1_471)),
        feature("onehot_feat4", Float64, identity(15)),
        feature("onehot_feat7", Int64, identity(118)),
        feature("onehot_feat8", Int64, identity(454)),
        feature("onehot_feat12", Float64, identity(2)),
    ],
)
