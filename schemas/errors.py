"""Every error encore raises on purpose.

    EncoreError
    ├── DeclarationError     a feature repo declares what cannot be compiled
    ├── PlanError            a lock file or a published plan cannot be used
    ├── CodecError           bytes do not hold what their contract says
    │   ├── RowError             a stored row
    │   ├── ActionError          an action message (goes to the dead-letter topic)
    │   └── RecordError          a rank-log record or a spool frame
    ├── StoreError           the row store did not do as asked
    │   └── StoreTimeout         … in time
    ├── HistoryError         the row store restarted, failed over or was wiped
    ├── StreamError          topic, partition, epoch or offset is not as required
    │   ├── NotHeldError         … since the log does not hold that offset any more
    │   ├── TooLargeError        … since a topic does not take a message of that size
    │   └── MovedError           … since the actions have moved on to another topic
    ├── PackageError         a model package is refused
    ├── RequestError         a caller's request is refused (carries an HTTP status)
    ├── SettingsError        a setting is unknown or out of range
    └── LocalError           the embedded stack cannot start

Each message says where, what was required, what came and what to do:
`user_activity.clicks_1h.window: needs a multiple of the 5 min hop, got 7 min; use 5 or 10 min`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class EncoreError(Exception):
    """An error with four parts.

    where: the place, as the user would name it (a dotted path, a topic and offset, a URL field).
    required: what that place takes.
    got: what came instead.
    do: what to do about it; may be empty where there is nothing to do but report.
    """

    code: ClassVar[str] = "encore"

    def __init__(self, where: str, *, required: str, got: str, do: str = "") -> None:
        self.where = where
        self.required = required
        self.got = got
        self.do = do
        message = f"{where}: needs {required}, got {got}"
        super().__init__(f"{message}; {do}" if do else message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors come back from other processes, too."""
        return _again, (type(self), str(self), self.__dict__)

    def parts(self) -> dict[str, str]:
        """The same as a flat dict of strings, for JSON output and log lines."""
        return {
            "code": self.code,
            "where": self.where,
            "required": self.required,
            "got": self.got,
            "do": self.do,
        }


def nearest(name: str, known: Iterable[str]) -> str:
    """What to do about a name that is not known: the names most like it, or nothing.

    >>> nearest("click_1h", ["clicks_1h", "clicks_1d", "author"])
    'did you mean clicks_1h or clicks_1d?'
    >>> nearest("weather", ["clicks_1h", "author"])
    ''
    """
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.65)
    return f"did you mean {' or '.join(near)}?" if near else ""


def _again(kind: type[EncoreError], message: str, parts: dict[str, Any]) -> EncoreError:
    """An error as it was pickled."""
    error = kind.__new__(kind, message)
    error.__dict__.update(parts)
    return error


class DeclarationError(EncoreError):
    """A feature repo declares what cannot be compiled into a plan."""

    code = "declaration"


class PlanError(EncoreError):
    """A lock file or a published plan cannot be used."""

    code = "plan"


class CodecError(EncoreError):
    """Bytes do not hold what their contract says."""

    code = "codec"


class RowError(CodecError):
    """A stored row is damaged or of a layout nobody here knows."""

    code = "row"


class ActionError(CodecError):
    """An action message is malformed: it belongs into the dead-letter topic."""

    code = "action"


class RecordError(CodecError):
    """A rank-log record or a spool frame is damaged."""

    code = "record"


class StoreError(EncoreError):
    """The row store refused or failed."""

    code = "store"


class StoreTimeout(StoreError):  # noqa: N818
    """The row store did not answer in time."""

    code = "store_timeout"


class HistoryError(EncoreError):
    """The row store is in another history than the one this process writes to.

    What was written and not confirmed durable may be gone, so trying again is no remedy: the
    process ends, and a new one goes on from the marks that are there.
    """

    code = "history"


class StreamError(EncoreError):
    """A topic, partition, epoch or offset is not as required."""

    code = "stream"


class NotHeldError(StreamError):
    """The log does not hold that offset any more; asking again is no remedy.

    next_offset: of the record that the log holds next, where it was told with the refusal.
    """

    code = "not_held"
    next_offset: int | None = None


class TooLargeError(StreamError):
    """A message is larger than the topic, or encore itself, lets one be."""

    code = "too_large"


class MovedError(StreamError):
    """The actions have moved on to another topic; a stream process goes on there by itself."""

    code = "moved"


class PackageError(EncoreError):
    """A model package is refused; whatever served before goes on."""

    code = "package"


class RequestError(EncoreError):
    """A caller's request is refused.

    status: the HTTP status of the reply, 400 unless given.
    """

    code = "request"

    def __init__(
        self, where: str, *, required: str, got: str, do: str = "", status: int = 400
    ) -> None:
        super().__init__(where, required=required, got=got, do=do)
        self.status = status


class SettingsError(EncoreError):
    """A setting is unknown or out of range."""

    code = "settings"


class LocalError(EncoreError):
    """The embedded broker or store cannot start."""

    code = "local"
