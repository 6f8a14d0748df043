"""What is said to a Redis server, and what its replies mean: shared by both clients, no I/O here.

A command is a tuple of its words; a round trip sends some packed commands and gets as many replies,
an error reply being an exception in the list. Scripts are called by their SHA1 and loaded when the
server says NOSCRIPT. One call of COMPARE_AND_SET has many keys, as an MGET has
(`docs/decisions/0009-many-rows-a-script-call.md`).

Fences are compared in Lua for equality only: `<` on Lua strings follows the server's locale.
Numbers in Lua are doubles, exact below 2^53; `check_progress` keeps to that.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import hiredis
from redis import exceptions as redis_errors

from schemas.errors import SettingsError, StoreError, StoreTimeout
from schemas.names import STORE_MARKER_KEY
from schemas.row import FENCE_SLICE
from store.base import Progress, ServerFacts, Write, check_history, other_history

Word = str | bytes | int
Command = tuple[Word, ...]
Reply = object

_PACK: Final[Callable[[Command], bytes]] = cast(Any, hiredis.pack_command)  # its stub is too narrow
#: Rows a script call: what a call costs is shared, and others wait for no more than these.
CALL_WRITES: Final = 32
CALL_BYTES: Final = 128 << 10
#: Bytes of rows a round trip, so that no reply waits for a huge batch.
PIPELINE_BYTES: Final = 8 << 20

# ARGV: after how many ms the rows expire, 0 for never; then fence and value of each key. Returns 1,
# 0 or an error for each. pcall: a key of another type must not keep the rest from being written.
COMPARE_AND_SET: Final = f"""
local out, expire = {{}}, ARGV[1]
for i = 1, #KEYS do
  local key, want, value = KEYS[i], ARGV[2 * i], ARGV[2 * i + 1]
  local set = redis.pcall('GETRANGE', key, {FENCE_SLICE.start}, {FENCE_SLICE.stop - 1})
  if type(set) ~= 'table' then
    if set ~= want then
      set = false
    elseif want == '' then
      if expire == '0' then
        set = redis.pcall('SET', key, value, 'NX')
      else
        set = redis.pcall('SET', key, value, 'NX', 'PX', expire)
      end
    elseif expire == '0' then
      set = redis.pcall('SET', key, value)
    else
      set = redis.pcall('SET', key, value, 'PX', expire)
    end
  end
  if set and set.err then out[i] = set else out[i] = set and 1 or 0 end
end
return out
"""

COMPARE_AND_SET_TEXT: Final = """
if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[2])
return 1
"""

# ARGV: partition, epoch, next offset, watermark; again for each partition.
PUT_PROGRESS: Final = """
for i = 1, #ARGV, 4 do
  local epoch, offset, mark = ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stored = redis.call('HGET', KEYS[1], ARGV[i])
  local keep = false
  if stored then
    local e, o, m = string.match(stored, '^(%d+),(%d+),(%-?%d+)$')
    if e and tonumber(e) > tonumber(epoch) then keep = true end
    if e and tonumber(e) == tonumber(epoch) then
      if tonumber(o) > tonumber(offset) then offset = o end
      if tonumber(m) > tonumber(mark) then mark = m end
    end
  end
  if not keep then
    redis.call('HSET', KEYS[1], ARGV[i], epoch .. ',' .. offset .. ',' .. mark)
  end
end
return 1
"""

EPOCH_OF: Final = """
local epoch = redis.call('HGET', KEYS[1], ARGV[1])
if not epoch then
  epoch = redis.call('HLEN', KEYS[1]) + 1
  redis.call('HSET', KEYS[1], ARGV[1], epoch)
end
return tonumber(epoch)
"""


# ARGV: marker, life. 0 where both are the server's, and then the marker is written once more: a
# WAITAOF that follows speaks of this write, hence of all before it, whichever connection made them.
CONFIRM: Final = """
local info = redis.call('INFO', 'replication')
if not string.find(info, 'master_replid:' .. ARGV[2], 1, true) then return 1 end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 2 end
redis.call('SET', KEYS[1], ARGV[1])
return 0
"""


def sha_of(script: str) -> str:
    """The name EVALSHA knows a script by."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


SHAS: Final = {
    script: sha_of(script)
    for script in (COMPARE_AND_SET, COMPARE_AND_SET_TEXT, PUT_PROGRESS, EPOCH_OF)
}


@dataclass(frozen=True, slots=True)
class Disks:
    """Whose disks a confirmation waits for. own: the server's that is written to. replicas: of so
    many of its replicas, each with an append-only file. Raises SettingsError for nobody's."""

    own: bool = True
    replicas: int = 0

    def __post_init__(self) -> None:
        if self.replicas < 0 or not (self.own or self.replicas):
            raise SettingsError(
                "fsynced_by_store, fsynced_by_replicas",
                required="the store's own disk, or those of 1 replica and more",
                got=f"{str(self.own).lower()}, {self.replicas}",
                do="set durability to answered for a store that keeps nothing on a disk",
            )

    def __str__(self) -> str:
        own = ["the store's disk"] if self.own else []
        return " and ".join(own + [f"the disks of {self.replicas} replicas"] * (self.replicas > 0))


OWN_DISK: Final = Disks()


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """How to reach a store.

    timeout_ms: the blocking client waits that long for each socket operation, the async one for a
        whole call, its wait for a free connection included. connections: most in use at once.
    disks: that `confirm` waits for.
    The defaults are for those who can wait, because a disk that stalls may hold a server up for
    seconds. Who has a deadline names its own.
    """

    url: str
    timeout_ms: int = 5_000
    connect_timeout_ms: int = 5_000
    connections: int = 16
    disks: Disks = OWN_DISK

    @property
    def confirm_ms(self) -> int:
        """How long the server may take to confirm: its answer comes within `timeout_ms`."""
        return max(1, self.timeout_ms * 3 // 4)

    @property
    def place(self) -> str:
        """The address as errors and logs may show it: no user, no password."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2] or parts.path
        return f"{parts.scheme}://{host}"


def pack(commands: Sequence[Command]) -> bytes:
    """The bytes of several commands, in C."""
    return b"".join([_PACK(command) for command in commands])


def buffers(commands: Sequence[Command]) -> Iterator[bytes]:
    """The bytes of several commands, in pieces of about CALL_BYTES, each packed when it is due."""
    held: list[bytes] = []
    size = 0
    for command in commands:
        held.append(_PACK(command))
        size += len(held[-1])
        if size > CALL_BYTES:
            yield b"".join(held) if len(held) > 1 else held[0]
            held, size = [], 0
    if held:
        yield b"".join(held) if len(held) > 1 else held[0]


def eval_command(script: str, keys: Sequence[str], arguments: Sequence[Word]) -> Command:
    """EVALSHA of one of this module's scripts."""
    return ("EVALSHA", SHAS[script], len(keys), *keys, *arguments)


def write_calls(writes: Sequence[Write]) -> list[Sequence[Write]]:
    """The writes cut into script calls, each of one expiry."""
    sizes = {len(write.value) for write in writes}
    if len(sizes) == 1 and len({write.expire_ms for write in writes}) == 1:
        many = min(CALL_WRITES, CALL_BYTES // max(sizes) + 1)
        return [writes[first : first + many] for first in range(0, len(writes), many)]
    calls: list[Sequence[Write]] = []
    first = size = 0
    for index, write in enumerate(writes):
        if index > first and (
            index - first == CALL_WRITES
            or size > CALL_BYTES
            or write.expire_ms != writes[first].expire_ms
        ):
            calls.append(writes[first:index])
            first, size = index, 0
        size += len(write.value)
    if first < len(writes):
        calls.append(writes[first:])
    return calls


def write_command(writes: Sequence[Write]) -> Command:
    """One script call; the empty string stands for an absent fence."""
    keys, fences, values, _ = zip(*writes, strict=True)
    pairs = [b""] * (2 * len(keys))
    pairs[::2] = fences if None not in fences else [fence or b"" for fence in fences]
    pairs[1::2] = values
    return ("EVALSHA", SHAS[COMPARE_AND_SET], len(keys), *keys, writes[0].expire_ms, *pairs)


def pipelines(calls: Sequence[Sequence[Write]]) -> list[Sequence[Sequence[Write]]]:
    """The calls cut into round trips of about PIPELINE_BYTES."""
    cut: list[Sequence[Sequence[Write]]] = []
    first = size = 0
    for index, call in enumerate(calls):
        if index > first and size > PIPELINE_BYTES:
            cut.append(calls[first:index])
            first, size = index, 0
        size += sum([len(write.value) for write in call])
    if first < len(calls):
        cut.append(calls[first:])
    return cut


def missing_scripts(replies: Sequence[Reply]) -> list[int]:
    """Indexes of the replies that say the server does not know the script."""
    return [
        index
        for index, reply in enumerate(replies)
        if isinstance(reply, redis_errors.NoScriptError)
    ]


def landed(calls: Sequence[Sequence[Write]], replies: Sequence[Reply], place: str) -> list[bool]:
    """One bool a write. Raises StoreError naming the first write the server refused."""
    results: list[Reply] = []
    for call, reply in zip(calls, replies, strict=True):
        results += reply if isinstance(reply, list) else [reply] * len(call)
    if {*map(type, results)} <= {int}:
        return [result == 1 for result in results]
    writes = [write for call in calls for write in call]
    for write, result in zip(writes, results, strict=True):
        if isinstance(result, Exception):
            refused = sum(isinstance(other, Exception) for other in results)
            raise StoreError(
                f"{place} compare_and_set[{write.key}]",
                required="a row the server can replace",
                got=f"{result} ({refused} of {len(results)} writes refused)",
                do=_remedy(result),
            )
    return [result == 1 for result in results]


def one(reply: Reply, where: str) -> Reply:
    """The reply itself. Raises StoreError where it is an error."""
    if isinstance(reply, Exception):
        raise as_store_error(reply, where, 0)
    return reply


def text(reply: Reply) -> str | None:
    """A reply of bytes as text."""
    return reply.decode() if isinstance(reply, bytes) else None


def values(reply: Reply) -> list[bytes | None]:
    """The reply of MGET."""
    if not isinstance(reply, list):
        raise StoreError("store.read", required="a list of values", got=type(reply).__name__)
    return reply


def integer(reply: Reply, where: str) -> int:
    """A reply that is a number."""
    if not isinstance(reply, int):
        raise StoreError(where, required="a number", got=repr(reply))
    return reply


def progress_words(progress: Mapping[int, tuple[int, int, int]]) -> list[Word]:
    """The arguments of PUT_PROGRESS."""
    return [word for partition, numbers in progress.items() for word in (partition, *numbers)]


def parse_progress(reply: Reply, where: str) -> dict[int, Progress]:
    """The reply of HGETALL on a progress hash. Raises StoreError naming a malformed field."""
    flat = reply if isinstance(reply, list) else []
    found: dict[int, Progress] = {}
    for name, raw in zip(flat[::2], flat[1::2], strict=True):
        try:
            epoch, next_offset, watermark_ms = map(int, raw.split(b","))
            found[int(name)] = Progress(epoch, next_offset, watermark_ms)
        except ValueError:
            raise StoreError(
                f"{where}[{name.decode(errors='replace')}]",
                required='"epoch,next_offset,watermark_ms"',
                got=repr(raw),
                do="something else writes this key; give encore a store of its own",
            ) from None
    return found


@dataclass(frozen=True, slots=True)
class History:
    """marker: the random id that lies in the store; it goes with a wipe. life: the replication id
    that the server gives its data; it takes another when it starts and when a replica takes over.
    """

    marker: str
    life: str

    def __str__(self) -> str:
        return f"{self.marker}-{self.life}"


def history_commands() -> tuple[Command, Command]:
    """Ask for both parts of a history."""
    return ("GET", STORE_MARKER_KEY), ("INFO", "replication")


def begin_commands() -> tuple[Command, ...]:
    """Give an unmarked store its marker, then `history_commands`."""
    return ("SET", STORE_MARKER_KEY, uuid.uuid4().hex, "NX"), *history_commands()


def confirm_commands(config: StoreConfig, history: History) -> tuple[Command, Command]:
    """CONFIRM, and on the same connection the wait for the disk. The script's text and not its
    name: a server that forgot it would answer the wait before a second try had written.
    """
    script = ("EVAL", CONFIRM, 1, STORE_MARKER_KEY, history.marker, history.life)
    disks = config.disks
    return script, ("WAITAOF", int(disks.own), disks.replicas, config.confirm_ms)


def parse_history(replies: Sequence[Reply], place: str) -> History:
    """The replies to `history_commands`. Raises StoreError for a server that names no life."""
    marker, info = (text(one(reply, f"{place} history")) or "" for reply in replies)
    found = re.search(r"^master_replid:(\w+)", info, re.MULTILINE)
    if found is None:
        raise StoreError(
            f"{place} history",
            required="master_replid in INFO replication",
            got=info[:60],
            do="use Valkey or Redis from version 5 on",
        )
    return History(marker, found[1])


def check_same(replies: Sequence[Reply], config: StoreConfig, known: History) -> None:
    """The replies to `history_commands`. Raises HistoryError where they name another history."""
    found = parse_history(replies, config.place)
    check_history(str(known), str(found) if found.marker else "no marker", config.place)


def check_confirmed(replies: Sequence[Reply], config: StoreConfig, history: History) -> None:
    """The replies of CONFIRM and WAITAOF. Raises what `RowStore.confirm` says."""
    where = f"{config.place} confirm"
    checked, waited = replies
    if (code := integer(one(checked, where), where)) != 0:
        raise other_history(config.place, str(history), ("another life", "no marker")[code - 1])
    if isinstance(waited, Exception):
        raise StoreError(
            where,
            required="WAITAOF, on a server that keeps an append-only file",
            got=str(waited),
            do="run CONFIG SET appendonly yes (Valkey, or Redis from 7.2 on), or set durability to"
            " answered and know that commits may then pass what a crash leaves",
        )
    own, replicas = waited if isinstance(waited, list) else (0, 0)
    if own < config.disks.own or replicas < config.disks.replicas:
        raise StoreTimeout(
            where,
            required=f"{config.disks} to confirm within {config.confirm_ms} ms",
            got=f"{own} and {replicas}" if isinstance(waited, list) else repr(waited),
            do="see whether appendfsync is everysec or always, how busy the disk is, and whether"
            " every replica is connected and keeps an append-only file",
        )


def parse_facts(reply: Reply) -> ServerFacts:
    """The reply of INFO."""
    lines = (text(reply) or "").splitlines()
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    name = info.get("server_name", "redis")
    version = info.get("valkey_version", info.get("redis_version", "unknown"))
    keyspaces = [value for key, value in info.items() if key.startswith("db")]
    return ServerFacts(
        server=f"{name} {version}",
        maxmemory_policy=info.get("maxmemory_policy", "unknown"),
        appendonly=info.get("aof_enabled") == "1",
        replicas=int(info.get("connected_slaves", 0)),
        loading=info.get("loading") == "1",
        used_memory_bytes=int(info.get("used_memory", 0)),
        keys=sum(int(space.split(",")[0].removeprefix("keys=")) for space in keyspaces),
    )


def as_store_error(error: BaseException, where: str, timeout_ms: int) -> StoreError:
    """The StoreError, or StoreTimeout, that says what a client or server error means."""
    if isinstance(error, StoreError):
        return error
    if isinstance(error, redis_errors.TimeoutError | TimeoutError):
        return StoreTimeout(
            where,
            required=f"an answer within {timeout_ms} ms",
            got=str(error) or "none",
            do="see whether the server is stopped, overloaded or behind a slow network",
        )
    if isinstance(error, redis_errors.ConnectionError | OSError):
        got = str(error) or type(error).__name__
        return StoreError(where, required="a connection", got=got, do=_remedy(error))
    return StoreError(
        where, required="an answer", got=str(error) or type(error).__name__, do=_remedy(error)
    )


def bad_url(config: StoreConfig, error: ValueError) -> StoreError:
    """A URL that no client can be made of."""
    return StoreError(
        "store.url",
        required="redis://, rediss:// or unix:// with host, port and database",
        got=f"{config.place} ({error})",
        do="for example redis://127.0.0.1:6379/0",
    )


def _remedy(error: BaseException) -> str:
    said = str(error)
    if "WRONGTYPE" in said:
        return "the key holds another type: give encore a store of its own"
    if isinstance(error, redis_errors.OutOfMemoryError) or "OOM" in said:
        return "the server is full: raise its maxmemory"
    if isinstance(error, redis_errors.BusyLoadingError):
        return "the server is loading its files: wait"
    if isinstance(error, redis_errors.ReadOnlyError):
        return "this server is a replica: connect to its master"
    if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError):
        return "check user and password in the store's URL"
    if isinstance(error, redis_errors.ConnectionError | OSError):
        return "start the server or correct the store's URL"
    return ""
