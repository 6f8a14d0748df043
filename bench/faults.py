"""The store goes wrong under load: is every request answered in time, and does every reply say how
good it is?

`encore serve` reads its store over a wire that can fail (`bench.fault_wire`). Requests leave at
Poisson times before, during and after each fault. A fault is held when

    in time     every request has its reply, or its refusal, within its deadline, from when it left
    honest      while the store is away every reply says so, by `degraded` and by the status of each
                row; and no reply has a row that was not read without saying why
    right       every whole reply is the reply that the same request gets from an undisturbed
                service: nothing read for one request reaches another
    back        every request that leaves `BACK_S` or later after the store's return has its rows

A busy machine costs scores or gets refusals (`deadline`, `fine_skipped`, 503): those are counted as
hurried, and are no fault of the store's.
"""

from __future__ import annotations

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.fault_wire import FaultWire, fault_wire
from bench.open_loop import F64, NO_REPLY, Answer, Measured, arrivals
from bench.report import Options, Report
from bench.serve_world import CANDIDATES, Prepared, world_over
from encore.local import Server, start_store
from schemas.errors import LocalError

DEADLINE_MS: Final = 500.0
BACK_S: Final = 2.0
BEFORE_S: Final = 0.5
RATE: Final = 20.0
REQUESTS: Final = 32
UNDISTURBED_S: Final = 0.06  # from one of them to the next
FINE_LIMIT: Final = 100
HOLD_S: Final = 0.6  # a slow reply: more than a request has
#: What every row is while the store is away, and what replies then say.
AWAY: Final = frozenset(("TIMEOUT", "STORE_ERROR"))
LACKS_ROWS: Final = frozenset(("store_timeout", "store_error"))


class Store:
    """A store and the wire to it, to be broken and mended from the main thread."""

    def __init__(self, directory: Path, server: Server, wire: FaultWire) -> None:
        self._directory, self.server, self.wire = directory, server, wire

    def kill(self) -> None:
        """SIGKILL."""
        self.server.child.kill()

    def restart(self) -> None:
        """On its port, from its append-only file; returns once it answers."""
        self.server = start_store(self._directory, port=self.server.port)

    def stop(self) -> None:
        """SIGSTOP: the kernel still takes connections and bytes, nobody answers."""
        self.server.child.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.server.child.signal(signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Fault:
    """name: for people. strike, mend: what breaks the store, and what brings it back."""

    name: str
    strike: Callable[[Store], None]
    mend: Callable[[Store], None]


def _set(mode: str) -> Callable[[Store], None]:
    return lambda store: setattr(store.wire, "mode", mode)


FAULTS: Final = (
    Fault("killed", Store.kill, Store.restart),
    Fault("stopped", Store.stop, Store.go_on),
    Fault("slow", _set("slow"), _set("pass")),
    Fault("half-open", _set("swallow"), _set("pass")),
    Fault("torn replies", _set("tear"), _set("pass")),
)


@dataclass(frozen=True, slots=True)
class Spell:
    """How long the store is away, and how long requests go on once all must have their rows."""

    away_s: float
    after_s: float


QUICK: Final = Spell(1.2, 0.8)
FULL: Final = Spell(6.0, 1.5)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of what must be 0, and figures. unanswered, late: requests. lying: replies that do not
    say what was. wrong: whole replies with another page. back_s: from the store's return until the
    last request left that went without rows. without, hurried: requests without rows, and others
    that were refused or not scored in full."""

    name: str
    n: int
    without: int
    hurried: int
    unanswered: int
    late: int
    lying: int
    wrong: int
    back_s: float
    p50_ms: float
    latest_ms: float

    @property
    def held(self) -> bool:
        """Nothing went wrong."""
        return not (self.unanswered or self.late or self.lying or self.wrong) and (
            self.back_s <= BACK_S
        )


@dataclass(frozen=True, slots=True)
class Said:
    """A reply: how degraded, which statuses, and its tensors' bytes."""

    degraded: frozenset[str]
    statuses: frozenset[str]
    page: bytes

    @property
    def lacks_rows(self) -> bool:
        """It says that the store gave it none."""
        return bool(self.degraded & LACKS_ROWS)

    def lies(self, away: bool) -> bool:
        """Whether it hides something. away: the store was, from beginning to end."""
        late = "deadline" in self.degraded
        if away and not ((self.lacks_rows or late) and self.statuses <= AWAY):
            return True
        return bool(self.statuses & AWAY) and not (self.lacks_rows or late)


def run(options: Options) -> Report:
    """Raises LocalError, StoreError when the servers do not come up."""
    spell = QUICK if options.quick else FULL
    outcomes = []
    with _broken_world() as (store, prepared):
        pages = _undisturbed(prepared)
        for number, fault in enumerate(FAULTS):
            outcome = _try(store, prepared, fault, (spell, options.seed + number), pages)
            options.say(f"{fault.name}: {'held' if outcome.held else outcome}")
            outcomes.append(outcome)
    report = Report()
    _describe(report, outcomes, spell.away_s)
    report.line.update(_keys(outcomes))
    check(report, outcomes)
    return report


def check(report: Report, outcomes: list[Outcome]) -> None:
    """What must hold: each fault is."""
    for outcome in outcomes:
        report.check(outcome.held, f"the store {outcome.name}: not held")


@contextmanager
def _broken_world() -> Iterator[tuple[Store, Prepared]]:
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        server = start_store(Path(directory))
        store: Store | None = None
        try:
            with (
                fault_wire(server.port, HOLD_S) as wire,
                world_over(server.port, wire.port, FINE_LIMIT) as world,
            ):
                store = Store(Path(directory), server, wire)
                requests = world.workload.requests(REQUESTS, CANDIDATES, seed=1)
                yield store, world.prepare("http", "rank", requests, DEADLINE_MS)
        finally:
            (store.server if store is not None else server).child.kill()


def _undisturbed(prepared: Prepared) -> list[bytes]:
    """The page of each request, (REQUESTS,), asked for one after the other until all are whole."""
    for _ in range(5):
        measured = prepared.drive(np.arange(REQUESTS, dtype=np.float64) * UNDISTURBED_S)
        said = [_said(answer) for answer in measured.answers]
        if all(each is not None and not each.degraded for each in said):
            return [each.page for each in said if each is not None]
    raise LocalError(
        "bench.faults",
        required="whole replies before anything is broken",
        got=", ".join(sorted({reason for each in said if each for reason in each.degraded})),
        do="run it on a machine with less to do",
    )


class _Load(threading.Thread):
    """Drives the service beside the main thread, which starts and ends stores."""

    def __init__(self, prepared: Prepared, times_s: F64) -> None:
        super().__init__(daemon=True)
        self._prepared, self._times_s = prepared, times_s
        self._found: list[Measured] = []

    def run(self) -> None:
        """Once."""
        self._found.append(self._prepared.drive(self._times_s))

    def result(self) -> Measured:
        """Once it is through. Raises LocalError where it broke, which the thread told of."""
        self.join()
        if not self._found:
            raise LocalError("bench.faults", required="a load that is sent", got="a broken client")
        return self._found[0]


def _try(
    store: Store, prepared: Prepared, fault: Fault, chosen: tuple[Spell, int], pages: list[bytes]
) -> Outcome:
    """One fault under load. chosen: how long, and the seed of the arrivals."""
    spell, seed = chosen
    times = arrivals(RATE, BEFORE_S + spell.away_s + BACK_S + spell.after_s, seed)  # (n,)
    load = _Load(prepared, times)
    load.start()
    time.sleep(BEFORE_S)
    struck_s = time.perf_counter()
    fault.strike(store)
    time.sleep(spell.away_s)
    mending_s = time.perf_counter()
    fault.mend(store)
    mended_s = time.perf_counter()
    measured = load.result()
    began_s = measured.began_s  # later than the call: a collection comes first
    moments_s = struck_s - began_s, mending_s - began_s, mended_s - began_s
    return judge(fault.name, measured, moments_s, pages)


def judge(
    name: str, measured: Measured, moments_s: tuple[float, float, float], pages: list[bytes]
) -> Outcome:
    """moments_s: when the store was struck, when mending began and when it was back, on the clock
    of `measured.intended_s`. pages: of request i modulo their number."""
    struck_s, mending_s, mended_s = moments_s
    said = [_said(answer) for answer in measured.answers]
    sent_s = measured.intended_s + measured.late_s  # (n,)
    since_sent_ms = (measured.latency_s - measured.late_s) * 1e3  # (n,)
    answered = measured.status != NO_REPLY  # (n,)
    ended_s = sent_s + since_sent_ms / 1e3  # (n,)
    away = (sent_s > struck_s) & (ended_s < mending_s)  # (n,)
    without = np.array([each is not None and each.lacks_rows for each in said])  # (n,)
    whole = np.array([each is not None and not each.degraded for each in said])  # (n,)
    lying = [each.lies(bool(gone)) for each, gone in zip(said, away, strict=True) if each]
    wrong = [
        each is not None and not each.degraded and each.page != pages[index % len(pages)]
        for index, each in enumerate(said)
    ]
    return Outcome(
        name=name,
        n=len(said),
        without=int(without.sum()),
        hurried=int((~without & ~whole).sum()),
        unanswered=int((~answered).sum()),
        late=int((since_sent_ms > DEADLINE_MS).sum()),
        lying=sum(lying),
        wrong=sum(wrong),
        back_s=_back_s(sent_s, without, mended_s),
        p50_ms=measured.percentile_ms(50),
        latest_ms=float(since_sent_ms[answered].max(initial=0.0)),
    )


def _back_s(sent_s: NDArray[np.float64], without: NDArray[np.bool_], mended_s: float) -> float:
    """From the return until the last request left that went without rows, 0 where none did."""
    lacking = sent_s[without & (sent_s > mended_s)]
    return float(lacking.max() - mended_s) if len(lacking) else 0.0


def _said(answer: Answer) -> Said | None:
    """None for anything but a reply with 200."""
    if answer.status != 200:
        return None
    text = answer.body.decode("latin-1")
    head, end = json.JSONDecoder().raw_decode(text)
    told = head["parameters"]
    statuses = frozenset(each.split("=")[0] for each in told["statuses"].split(",") if each)
    degraded = frozenset(filter(None, told["degraded"].split(",")))
    return Said(degraded, statuses, answer.body[end:])


# --- what is told -----------------------------------------------------------------------------


def _keys(outcomes: list[Outcome]) -> dict[str, object]:
    return {
        "faults": len(outcomes),
        "held": sum(outcome.held for outcome in outcomes),
        "failed": [outcome.name for outcome in outcomes if not outcome.held],
        "deadline_ms": DEADLINE_MS,
        "latest_ms": {outcome.name: outcome.latest_ms for outcome in outcomes},
        "hurried": sum(outcome.hurried for outcome in outcomes),
        "back_s": {outcome.name: outcome.back_s for outcome in outcomes},
    }


def _describe(report: Report, outcomes: list[Outcome], away_s: float) -> None:
    head = ["the store is", "requests", "without rows", "hurried", "unanswered", "late", "lying"]
    head += ["wrong", "p50 ms", "latest ms", "back after s", "held"]
    rows = [
        (
            outcome.name,
            outcome.n,
            outcome.without,
            outcome.hurried,
            outcome.unanswered,
            outcome.late,
            outcome.lying,
            outcome.wrong,
            outcome.p50_ms,
            outcome.latest_ms,
            outcome.back_s,
            "yes" if outcome.held else "NO",
        )
        for outcome in outcomes
    ]
    report.table(f"{RATE:g} requests/s of {CANDIDATES} candidates, away {away_s:g} s", head, rows)
    report.note("")
    report.note(
        f"Deadline {DEADLINE_MS:g} ms. Hurried: refused, or not scored in full, for want of time. "
        "Latest: from when the request left. Back after: from the store's return until the last "
        f"request left that went without rows; {BACK_S:g} s are allowed. Slow: each piece of a "
        f"reply is held for {HOLD_S * 1000:g} ms. Half-open: bytes vanish, connections stay; those "
        "of that time stay dead afterwards. Client, wire, service and store share the cores."
    )
