"""Log lines of encore's long-running processes: to stderr, one line an event, times in UTC.

    2026-07-01T12:00:00.123Z WARNING predictor.rank: rank: … [request_id=… trace_id=…]
    {"time": "2026-07-01T12:00:00.123Z", "level": "warning", "logger": "predictor.rank",
     "message": "rank: …", "request_id": "…", "trace_id": "…"}

A line that is written while a request is served carries the request's ids, on whatever thread. A
record's `fields` (`extra={"fields": {…}}`) are keys of its JSON line.
"""

from __future__ import annotations

import json
import logging
import string
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

FORMAT: Final = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S"
#: Clients that tell of every connection: heard from `warning` on, unless all is asked for. Faust's
#: services speak under the modules of their subclasses, where nothing of ours does; a stream that
#: ends would have their "Stopping..." behind the line that says why.
TALKATIVE: Final = (
    *("aiokafka", "faust", "kafka", "mode", "urllib3"),
    *("streams.app", "streams.transport"),
)
_WORD: Final = frozenset(string.ascii_letters + string.digits + "-_.:/")
Context = Callable[[], Mapping[str, str]]


def no_context() -> Mapping[str, str]:
    """The context of log lines in processes that serve no requests."""
    return {}


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self, context: Context = no_context) -> None:
        super().__init__(FORMAT, TIME_FORMAT)
        self._context = context
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, before any traceback."""
        ids = " ".join(f"{name}={_as_word(each)}" for name, each in self._context().items())
        line = super().formatMessage(record)
        return f"{line} [{ids}]" if ids else line


def _as_word(value: str) -> str:
    """As it is, or quoted where it would not read as one word of this line: callers choose some."""
    return value if set(value) <= _WORD else repr(value)


class JsonLines(logging.Formatter):
    """One JSON object a line. A traceback is its key `traceback`."""

    def __init__(self, context: Context = no_context) -> None:
        super().__init__(datefmt=TIME_FORMAT)
        self._context = context
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        fields: dict[str, Any] = {
            "time": f"{self.formatTime(record, TIME_FORMAT)}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._context(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def start_logging(
    level: str, form: Literal["text", "json"] = "text", context: Context = no_context
) -> None:
    """Send records of at least `level` (a name such as `info`) to stderr; warnings too.

    context: what each line says beside its message; asked on the thread that writes the line.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(context) if form == "json" else TextLines(context))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
