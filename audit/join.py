"""The label join: what was scored, beside what the user then did with it.

Reads two Parquet trees that the streams write, and nothing else:

    rank log     one row a request, and one row a candidate of it
    actions      one row an action; those of a ranked page carry its request id

A candidate belongs to an action by (request id, item). A label counts only actions of `time_ms >=
now_ms` of the request: nothing that happened before the page was asked for can be its outcome. So
the clocks of apps and service have to agree: an app that is behind has its impressions counted as
unmatched.

A candidate is *exposed* when it has an impression action; only then is the absence of a click a
statement of the user's. Impressions of no logged request are left out, and counted.

The log is written at least once, so a request may be there twice, whole: the record of the lowest
(topic id, partition, offset) stands, the rest is dropped and counted. Candidates are taken from the
record that stands.

Symbols: R requests, C candidates of the fine stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa

from schemas.errors import RecordError
from schemas.names import ACTIONS_TOPIC, RANK_LOG_TOPIC

#: Label columns of the joined candidates → the action that sets each.
LABELS: Final = {
    "exposed": "impression",
    "click": "click",
    "long_view": "long_view",
    "like": "like",
}
_FOREVER_MS: Final = 1 << 62
#: Columns that say where a record lies; they are not passed on.
_PLACE: Final = ("topic_id", "partition", "offset", "filename")


@dataclass(frozen=True)
class LogPaths:
    """The three Parquet trees; each is a directory, read recursively."""

    requests: Path
    candidates: Path
    actions: Path

    @classmethod
    def under(cls, data_dir: Path) -> LogPaths:
        """Where the sinks write: below `<data_dir>/archive`."""
        archive = data_dir / "archive"
        log = archive / RANK_LOG_TOPIC
        return cls(log / "requests", log / "candidates", archive / ACTIONS_TOPIC)


@dataclass(frozen=True)
class JoinQuery:
    """Which requests to join: of one service and one fingerprint of it, now_ms in [start, end).

    fingerprint: 16 hex digits. Requests of other fingerprints have other columns, so a join never
        mixes them.
    known_ms: only actions before it count, so the labels are those of somebody who joins then,
        whatever the log holds by now.
    evidence: also bring the statuses and fences of the rows, which training does not read.
    threads: of DuckDB.
    """

    service: str
    fingerprint: str
    start_ms: int = 0
    end_ms: int = _FOREVER_MS
    known_ms: int = _FOREVER_MS
    evidence: bool = False
    threads: int = 2


@dataclass(frozen=True)
class JoinCounts:
    """What the join saw.

    requests: (R) that stand. duplicates: further records of a request that stands.
    candidates: (C) of the fine stage. exposed: of these, with an impression.
    unmatched_impressions: impressions before known_ms of no joined request, or of none of its fine
        candidates.
    """

    requests: int
    duplicates: int
    candidates: int
    exposed: int
    unmatched_impressions: int


@dataclass(frozen=True)
class JoinedLog:
    """requests: R rows in order of (now_ms, request_id), as logged.

    candidates: C rows, all of one request together, requests in order, within a request in the
    order of scoring; as logged, with `request_row` i32 (the row in `requests`) for the request id
    and the bool columns of LABELS.
    """

    requests: pa.Table
    candidates: pa.Table
    counts: JoinCounts


def join_log(paths: LogPaths, query: JoinQuery) -> JoinedLog:
    """Join the trees, also while the sinks write them: a file is whole or not there.

    Raises RecordError when a tree holds no Parquet file, or files that are no such table.
    """
    trees = {"log": paths.requests, "scored": paths.candidates, "actions": paths.actions}
    try:
        with duckdb.connect(config={"threads": query.threads}) as connection:
            for name, path in trees.items():
                _open(connection, name, [_pattern(path)])
            _known(connection, query)
            _narrow(connection, paths, query)
            _stand(connection, query)
            requests = _requests(connection, query)
            candidates = _candidates(connection, query)
            return JoinedLog(requests, candidates, _counts(connection))
    except duckdb.Error as error:
        raise RecordError(
            ", ".join(str(path) for path in trees.values()),
            required="the Parquet files of the sinks",
            got=str(error).partition("\n")[0],
            do="look at what else lies in these directories",
        ) from error


def _pattern(path: Path) -> Path:
    """All files below `path`. Raises RecordError where there is none."""
    if next(path.rglob("*.parquet"), None) is None:
        raise RecordError(
            str(path),
            required="Parquet files",
            got="none",
            do="rank requests while `encore ship` and `encore sink` run; the sink writes them here",
        )
    return path / "**" / "*.parquet"


def _open(connection: duckdb.DuckDBPyConnection, name: str, files: Sequence[Path]) -> None:
    """A view over files, or over those that patterns name."""
    listed = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
    connection.execute(
        f"CREATE OR REPLACE VIEW {name} AS FROM read_parquet([{listed}], "
        "hive_partitioning = true, union_by_name = true, filename = true)"
    )


def _known(connection: duckdb.DuckDBPyConnection, query: JoinQuery) -> None:
    """View `known`: the actions that count."""
    connection.execute(
        f"CREATE VIEW known AS SELECT * FROM actions WHERE time_ms < {query.known_ms:d}"
    )


def _narrow(connection: duckdb.DuckDBPyConnection, paths: LogPaths, query: JoinQuery) -> None:
    """Leave the files of other fingerprints out: a file holds records of one, and where two give a
    column different types, DuckDB reads both as the wider one, an int64 as a double."""
    found = connection.execute(
        "SELECT DISTINCT filename FROM log WHERE service = $service AND fingerprint = $fingerprint",
        {"service": query.service, "fingerprint": query.fingerprint},
    ).fetchall()
    requests = sorted(Path(row[0]) for row in found)
    if requests:
        twins = [paths.candidates / file.relative_to(paths.requests) for file in requests]
        _open(connection, "log", requests)
        _open(connection, "scored", twins)


def _stand(connection: duckdb.DuckDBPyConnection, query: JoinQuery) -> None:
    """Table `stand`: one record a request, and its row number in order of (now_ms, request_id)."""
    connection.execute(
        """
        CREATE TABLE asked AS
        SELECT request_id, now_ms, topic_id, "partition", "offset",
               row_number() OVER (PARTITION BY request_id
                                  ORDER BY topic_id, "partition", "offset") AS copy
        FROM log
        WHERE service = $service AND fingerprint = $fingerprint
          AND now_ms >= $start_ms AND now_ms < $end_ms
        """,
        {
            "service": query.service,
            "fingerprint": query.fingerprint,
            "start_ms": query.start_ms,
            "end_ms": query.end_ms,
        },
    )
    connection.execute(
        """
        CREATE TABLE stand AS
        SELECT * EXCLUDE (copy),
               (row_number() OVER (ORDER BY now_ms, request_id) - 1)::INTEGER AS request_row
        FROM asked WHERE copy = 1
        """
    )


def _requests(connection: duckdb.DuckDBPyConnection, query: JoinQuery) -> pa.Table:
    left_out = _left_out(connection, "log", "user", query)
    return connection.sql(
        f"""
        SELECT log.* EXCLUDE ({left_out})
        FROM log JOIN stand USING (request_id, topic_id, "partition", "offset")
        ORDER BY request_row
        """
    ).to_arrow_table()


def _candidates(connection: duckdb.DuckDBPyConnection, query: JoinQuery) -> pa.Table:
    """Also makes table `outcome`: one row for each (request, item) with any action after now_ms."""
    flags = ", ".join(f"bool_or(action = '{action}') AS {name}" for name, action in LABELS.items())
    connection.execute(
        f"""
        CREATE TABLE outcome AS
        SELECT request_row, item AS item_id, {flags}
        FROM known JOIN stand USING (request_id)
        WHERE time_ms >= now_ms
        GROUP BY request_row, item
        """
    )
    left_out = _left_out(connection, "scored", "item", query)
    known = ", ".join(f"coalesce(outcome.{name}, false) AS {name}" for name in LABELS)
    return connection.sql(
        f"""
        SELECT stand.request_row, scored.* EXCLUDE (request_id, {left_out}), {known}
        FROM scored JOIN stand USING (request_id, topic_id, "partition", "offset")
        LEFT JOIN outcome USING (request_row, item_id)
        WHERE stage = 'fine'
        ORDER BY request_row, place
        """
    ).to_arrow_table()


def _left_out(connection: duckdb.DuckDBPyConnection, view: str, side: str, query: JoinQuery) -> str:
    """The columns of `view` that are not passed on, quoted, comma separated."""
    evidence = () if query.evidence else (f"{side}_status", f"{side}_fences")
    there = {str(row[0]) for row in connection.execute(f"DESCRIBE {view}").fetchall()}
    return ", ".join(f'"{name}"' for name in (*_PLACE, *evidence) if name in there)


def _counts(connection: duckdb.DuckDBPyConnection) -> JoinCounts:
    row = connection.execute(
        """
        WITH fine AS (
            SELECT request_id, now_ms, item_id, coalesce(exposed, false) AS exposed
            FROM scored JOIN stand USING (request_id, topic_id, "partition", "offset")
            LEFT JOIN outcome USING (request_row, item_id)
            WHERE stage = 'fine'
        ),
        matched AS (
            SELECT count(*) AS impressions
            FROM known JOIN fine USING (request_id)
            WHERE action = $impression AND item = item_id AND time_ms >= now_ms
        )
        SELECT (SELECT count(*) FROM stand),
               (SELECT count(*) FROM asked WHERE copy > 1),
               (SELECT count(*) FROM fine),
               (SELECT count(*) FROM fine WHERE exposed),
               (SELECT count(*) FROM known WHERE action = $impression)
                   - (SELECT impressions FROM matched)
        """,
        {"impression": LABELS["exposed"]},
    ).fetchone()
    assert row is not None
    return JoinCounts(*row)
