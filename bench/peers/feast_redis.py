"""A Feast store on the benchmarks' own server, set up to be fast: for its peers in this folder."""

from __future__ import annotations

from pathlib import Path

from feast import FeatureStore, RepoConfig


def feast_on_redis(project: str, address: str, database: int, directory: Path) -> FeatureStore:
    """Its rows in a database of their own, its registry below `directory` and cached for good.

    address: `host:port`.
    """
    return FeatureStore(
        config=RepoConfig(
            project=project,
            provider="local",
            registry={"path": str(directory / f"{project}.db"), "cache_ttl_seconds": 0},
            online_store={
                "type": "redis",
                "connection_string": f"{address},db={database}",
                "skip_dedup": True,
            },
            entity_key_serialization_version=3,
        )
    )
