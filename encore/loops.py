"""An event loop below a command: `asyncio.run`, and interrupted in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, ParamSpec, TypeVar

from encore.signals import Interruption, interruption_here

P = ParamSpec("P")
T = TypeVar("T")


def run(work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a coroutine function in a loop of its own; returns what it returned.

    A signal (`encore.signals`) cancels its task, everything unwinds, threads that it waited for
    have a moment to end, and KeyboardInterrupt is raised whatever came of it. A second signal is
    raised at once, and so is the alarm after `GRACE_S`.
    """
    interruption = interruption_here()
    if interruption is None:
        return asyncio.run(work(*args, **kwargs))
    with interruption.held():
        result = _run(interruption, lambda: work(*args, **kwargs))
    return result


def _run(interruption: Interruption, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    threads = _Threads(interruption)
    try:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_default_executor(threads)
            loop.set_exception_handler(_teller(interruption))
            return runner.run(_cancellable(interruption, work))
    finally:
        threads.end()


async def _cancellable(interruption: Interruption, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def cancel() -> None:
        if not loop.is_closed():
            # Between two callbacks, never within one: asyncio's own may be about to set a result.
            loop.call_soon_threadsafe(task.cancel)

    interruption.cancelled_by(cancel)
    return await work()


def _teller(
    interruption: Interruption,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """The loop's log of exceptions that nobody takes, without the interruption's own."""

    def tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        own = isinstance(context.get("exception"), interruption.error)
        if not (interruption.forced or (interruption.asked and own)):
            loop.default_exception_handler(context)

    return tell


class _Threads(ThreadPoolExecutor):
    """The threads of `asyncio.to_thread`. The loop's end does not wait for them, since nothing
    could interrupt that: `end` does."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._interruption = interruption
        self._begun: set[Future[Any]] = set()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the base's."""
        future = super().submit(fn, *args, **kwargs)
        self._begun.add(future)
        future.add_done_callback(self._begun.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As the base's, and returns at once."""
        cancel_futures |= self._interruption.asked
        super().shutdown(wait=False, cancel_futures=cancel_futures)

    def end(self) -> None:
        """Wait for what they do; a signal ends the wait."""
        self.shutdown()
        wait(list(self._begun))
