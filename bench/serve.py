"""The ranking service under open-loop load: 500 candidates a request, gRPC and HTTP.

`encore serve` is a process of its own, the store another; requests leave at Poisson times whatever
became of those before them, and latency counts from the intended time. Both protocols carry binary
tensors and take turns at each rate. Where there are two cores the service has one to itself (the
setting `cores`), and client and store the others: they would else take from it what they need for
more requests than it can serve.

`aggregate` answers the tensors that models would read; `rank` scores all 500 with the coarse model
and the best of them with the fine one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from bench.open_loop import NO_REPLY, Measured, arrivals
from bench.report import Cell, Options, Report
from bench.serve_world import (
    CANDIDATES,
    PROTOCOLS,
    Model,
    Prepared,
    Protocol,
    ServeWorld,
    reply_of,
    serve_world,
)

DEADLINE_MS: Final = 200.0
BOUND_MS: Final = 10.0
FINE_LIMIT: Final = 100
OVERLOAD: Final = 5
REQUESTS: Final = 256
#: A service that answers less than this part of what is offered is past its peak.
_SATURATED: Final = 0.8


@dataclass(frozen=True, slots=True)
class Scale:
    """samples: at least so many requests a rate. tail: the percentile that they can tell.
    rates: climb while the service keeps up, each for `seconds` at least. at: the steady one of
    them, by model, with `steady` requests. rounds: so often an overload follows the best rate
    again, each for `overload_s`."""

    samples: int
    seconds: float
    steady: int
    tail: float
    at: dict[Model, float]
    rates: dict[Model, tuple[float, ...]]
    rounds: int
    overload_s: float


QUICK: Final = Scale(
    samples=400,
    seconds=1.0,
    steady=400,
    tail=95,
    at={"aggregate": 200, "rank": 200},
    rates={"aggregate": (200, 1_100, 1_700), "rank": (200, 800)},
    rounds=1,
    overload_s=1.25,
)
FULL: Final = Scale(
    samples=2_000,
    seconds=2.0,
    steady=5_500,
    tail=99,
    at={"aggregate": 200, "rank": 100},
    rates={
        "aggregate": (200, 400, 600, 800, 1_000, 1_200, 1_400, 1_700, 2_000, 2_500),
        "rank": (100, 200, 300, 400, 500, 600, 700, 850, 1_000, 1_200),
    },
    rounds=3,
    overload_s=2.0,
)


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one rate. whole: replies in time that are not degraded, a second. refused,
    degraded: parts of the requests. late: replies after the deadline, counted from when the request
    left, and requests without one, which are `unanswered`. cpu_us: of the service's processor, a
    request."""

    rate: float
    p50_ms: float
    tail_ms: float
    p999_ms: float | None
    whole: float
    refused: float
    degraded: float
    unanswered: int
    late: int
    latest_ms: float
    generator_ms: float
    cpu_us: float
    n: int

    @property
    def keeps_up(self) -> bool:
        """It answered most of what was offered."""
        return self.whole >= _SATURATED * self.rate


@dataclass(frozen=True, slots=True)
class Climb:
    """One protocol and model at all rates, and under OVERLOAD × its best.

    rounds: the best rate, and right behind it the overload.
    """

    steps: tuple[Step, ...]
    rounds: tuple[tuple[Step, Step], ...]

    @property
    def peak(self) -> float:
        """Most whole replies a second."""
        return max(step.whole for step in self.steps)

    @property
    def kept(self) -> float:
        """Part of the peak that is left under overload: the median of the rounds, since the machine
        is faster in one minute than in another."""
        return float(np.median([over.whole / max(best.whole, 1.0) for best, over in self.rounds]))

    @property
    def unanswered(self) -> int:
        """Requests that got neither a reply nor a refusal, in all steps."""
        return sum(step.unanswered for step in (*self.steps, *sum(self.rounds, ())))

    @property
    def late(self) -> int:
        """Late replies under overload, in all rounds."""
        return sum(over.late for _, over in self.rounds)


def run(options: Options) -> Report:
    """Raises LocalError, StoreError when the servers do not come up."""
    scale = QUICK if options.quick else FULL
    report = Report()
    climbs: dict[tuple[Protocol, Model], Climb] = {}
    with serve_world(FINE_LIMIT) as world:
        requests = world.workload.requests(REQUESTS, CANDIDATES, seed=options.seed)
        for model in scale.rates:
            prepared = {
                each: world.prepare(each, model, requests, DEADLINE_MS) for each in PROTOCOLS
            }
            for each in prepared.values():
                _measure(world, each, 100, 50, seed=0)  # warm
            found = _climb(world, prepared, scale, options)
            climbs |= {(protocol, model): climb for protocol, climb in found.items()}
            stages = world.stage_ms(model)
            report.line |= {f"stages_ms_{model}": _means(stages)}
        report.line |= {"cached": world.hit_share()}
    _describe(report, climbs, scale)
    report.line |= _keys(climbs, scale)
    check(report, climbs)
    return report


def check(report: Report, climbs: Mapping[tuple[Protocol, Model], Climb]) -> None:
    """What must hold: every request gets a reply or a refusal, however late."""
    for (protocol, model), climb in climbs.items():
        silent = f"{model} over {protocol}: {climb.unanswered} requests got no answer at all"
        report.check(not climb.unanswered, silent)


def _climb(
    world: ServeWorld, prepared: dict[Protocol, Prepared], scale: Scale, options: Options
) -> dict[Protocol, Climb]:
    steps: dict[Protocol, list[Step]] = {protocol: [] for protocol in prepared}
    model = prepared["grpc"].model
    for at, rate in enumerate(scale.rates[model]):
        for protocol, each in prepared.items():
            steady = rate == scale.at[model]
            if steps[protocol] and not steps[protocol][-1].keeps_up and not steady:
                continue
            n = max(scale.steady if steady else scale.samples, int(scale.seconds * rate))
            step = _measure(world, each, rate, n, options.seed + at, scale.tail)
            steps[protocol].append(step)
            options.say(f"{model} {protocol} {rate:g}/s: {step.tail_ms:.1f} ms, {step.whole:.0f}/s")
    rounds: dict[Protocol, list[tuple[Step, Step]]] = {protocol: [] for protocol in prepared}
    for number in range(scale.rounds):
        for protocol, each in prepared.items():
            best = max(steps[protocol], key=lambda step: step.whole)
            pair = [
                _measure(world, each, rate, int(rate * scale.overload_s), number, scale.tail)
                for rate in (best.rate, OVERLOAD * max(best.whole, 1.0))
            ]
            rounds[protocol].append((pair[0], pair[1]))
            options.say(f"{model} {protocol} {pair[1].rate:g}/s: {pair[1].whole:.0f}/s")
    return {each: Climb(tuple(steps[each]), tuple(rounds[each])) for each in prepared}


def _measure(
    world: ServeWorld, prepared: Prepared, rate: float, n: int, seed: int, tail: float = 99
) -> Step:
    """About n requests at a rate."""
    time.sleep(DEADLINE_MS / 1000)  # whatever came before is answered or given up
    before_s, seconds = world.cpu_s(), n / rate
    measured = prepared.drive(arrivals(rate, seconds, seed))
    return _judge(measured, prepared.protocol, (rate, seconds, tail), world.cpu_s() - before_s)


def _judge(
    measured: Measured, protocol: Protocol, load: tuple[float, float, float], cpu_s: float
) -> Step:
    rate, seconds, tail = load
    n = len(measured.answers)
    replies = [reply_of(protocol, answer) for answer in measured.answers]
    status = measured.status  # (n,)
    degraded = np.array([bool(reply.degraded) for reply in replies])  # (n,)
    since_sent_ms = (measured.latency_s - measured.late_s) * 1e3  # (n,)
    in_time = since_sent_ms <= DEADLINE_MS  # (n,)
    answered = status != NO_REPLY
    rare = int(0.001 * n) >= 5
    return Step(
        rate=rate,
        p50_ms=measured.percentile_ms(50),
        tail_ms=measured.percentile_ms(tail),
        p999_ms=measured.percentile_ms(99.9) if rare else None,
        whole=float(((status == 200) & ~degraded & in_time).sum()) / seconds,
        refused=float(np.isin(status, (503, 504)).mean()),
        degraded=float(degraded.mean()),
        unanswered=int((~answered).sum()),
        late=int((~in_time).sum()),
        latest_ms=float(since_sent_ms[answered].max(initial=0.0)),
        generator_ms=float(np.percentile(measured.late_s, tail)) * 1e3,
        cpu_us=cpu_s / n * 1e6,
        n=n,
    )


def rate_at(steps: Sequence[Step], bound_ms: float) -> float | None:
    """The rate at which the tail passes the bound, between the last rate below it and the next one
    above, on a line through the logarithms of their tails; None where no rate passes it, 0 where
    the first does."""
    below: Step | None = None
    for step in sorted(steps, key=lambda step: step.rate):
        if step.tail_ms <= bound_ms:
            below = step
        elif below is None:
            return 0.0
        elif not np.isfinite(step.tail_ms):
            return below.rate
        else:
            part = np.log(bound_ms / below.tail_ms) / np.log(step.tail_ms / below.tail_ms)
            return float(below.rate + part * (step.rate - below.rate))
    return None


def _means(stages: dict[str, tuple[float, float]]) -> dict[str, float]:
    return {stage: ms / count for stage, (count, ms) in stages.items() if count}


# --- what is told -----------------------------------------------------------------------------


def _keys(climbs: dict[tuple[Protocol, Model], Climb], scale: Scale) -> dict[str, Any]:
    def of(protocol: Protocol, model: Model) -> dict[str, Any]:
        climb = climbs[protocol, model]
        steady = next(step for step in climb.steps if step.rate == scale.at[model])
        tail = f"p{scale.tail:g}"
        return {
            "rate": steady.rate,
            "p50_ms": steady.p50_ms,
            "p99_ms": None,  # too few samples for it in `--quick`, which tells a p95
            "rate_at_p99_10ms": None,
            f"{tail}_ms": steady.tail_ms,
            "p999_ms": steady.p999_ms,
            f"rate_at_{tail}_10ms": rate_at(climb.steps, BOUND_MS),
            "peak_per_s": climb.peak,
            "overload_goodput": climb.kept,
            "late_replies": climb.late,
            "steps": {str(step.rate): [step.p50_ms, step.tail_ms] for step in climb.steps},
        }

    return {
        "candidates": CANDIDATES,
        "deadline_ms": DEADLINE_MS,
        **{protocol: of(protocol, "aggregate") for protocol in PROTOCOLS},
        "rank": {protocol: of(protocol, "rank") for protocol in PROTOCOLS},
        "overload_goodput": min(climb.kept for climb in climbs.values()),
        "late_replies": sum(climb.late for climb in climbs.values()),
        "unanswered": sum(climb.unanswered for climb in climbs.values()),
    }


def _describe(report: Report, climbs: dict[tuple[Protocol, Model], Climb], scale: Scale) -> None:
    tail = f"p{scale.tail:g}"
    head = ["a second", "requests", "p50", tail, "p99.9", "whole/s", "refused", "degraded", "late"]
    head += ["latest", f"client {tail}", "CPU µs"]
    for (protocol, model), climb in climbs.items():
        rows = [_row(f"{step.rate:,.0f}", step) for step in climb.steps]
        for best, over in climb.rounds:
            rows.append(_row(f"again {best.rate:,.0f}", best))
            rows.append(_row(f"{OVERLOAD} × peak: {over.rate:,.0f}", over))
        report.table(f"{model} over {protocol}, ms", head, rows)
    report.note("")
    for (protocol, model), climb in climbs.items():
        passes = rate_at(climb.steps, BOUND_MS)
        told = "at no rate that was tried" if passes is None else f"at {passes:,.0f}/s"
        report.note(
            f"{model} over {protocol}: {tail} passes {BOUND_MS:g} ms {told}; "
            f"at most {climb.peak:,.0f} whole replies a second, at {OVERLOAD} × {climb.kept:.0%}."
        )
    report.note(
        f"{CANDIDATES} candidates, deadline {DEADLINE_MS:g} ms, binary tensors; `rank` scores the "
        f"best {FINE_LIMIT} with the fine model. Whole: in time and not degraded. Late: after the "
        "deadline, from when the request left. Client: how much later than meant requests left. "
        "CPU: of the service, a request. Where there are two cores the service has one to itself, "
        "and client and store the others. "
        f"{report.line['cached']:.1%} of the candidates came from the item cache."
    )


def _row(title: str, step: Step) -> list[Cell]:
    return [
        title,
        step.n,
        step.p50_ms,
        step.tail_ms,
        step.p999_ms,
        step.whole,
        f"{step.refused:.1%}",
        f"{step.degraded:.1%}",
        step.late,
        step.latest_ms,
        step.generator_ms,
        step.cpu_us,
    ]
