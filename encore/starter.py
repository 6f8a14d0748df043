"""`encore init`: a project small enough to read, which runs.

DIR/encore.toml                  settings: where the rest lies
DIR/feature_repo/                the declarations: who, what, and what a model sees
DIR/data/sources/songs.parquet   a batch source of six songs
DIR/listeners.py                 a stand-in for an app: asks for pages, prints what listeners do
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import SettingsError

SETTINGS: Final = """\
# Settings of this project; `docs/settings.md` lists all. Paths are relative to this file.
repo = "feature_repo"
data_dir = "data"
service = "ranking"
sink_roll_ms = 2_000  # Parquet every two seconds: small files, soon there
"""

LISTENERS: Final = '''\
"""Stands in for your app: listeners ask for a page of songs, see it, and play what they like.

    python listeners.py 300 | encore send       300 pages; each line printed is an action

It needs nothing of encore: it asks over HTTP, and prints JSON.
"""

import http.client
import json
import random
import sys
import time
import uuid

SERVICE = "127.0.0.1:8080"
ARTIST = {1: 10, 2: 10, 3: 11, 4: 12, 5: 12, 6: 13}  # of each song


def int64(name, values):
    return {"name": name, "shape": [len(values)], "datatype": "INT64", "data": values}


def page(service, request_id, user):
    """The songs as the service ranks them for this user."""
    inputs = [int64("user_id", [user]), int64("candidate_ids", list(ARTIST))]
    body = json.dumps({"id": request_id, "inputs": inputs})
    service.request("POST", "/v2/models/rank/infer", body, {"content-type": "application/json"})
    reply = json.load(service.getresponse())
    if "error" in reply:
        sys.exit(reply["error"])
    return reply["outputs"][0]["data"]


def act(user, song, kind, request_id, **more):
    action = {"user": user, "item": song, "type": kind, "author": ARTIST[song]}
    print(json.dumps(action | {"request_id": request_id} | more))


def listen(service, user):
    """One page: all of it is seen; songs of the listener's artist are mostly played."""
    request_id = str(uuid.uuid4())
    songs = page(service, request_id, user)
    now_ms = int(time.time() * 1000)
    for position, song in enumerate(songs):
        act(user, song, "impression", request_id, time_ms=now_ms, position=position)
        if random.random() < (0.8 if ARTIST[song] == 10 + user % 4 else 0.1):
            act(user, song, "click", request_id, time_ms=now_ms)
            act(user, song, "play", request_id, time_ms=now_ms, value=random.randint(1, 200_000))


if __name__ == "__main__":
    random.seed(7)
    connection = http.client.HTTPConnection(SERVICE, timeout=10)
    try:
        for number in range(int(sys.argv[1])):
            listen(connection, user=1 + number % 40)
    except OSError as error:
        sys.exit(f"{SERVICE}: {error}; does `encore up` run in another terminal, and say `ready`?")
'''

REPO_FILES: Final = {
    "feature_store.yaml": """\
# A Feast repo. `encore apply` compiles it into plan.lock.json.
project: starter
provider: local
registry: .encore/registry.db
entity_key_serialization_version: 3
online_store:
  type: catalog.online_store.EncoreOnlineStore
  store_url: ${ENCORE_STORE_URL}
""",
    "entities.py": '''\
"""Who asks, and what is ranked."""

from catalog.declare import item_entity, user_entity

user = user_entity("user", join_key="user_id")
song = item_entity("song", join_key="song_id")
''',
    "songs.py": '''\
"""Attributes of songs, from a Parquet file below data_dir: `encore load` writes them as rows."""

from entities import song

from catalog.declare import Int64, String, batch_view, entity_id, feature, hashed, identity, vocab

songs = batch_view(
    "songs",
    song,
    "sources/songs.parquet",
    [
        entity_id(song, identity(1_000)),
        feature("artist_id", Int64, hashed(256)),
        feature("genre", String, vocab(["pop", "rock", "ballad"])),
    ],
)
''',
    "activity.py": '''\
"""What a user did lately, folded from the actions topic. A feature more is a line more."""

from entities import user

from catalog.declare import DAY, HOUR, actions, count, last_n, log_buckets, streamed_view

COUNTS = log_buckets(12, low=1, high=1_000)

user_activity = streamed_view(
    "user_activity",
    user,
    actions("actions"),
    [
        count("plays_1h", "play", HOUR, COUNTS),
        count("clicks_1d", "click", DAY, COUNTS),
        last_n("last_songs", "play.item", 20, shares="songs:song_id"),
    ],
)
''',
    "services.py": '''\
"""What each model sees: the slots of its tensors, in this order."""

from activity import user_activity
from songs import songs

from catalog.declare import feature_service

ranking = feature_service("ranking", [user_activity, songs])
''',
}

#: 2022-01-01, ms since 1970: when the songs' attributes were last seen to be so.
_SEEN_MS: Final = 1_640_995_200_000


def create_project(directory: Path) -> tuple[Path, ...]:
    """Write the project; returns its files. Raises SettingsError where there is something."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SettingsError(
            str(directory),
            required="a directory that is new or empty",
            got="one that holds something" if directory.is_dir() else "a file",
            do="name another",
        )
    texts = {directory / "encore.toml": SETTINGS, directory / "listeners.py": LISTENERS}
    texts |= {directory / "feature_repo" / name: text for name, text in REPO_FILES.items()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    source = directory / "data" / "sources" / "songs.parquet"
    source.parent.mkdir(parents=True)
    pq.write_table(_songs(), source)
    return (*texts, source)


def _songs() -> pa.Table:
    return pa.table(
        {
            "song_id": pa.array(range(1, 7), pa.int64()),
            "artist_id": pa.array([10, 10, 11, 12, 12, 13], pa.int64()),
            "genre": pa.array(["pop", "pop", "rock", "ballad", "rock", "pop"]),
            "event_timestamp": pa.array([_SEEN_MS] * 6, pa.timestamp("ms", tz="UTC")),
        }
    )
