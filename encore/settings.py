"""Settings: `encore.toml`, overridden by `ENCORE_*` environment variables, over the defaults below.

A key that is not known is an error that names the nearest known one: a setting that is silently
ignored is worse than none. Relative paths of the file are relative to the file, relative paths of
the environment to the working directory.

The file is `./encore.toml`, or what `--config` or `ENCORE_CONFIG` names.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from schemas.errors import SettingsError
from store.cores import PATTERN as CORES

ENV_PREFIX: Final = "ENCORE_"
CONFIG_VARIABLE: Final = "ENCORE_CONFIG"
DEFAULT_FILE: Final = Path("encore.toml")
LOCAL: Final = "local"
PATH_SETTINGS: Final = ("data_dir", "repo", "spool_dir", "packages_dir", "item_cache_dir")

_PORTS: Final = 1 << 16
_GRPC_PORT_BEHIND: Final = 10
_METRICS_PORT_BEHIND: Final = 20

Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Milliseconds = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """Everything that may differ between two installations, with defaults for one machine."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    # --- where things are
    bootstrap: str = Field(
        LOCAL,
        pattern=r"^(local|[^\s/,]+:\d+(,[^\s/,]+:\d+)*)$",
        description="Kafka bootstrap servers, host:port separated by commas, or `local`: the broker"
        " of `encore up`",
    )
    store_url: str = Field(
        LOCAL,
        pattern=r"^(local$|rediss?://|unix://)",
        description="the row store, redis://[user:password@]host:port/db, or `local`: the store of"
        " `encore up`",
    )
    data_dir: Path = Field(Path(".encore"), description="archives, logs, models, spool")
    repo: Path = Field(Path("feature_repo"), description="the feature repo: Feast declarations")
    spool_dir: Path | None = Field(None, description="rank-log spool; data_dir/spool when unset")
    packages_dir: Path | None = Field(
        None, description="model packages; data_dir/packages when unset"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="what long-running processes write to their logs"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="lines for people, or one JSON object a line for collectors"
    )
    trace_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/]+",
        description="OpenTelemetry collector that takes OTLP over HTTP, http://host:4318; no traces"
        " when unset",
    )
    trace_share: Share = Field(
        0.01, description="part of the requests that are traced where the caller decided nothing"
    )
    slow_ms: int = Field(
        0, ge=0, description="requests that take longer get a log line; 0: degraded ones alone"
    )

    # --- streams
    partitions: Count = Field(4, description="partitions of each topic; never changed afterwards")
    group: str = Field("encore", min_length=1, description="consumer group of the stream worker")
    sink_roll_rows: Count = Field(50_000, description="a Parquet file is closed at this many rows")
    sink_roll_ms: Milliseconds = Field(10_000, description="… or at this age")

    retention_ms: int = Field(
        0,
        ge=0,
        description="how long the topics keep messages; rows of views with a TTL leave the store a"
        " day after the longer of both without a write. 0: unknown, all rows stay",
    )
    durability: Literal["fsynced", "answered"] = Field(
        "fsynced",
        description="commit what the store's disk has confirmed, or, for a store without an"
        " append-only file, what it has answered: a crash of it may then take back what was"
        " committed",
    )

    fsynced_by_store: bool = Field(
        True, description="durability fsynced waits for the disk of the store itself"
    )
    fsynced_by_replicas: int = Field(
        0,
        ge=0,
        description="… and for the disks of so many replicas of it, each with an append-only file;"
        " the store itself need not keep one then",
    )

    stream_core: int | None = Field(
        None,
        ge=0,
        description="the machine's core that `encore stream`, `items` or `sink` runs on, another"
        " for each process; anywhere when unset. Linux",
    )
    stream_metrics_port: Port = Field(
        8091, description="port of `encore stream metrics`, on http_host; 0 takes a free one"
    )

    # --- ranking service
    service: str = Field("ranking", min_length=1, description="the feature service that is ranked")
    http_host: str = Field("127.0.0.1", description="address the ranking service listens on")
    http_port: Port = Field(8080, description="port it listens on; 0 takes a free one")
    grpc_port: Port | None = Field(
        None,
        description="port of the same over gRPC; 0 takes a free one, and unset it is http_port + 10"
        " (8090), or free where that is",
    )
    workers: Count = Field(
        1, description="serving processes of `encore serve`, all on the same ports"
    )
    cores: str | None = Field(
        None,
        pattern=CORES,
        description="the machine's cores they run on, each on one of them: `2,4-7`, or `auto` for"
        " all; anywhere when unset. Linux",
    )
    metrics_port: Port | None = Field(
        None,
        description="where all of them are looked at together: /metrics, /v2/health/ready. Unset it"
        " is http_port + 20 (8100), or free where that is, and one process has none",
    )
    page_size: Count = Field(20, description="items of a page unless the request says otherwise")
    fine_limit: Count = Field(1_000, description="most candidates that the fine model scores")
    draw_share: Share = Field(
        0.0, description="part of the requests in which coarse rejects are drawn and scored, too"
    )
    draw_count: int = Field(0, ge=0, description="how many are drawn, uniformly, never shown")
    max_candidates: Count = Field(10_000, description="most candidates in one request")
    max_body_bytes: Count = Field(1 << 20, description="largest request body")
    max_in_flight: Count = Field(256, description="requests served at once; more are refused")
    timeout_ms: Milliseconds = Field(
        500, description="a request is answered within this time unless it says otherwise"
    )
    store_timeout_ms: Milliseconds = Field(
        1_000, description="most time one store call may take; a request's own time bounds it, too"
    )
    stale_after_ms: int = Field(
        0,
        ge=0,
        description="a streamed row is STALE once the newest action stored of its partition is"
        " older; 0: never",
    )
    allow_now_ms: bool = Field(
        False, description="take a request's now_ms as its clock: for replays and tests"
    )
    spool_queue: Count = Field(4_096, description="rank-log records waiting for the spool")
    spool_full: Literal["drop", "refuse"] = Field(
        "drop", description="when that queue is full: drop and count the record, or refuse requests"
    )

    # --- item cache
    item_cache: bool = Field(
        True,
        description="keep all item rows of the service in shared memory, finalised: `encore serve`"
        " starts the process that does it. Linux on x86-64; elsewhere items come from the store",
    )
    item_cache_dir: Path | None = Field(
        None,
        description="where its file lies, data_dir/cache when unset; for many items best in memory:"
        " /dev/shm/encore",
    )
    item_cache_items: Count = Field(
        4_194_304, description="most items in it; it takes room for those that are there"
    )
    item_cache_max_age_ms: Milliseconds = Field(
        1_000, description="not known to hold all within this time, it is not read, but the store"
    )

    # --- the embedded stack of `encore up`
    broker_port: Port = Field(0, description="port of the embedded broker; 0 takes a free one")
    store_port: Port = Field(0, description="port of the embedded store; 0 takes a free one")

    @property
    def spool(self) -> Path:
        """The spool directory in effect."""
        return self.spool_dir if self.spool_dir is not None else self.data_dir / "spool"

    @property
    def packages(self) -> Path:
        """The model package directory in effect."""
        return self.packages_dir if self.packages_dir is not None else self.data_dir / "packages"

    @property
    def cache(self) -> Path:
        """The item cache's directory in effect."""
        return self.item_cache_dir if self.item_cache_dir is not None else self.data_dir / "cache"

    @property
    def grpc(self) -> int:
        """The gRPC port in effect, 0 for a free one."""
        return _port_behind(self.http_port, _GRPC_PORT_BEHIND, self.grpc_port)

    @property
    def metrics(self) -> int:
        """The supervisor's port in effect, 0 for a free one."""
        return _port_behind(self.http_port, _METRICS_PORT_BEHIND, self.metrics_port)

    @property
    def runs(self) -> Path:
        """Where the embedded stack and encore's own processes log."""
        return self.data_dir / "run"

    def environment(self) -> dict[str, str]:
        """The same settings as `ENCORE_*` variables with absolute paths, for child processes."""
        variables = {}
        for name, value in self:
            if value is not None:
                text = str(value.absolute()) if isinstance(value, Path) else str(value)
                variables[variable(name)] = text
        return variables


def _port_behind(port: int, behind: int, given: int | None) -> int:
    """The port that is given, or so many behind another one; 0 where that is, too."""
    if given is not None:
        return given
    return (port and port + behind) % _PORTS


def variable(name: str) -> str:
    """The environment variable of a setting.

    >>> variable("store_url")
    'ENCORE_STORE_URL'
    """
    return ENV_PREFIX + name.upper()


def load_settings(config: Path | None = None) -> Settings:
    """The settings in effect.

    config: the file to read; it must exist. None takes `ENCORE_CONFIG`, else `./encore.toml` if
    there is one. Raises SettingsError for an unknown key, a value out of range, a broken file.
    """
    file = _file_of(config)
    from_file = _read_file(file) if file else {}
    variables = {name.upper() for name in os.environ}
    _refuse_unknown_variables(variables)
    given = {key: value for key, value in from_file.items() if variable(key) not in variables}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise _settings_error(error, file, given) from None


def masked(url: str) -> str:
    """A URL without its password, for people and logs.

    >>> masked("redis://encore:secret@store:6379/0")
    'redis://encore:***@store:6379/0'
    """
    return re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", url)


def _file_of(config: Path | None) -> Path | None:
    if config is None and CONFIG_VARIABLE in os.environ:
        config = Path(os.environ[CONFIG_VARIABLE])
    if config is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    if not config.is_file():
        raise SettingsError("--config", required="a TOML file", got=f"{config}, which is no file")
    return config


def _read_file(file: Path) -> dict[str, Any]:
    """Its keys and values, checked for unknown keys, with paths relative to the file."""
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(str(file), required="a TOML file", got=str(error)) from None
    for key in values:
        if key not in Settings.model_fields:
            raise SettingsError(
                f"{file}: {key}",
                required="a known setting",
                got=f"the unknown key {key!r}",
                do=_nearest(key, list(Settings.model_fields)),
            )
    for key in PATH_SETTINGS:
        if isinstance(values.get(key), str):
            values[key] = file.absolute().parent / values[key]
    return values


def _refuse_unknown_variables(variables: set[str]) -> None:
    known = [variable(name) for name in Settings.model_fields]
    for name in sorted(variables):
        if name.startswith(ENV_PREFIX) and name != CONFIG_VARIABLE and name not in known:
            raise SettingsError(
                f"environment: {name}",
                required="a known setting",
                got=f"the unknown variable {name}",
                do=_nearest(name, known),
            )


def _nearest(key: str, known: list[str]) -> str:
    """What to do about an unknown key: the nearest known one, or all of them."""
    near = difflib.get_close_matches(key.lower(), [name.lower() for name in known], n=1, cutoff=0.5)
    if near:
        name = next(name for name in known if name.lower() == near[0])
        return f"did you mean {name}?"
    return f"known are {', '.join(known)}"


def _settings_error(
    error: ValidationError, file: Path | None, given: dict[str, Any]
) -> SettingsError:
    first = error.errors()[0]
    name = str(first["loc"][0])
    where = f"{file}: {name}" if name in given else f"environment: {variable(name)}"
    return SettingsError(
        where,
        required=f"the setting {name}: {Settings.model_fields[name].description}",
        got=masked(repr(first["input"])),
        do=first["msg"][0].lower() + first["msg"][1:],
    )
