"""One Faust application: topics in, lists of records to a handler, an exit code out.

The process ends, with a reason in the log, for anything that its handler does not settle itself:
restarted, it goes on from what is stored. SIGTERM, SIGINT and SIGHUP drain: nothing more is
fetched, what was handed over is finished, the handler flushes, positions are committed, the exit
code is 0.
Before anything was handed over there is nothing to finish, and they end the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import faust
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from yarl import URL

from schemas.errors import EncoreError, MovedError, StreamError, TooLargeError
from store.cores import pinned
from streams.config import StreamConfig
from streams.leaving import LEAVE_UNBEGUN_S, Leaving, StoppedError, told_to_stop, unless
from streams.producer import MAX_MADE_BYTES
from streams.transport import ListTransport, Marks
from streams.watchdog import Sight, Waits, Watchdog

log = logging.getLogger("encore.streams")

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
#: Of the producer, and of a broker whose topic takes less.
TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
#: Never of a process: its next application goes on with another topic.
EXIT_MOVED: Final = 3
DRAIN_S: Final = 20.0
STOP_S: Final = 10.0
#: For how long the consumer's thread waits while the event loop folds; Python's own 5 ms, at each
#: of the many reads that a fetch takes, would leave the loop without records.
SWITCH_S: Final = 0.001
#: Objects made before the collector looks at the young ones; how often it looks at older ones.
GC_THRESHOLDS: Final = (50_000, 20, 20)
CORE_SETTING: Final = "stream_core"


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records of one partition in offset order, at least one.

    generation: of the consumer group when they were fetched.
    """

    tp: TP
    records: tuple[ConsumerRecord, ...]
    generation: int = 0

    @property
    def next_offset(self) -> int:
        """The offset after the last record."""
        return int(self.records[-1].offset) + 1


class Sender(Protocol):
    """Sends one record and returns once the broker has confirmed it."""

    async def __call__(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: dict[str, bytes],
        partition: int | None = None,
    ) -> None:
        """partition: None leaves it to Kafka's default partitioner.

        Raises TooLargeError for a record that is too large, StreamError where the broker does not
        confirm.
        """
        ...


class Handler(Protocol):
    """What a stream process does with its records. One task calls it; never two calls at once."""

    async def open(self, send: Sender, marks: Marks) -> None:
        """Called once, before anything is read."""
        ...

    async def start_at(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Where to read each newly assigned partition from; one left out: its commit."""
        ...

    async def handle(self, lists: list[Fetched]) -> None:
        """Take the records; advance the marks once they are stored (now, or in a later call).

        What it raises ends the process.
        """
        ...

    async def idle(self) -> None:
        """Called when nothing came for `idle_s`."""
        ...

    async def close(self) -> None:
        """The last call of a drain: store what is held back."""
        ...


def run_app(config: StreamConfig, group: str, topics: Iterable[str], handler: Handler) -> int:
    """Run until a signal (exit code 0) or a failure (1). Blocking."""

    async def make() -> StreamApp:
        return StreamApp(config, group, tuple(topics), handler)

    return run_apps(make, config.core)


def run_apps(make: Callable[[], Coroutine[Any, Any, StreamApp]], core: int | None = None) -> int:
    """The same with one application after the other, each until its handler raises MovedError.

    make: the next one; what it raises ends the process. core: which the process runs on.
    """

    async def run() -> int:
        told, code = told_to_stop(), EXIT_MOVED
        while code == EXIT_MOVED and not told.is_set():
            try:
                app = await unless(told, make())
            except StoppedError:
                left.enter_context(Leaving()).begin(EXIT_OK, LEAVE_UNBEGUN_S)
                log.info("told to stop before the servers had answered")
                return EXIT_OK
            except EncoreError as error:
                log.error("ended: %s", error, extra={"error": error.parts()})
                return EXIT_FAILED
            left.enter_context(app.leaving)
            code = await app.run(told)
            if code == EXIT_MOVED:
                left.close()
        return EXIT_OK if code == EXIT_MOVED else code

    with tuned_interpreter(), pinned(core, CORE_SETTING), ExitStack() as left:
        return asyncio.run(run())


@contextmanager
def tuned_interpreter() -> Iterator[None]:
    """The interpreter set up for a stream: records by the ten thousand, and a consumer's thread.

    What is loaded by now is no garbage and is not looked through again. Records and rows are freed
    when the last one lets go of them, so hardly anything is left for the collector.
    """
    before = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    sys.setswitchinterval(SWITCH_S)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before[0])
        sys.setswitchinterval(before[1])


class TablelessApp(faust.App):
    """Faust without tables keeps nothing on disk, so it makes no directories for them."""

    def _create_directories(self) -> None:
        """Faust would make `GROUP-data/v1/tables` in the working directory."""


class StreamApp:
    """The life of one stream process."""

    idle_s: float = 0.2

    def __init__(
        self, config: StreamConfig, group: str, topics: tuple[str, ...], handler: Handler
    ) -> None:
        self._config = config
        self._handler = handler
        self._topics = topics
        self._group = group
        self._marks = Marks()
        self._inbox: asyncio.Queue[Fetched] = asyncio.Queue(config.inbox_lists)
        self._stop = asyncio.Event()
        self._waits_for = Waits.SERVERS
        self._busy = asyncio.Lock()  # the handler is called by one task at a time
        self._draining = False
        self._standing: dict[TP, int] = {}  # what comes next in each partition, for the watchdog
        self._failure: asyncio.Future[None]
        self.leaving = Leaving()

    async def run(self, told: asyncio.Event) -> int:
        """Returns the exit code. told: set by the signals that ask for an end."""
        config, group = self._config, self._group
        self._stop = told
        self._loop = loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        app = self._faust_app()
        within_s = None
        with Watchdog(config, self._sight(app), self._stuck, time.monotonic):
            try:
                code = await self._live(app)
                # Of a topic that has ended nobody needs the partitions at once.
                app.transport.leaves_group = code == EXIT_OK
            except StoppedError:
                log.info("%s: told to stop before anything was read", group)
                code, within_s = EXIT_OK, LEAVE_UNBEGUN_S
            except EncoreError as error:
                log.error("%s: ended: %s", group, error, extra={"error": error.parts()})
                code = EXIT_FAILED
            except Exception:
                log.exception("%s: ended by an unforeseen error", group)
                code = EXIT_FAILED
        self.leaving.begin(EXIT_FAILED if code == EXIT_MOVED else code, within_s)
        await self._shut(app)
        return code

    async def _live(self, app: Any) -> int:
        """From the first question to the last commit but Faust's own. Returns the exit code."""
        await self._begin(app)
        log.info("%s: reading %s", self._group, ", ".join(self._topics))
        code = EXIT_OK
        try:
            await self._work(app)
        except MovedError as moved:
            log.info("%s: %s", self._group, moved)
            code = EXIT_MOVED
        await self._drain()
        log.info("%s: drained", self._group)
        return code

    async def _begin(self, app: Any) -> None:
        """Until partitions were given, none of them included: a group may have more members.

        Raises StoppedError; what the watchdog found; what the handler or Faust raised.
        """

        async def start() -> None:
            await self._handler.open(self._sender(app), self._marks)
            self._waits_for = Waits.GROUP
            await app.start()
            self._waits_for = Waits.NOTHING

        begun = asyncio.ensure_future(unless(self._stop, start()))
        try:
            await asyncio.wait({begun, self._failure}, return_when=asyncio.FIRST_COMPLETED)
            await (begun if begun.done() else self._failure)
        finally:
            begun.cancel()

    def _sight(self, app: Any) -> Sight:
        """What the watchdog's thread sees of this process."""
        return Sight(
            self._group,
            lambda: dict(self._standing),
            lambda: self._waits_for,
            app.transport.membership,
        )

    # --- Faust ------------------------------------------------------------------------------

    def _faust_app(self) -> Any:
        config = self._config
        brokers = [URL(f"kafka://{place}") for place in config.bootstrap.split(",")]
        app = TablelessApp(
            self._group,
            broker=brokers,
            autodiscover=False,
            web_enabled=False,  # it binds every interface
            topic_allow_declare=False,
            topic_disable_leader=True,
            broker_session_timeout=config.session_timeout_s,
            broker_heartbeat_interval=config.session_timeout_s / 3,
            broker_commit_interval=config.commit_interval_s,
            broker_max_poll_records=5_000,
            consumer_auto_offset_reset="earliest",
            producer_acks=-1,
            producer_linger=0.0,
            producer_max_request_size=MAX_MADE_BYTES,
            stream_wait_empty=True,  # a rebalance commits before it gives partitions away
        )
        transport = ListTransport(brokers, app)
        transport.configure(config.fetch_wait_ms, self._marks, self._start_at)
        app.transport = transport
        # acks=False: Faust keeps no books of acks, the marks decide (see streams/transport.py).
        channel = app.topic(
            *self._topics,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            acks=False,
        )
        app.agent(channel, concurrency=1, name=f"{self._group}.agent")(self._agent)
        app.finalize()
        return app

    async def _start_at(self, tps: frozenset[TP]) -> dict[TP, int]:
        """Faust asks after each assignment; lists of earlier generations are dropped from now."""
        async with self._busy:
            places = await self._handler.start_at(tps)
            self._standing = dict(places)
            return places

    async def _agent(self, stream: Any) -> None:
        """Faust's part: put each fetched list into the inbox, which holds back when it is full.

        Faust would start a failed agent again behind the list it failed on; here it ends the
        process. Cancellation is how a rebalance stops an agent.
        """
        try:
            async for event in stream.noack().events():
                message = event.message
                await self._inbox.put(Fetched(message.tp, message.value, message.generation_id))
        except Exception as error:
            if not self._failure.done():
                self._failure.set_exception(
                    StreamError(f"group {self._group}", required="a running agent", got=repr(error))
                )
            raise

    @staticmethod
    def _sender(app: Any) -> Sender:
        async def send(
            topic: str,
            key: bytes | None,
            value: bytes | None,
            headers: dict[str, bytes],
            partition: int | None = None,
        ) -> None:
            try:
                await app.producer.send_and_wait(topic, key, value, partition, None, headers)
            except Exception as error:
                if isinstance(error.__cause__ or error, TOO_LARGE):  # Faust wraps the producer's
                    raise TooLargeError(
                        f"topic {topic}",
                        required=f"a record that it takes, of {MAX_MADE_BYTES >> 20} MB at most",
                        got=f"{len(value or b'')} bytes",
                        do=f"set its max.message.bytes to {MAX_MADE_BYTES}, then start this again",
                    ) from error
                raise StreamError(
                    f"topic {topic}", required="a confirmed record", got=repr(error)
                ) from error

        return send

    def _stuck(self, error: StreamError) -> None:
        """Called by the watchdog's thread."""

        def fail() -> None:
            if not self._failure.done():
                self._failure.set_exception(error)

        self._loop.call_soon_threadsafe(fail)

    # --- work -------------------------------------------------------------------------------

    async def _work(self, app: Any) -> None:
        """Hand lists over until told to stop; raises what the handler or Faust raised."""
        pump = asyncio.create_task(self._pump(app))
        stop = asyncio.create_task(self._stop.wait())
        ended = asyncio.create_task(app.wait_until_stopped())
        every = {pump, stop, ended, self._failure}
        try:
            await asyncio.wait(every, return_when=asyncio.FIRST_COMPLETED)
            for failed in (pump, self._failure):
                if failed.done():
                    await failed
            if not stop.done():
                raise StreamError(
                    f"group {self._group}",
                    required="a running consumer",
                    got=f"Faust ended: {app.crash_reason!r}",
                ) from app.crash_reason
            self._draining = True
            await self._in_time(pump)
        finally:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)

    async def _pump(self, app: Any) -> None:
        """Take all that waits, give it to the handler, again and again."""
        while not (self._draining and self._inbox.empty()):
            waiting: list[Fetched] = []
            with contextlib.suppress(TimeoutError):
                waiting.append(await asyncio.wait_for(self._inbox.get(), self.idle_s))
            while not self._inbox.empty():
                waiting.append(self._inbox.get_nowait())
            async with self._busy:
                # What was fetched before a rebalance is read again from where it began.
                current = app.consumer_generation_id
                lists = [each for each in waiting if each.generation == current]
                if lists:
                    await self._handler.handle(lists)
                    self._standing |= {each.tp: each.next_offset for each in lists}
                else:
                    await self._handler.idle()

    async def _drain(self) -> None:
        await self._in_time(self._handler.close())

    async def _in_time(self, last: Awaitable[None]) -> None:
        """A step of the drain. Raises StreamError where a server holds it up for longer."""
        try:
            await asyncio.wait_for(last, DRAIN_S)
        except TimeoutError as error:
            raise StreamError(
                f"group {self._group}",
                required=f"a store and a broker that take what was in hand within {DRAIN_S:g} s",
                got="no end of it after it was told to stop",
                do="start it again once they answer: it goes on from what is stored",
            ) from error

    async def _shut(self, app: Any) -> None:
        """Stop Faust, which commits the marks; never longer than STOP_S."""
        app.rebalancing = False  # else the fetcher, cancelled, reports a crash instead of ending
        try:
            await asyncio.wait_for(app.stop(), STOP_S)
        except Exception as error:
            log.warning("%s: Faust did not stop cleanly: %r", self._group, error)
