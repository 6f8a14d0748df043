"""An event loop without time or threads, and the operations that its scheduler lets through.

Whatever code under test asks of the outside (a store, a broker, a thread) becomes an `Op` that
waits until the driver settles it, in whatever order the driver likes, well or badly. Between two
settled operations the loop runs until nothing can go on. So one seed is one history.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple, cast

from schemas.errors import EncoreError

#: Whose code is running: what it asks for, and each task it makes, belongs to that owner.
OWNER: ContextVar[str] = ContextVar("owner")

Task = asyncio.Task[Any]
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class SimulationError(AssertionError):
    """The code under test broke a rule. rule: its name."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


@dataclass(eq=False)
class Op:
    """One operation on its way. run: does it, at one instant. fault: makes the error of a failure;
    None where it cannot fail. part: does a part of it, as a server that dies in between would."""

    owner: str
    label: str
    run: Callable[[], Any]
    future: asyncio.Future[Any]
    fault: Callable[[str], EncoreError] | None = None
    part: Callable[[], Any] | None = None

    def settle(self, how: str = "done") -> Callable[[], None]:
        """Do it; what comes back lets its owner hear of it.

        how: done; refused (an error, nothing done); unheard (done, then an error); part.
        """
        error: EncoreError | None = self.fault(how) if self.fault and how != "done" else None
        result = None
        try:
            if how == "part" and self.part is not None:
                self.part()
            elif how != "refused" or self.fault is None:
                result = self.run()
        except EncoreError as raised:
            error = raised
        return partial(self._hear, result, error)

    def _hear(self, result: Any, error: EncoreError | None) -> None:
        if self.future.done():  # cancelled, or its owner is dead
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class VirtualLoop(asyncio.BaseEventLoop):
    """Its clock stands still until `advance`; nothing blocks."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self._now_s = 0.0
        self._wait_s: float | None = None
        self.pending: list[Op] = []
        self.tasks: dict[Task, str] = {}
        self.dead: set[str] = set()
        self.set_task_factory(cast(Any, self._new_task))

    # --- what BaseEventLoop asks for ----------------------------------------------------------

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now_s

    def select(self, timeout: float | None) -> list[Any]:
        """Nothing can go on but a timer: give control back to the driver."""
        if timeout is None or timeout > 0:
            self._wait_s = timeout
            self.stop()
        return []

    def close(self) -> None:
        """There is no selector to close."""
        self._selector = None  # type: ignore[assignment]
        super().close()

    def _process_events(self, event_list: list[Any]) -> None:
        return

    def _write_to_self(self) -> None:
        return

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        """A thread is one more operation on its way."""
        return self.ask("thread", lambda: func(*args))

    def _new_task(self, loop: Any, coro: Coroutine[Any, Any, Any], **options: Any) -> Task:
        task: Task = asyncio.Task(coro, loop=self, **options)
        self.tasks[task] = OWNER.get("")
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: Task) -> None:
        del self.tasks[task]
        if not task.cancelled():
            task.exception()  # whoever made the task looks at it, or ends

    # --- the driver's side --------------------------------------------------------------------

    def ask(
        self,
        label: str,
        run: Callable[[], Any],
        fault: Callable[[str], EncoreError] | None = None,
        part: Callable[[], Any] | None = None,
    ) -> asyncio.Future[Any]:
        """An operation of the owner whose code is running."""
        owner = OWNER.get("")
        if owner in self.dead:
            raise asyncio.CancelledError
        op = Op(owner, label, run, self.create_future(), fault, part)
        self.pending.append(op)
        return op.future

    def settle(self) -> None:
        """Run until nothing can go on."""
        self.run_forever()

    def advance(self, most_s: float) -> None:
        """Let time pass: up to the next timer, at most that long."""
        self.settle()
        self._now_s += most_s if self._wait_s is None else min(most_s, self._wait_s)
        self.settle()

    def kill(self, owner: str) -> None:
        """None of the owner's code runs again. What it asked for stays on its way."""
        self.dead.add(owner)
        for task in [task for task, whose in self.tasks.items() if whose == owner]:
            task.cancel()
        self.settle()
