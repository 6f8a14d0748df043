"""What each model sees: the slots of its tensors, in this order."""

from activity import user_activity
from users import users
from videos import videos

from catalog.declare import feature_service

ranking = feature_service("ranking", [users, user_activity, videos])
