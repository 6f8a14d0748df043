"""Who asks, and what is ranked."""

from catalog.declare import item_entity, user_entity

user = user_entity("user", join_key="user_id")
video = item_entity("video", join_key="video_id")
