"""`encore demo`: the whole job on real data, told as it goes.

    up → load → replay all days but the last → train → swap the models in → replay the last day
    → judge the models on it → rebuild what they saw from the log → down

Nothing is made easier for the occasion: broker, store, worker, service, sinks and training are
those of the other commands, each process on its own. Requests of the first days are answered
without models (`no_model`, the caller's order) and logged; the models learn from that log.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from aggregation.program import ServiceProgram
from audit.join import JoinQuery, LogPaths, join_log
from audit.rebuild import RebuildReport, rebuild
from catalog.materialize import materialize
from encore import demo_text as text
from encore.demo_live import rank_during_swap, served_tensors, wait_archived
from encore.kuairand import Timeline, last_day_ms, load_timeline, write_sources
from encore.lookup import Reading, published_plan, read_features, views_of
from encore.progress import Bars
from encore.replay import ReplayReport, replay
from encore.settings import Settings
from encore.stack import RunningStack, running
from schemas.errors import LocalError
from schemas.plan import Plan
from store.redis_store import RedisRowStore
from training.assess import POPULARITY, AssessConfig, Assessment, assess, load_models
from training.loop import Progress
from training.run import TrainConfig, TrainReport, train

SHARE: Final = 0.045
LAST_DAY_SHARE: Final = 0.3
ROLL_MS: Final = 2_000
SWAP_PAGES: Final = 200
STACK_NOTES: Final = 4  # broker, store, plan, service
JUDGED_TASK: Final = "click"


@dataclass(frozen=True)
class DemoReport:
    """What the demo found. seconds: wall time of the whole. rebuilt: of the last day's log."""

    seconds: float
    trained: TrainReport
    assessed: Assessment
    rebuilt: RebuildReport

    @property
    def failures(self) -> list[str]:
        """What did not hold, one sentence each; empty when all did."""
        found = []
        models = self.assessed.tasks[JUDGED_TASK].models
        floor = models[POPULARITY].auc.value
        for kind in ("fine", "two_tower"):
            reached = models[kind].auc.value
            if not reached > floor:
                found.append(f"{kind}: AUC {reached:.4f} is not above popularity's {floor:.4f}")
        if self.rebuilt.mismatches:
            found.append(f"{len(self.rebuilt.mismatches)} parts rebuilt from the log differ")
        return found


def demo_settings(settings: Settings) -> Settings:
    """The settings of the demo: a directory and ports of its own, a clock that requests may set."""
    return settings.model_copy(
        update={
            "data_dir": settings.data_dir / "demo",
            "spool_dir": None,
            "packages_dir": None,
            "http_port": 0,
            "grpc_port": None,
            "broker_port": 0,
            "store_port": 0,
            "allow_now_ms": True,
            "sink_roll_ms": ROLL_MS,
            # Requests of a replay say what time it is, and read past the cache.
            "item_cache": False,
        }
    )


def run_demo(settings: Settings, kuairand: Path, go_on: Callable[[], None]) -> DemoReport:
    """Run it all in `settings.data_dir`, which is emptied first.

    go_on: called every so often; what it raises ends the demo. Raises EncoreError when a part
    fails. Processes are stopped in any case.
    """
    began = time.monotonic()
    if settings.data_dir.exists():
        shutil.rmtree(settings.data_dir)
    text.heading("Start the stack")
    with _starting(settings) as stack:
        report = _Demo(stack, kuairand, go_on).run(began)
        text.heading("Stop the stack")
    text.end(report.seconds, settings.data_dir, report.failures)
    return report


@contextmanager
def _starting(settings: Settings) -> Iterator[RunningStack]:
    """The running stack; a bar shows that its start goes on."""
    with ExitStack() as stack:
        with Bars() as bars:
            notes = 0

            def note(words: str) -> None:
                nonlocal notes
                notes += 1
                bars.update("starting", notes, STACK_NOTES)
                text.line(words)

            bars.update("starting", 0, STACK_NOTES)
            started = stack.enter_context(running(settings, note=note))
        yield started


class _Demo:
    """The demo against a running stack. answered: rank requests sent so far."""

    def __init__(self, stack: RunningStack, kuairand: Path, go_on: Callable[[], None]) -> None:
        self.settings = stack.settings
        self.stack = stack
        self.kuairand = kuairand
        self.go_on = go_on
        self.answered = 0

    def run(self, began: float) -> DemoReport:
        """All steps in order."""
        with RedisRowStore(self.settings.store_url) as store:
            plan = published_plan(store)
        timeline = self._load(plan)
        split_ms = last_day_ms(timeline.actions)
        early, late, final = split_timeline(timeline, split_ms)
        self._step("Replay all days but the last: actions into rows, requests into the rank log")
        self._replay("replay", early)
        self._archived()
        trained = self._train(plan, split_ms)
        self._swap(trained, early)
        self._step("Replay the last day, ranked by the models")
        last = self._replay("last day", late)
        self._watch_a_row(plan, final)
        self._show_a_page(last)
        self._archived()
        self._step("Judge the models on the last day, and rebuild what they saw")
        assessed = self._assess(plan, trained, split_ms)
        rebuilt = self._rebuild(plan, trained, split_ms)
        return DemoReport(time.monotonic() - began, trained, assessed, rebuilt)

    def _step(self, title: str) -> None:
        """A new step begins."""
        self.go_on()
        self.stack.processes.check()
        text.heading(title)

    @contextmanager
    def _bars(self) -> Iterator[Progress]:
        """Progress bars, as a function (stage, done, total, note)."""
        with Bars() as bars:

            def tell(stage: str, done: int, total: int, note: str) -> None:
                self.go_on()
                bars.update(stage, done, total, note)

            yield tell

    def _load(self, plan: Plan) -> Timeline:
        self._step("Load batch features")
        data_dir = self.settings.data_dir
        write_sources(self.kuairand, data_dir / "sources")
        with RedisRowStore(self.settings.store_url) as store:
            for view in plan.views:
                if view.kind == "batch":
                    text.loaded(materialize(view, data_dir, store))
        timeline = load_timeline(self.kuairand, SHARE, LAST_DAY_SHARE)
        text.timeline(timeline, SHARE, LAST_DAY_SHARE)
        return timeline

    def _replay(self, stage: str, part: Timeline) -> ReplayReport:
        with self._bars() as tell:
            report = replay(self.settings, part, self.stack.url, partial(tell, stage))
        self.answered += report.counts.requests
        text.replayed(report)
        return report

    def _archived(self) -> None:
        """Wait until every answered request is in the Parquet log."""
        with self._bars() as tell:
            wait_archived(
                self.settings,
                self.answered,
                lambda done: tell("archive", done, self.answered, "requests in Parquet"),
            )
        text.archived(self.answered)

    def _train(self, plan: Plan, split_ms: int) -> TrainReport:
        self._step("Train the teacher and the two-tower student from the log, and swap them in")
        config = TrainConfig(
            data_dir=self.settings.data_dir,
            packages=self.settings.packages,
            plan=plan,
            service=self.settings.service,
            trained_ms=time.time_ns() // 1_000_000,
            end_ms=split_ms,
        )
        with self._bars() as tell:
            report = train(config, tell)
        text.trained(report)
        return report

    def _swap(self, trained: TrainReport, early: Timeline) -> None:
        """Rank pages while the service takes the packages over."""
        wanted = {kind: path.name for kind, path in trained.packages.items()}
        with self._bars() as tell:
            swap = rank_during_swap(
                self.stack.url,
                early.pages[-SWAP_PAGES:],
                wanted,
                lambda done, total: tell("swap", done, total, "models taken over"),
            )
        self.answered += swap.answered
        text.swapped(swap)

    def _watch_a_row(self, plan: Plan, final: Timeline) -> None:
        """One user's row before and after the last thing that happens in the log."""
        self._step("One user's row, before and after what happens last")
        action = final.actions[0]
        user, now_ms = int(action["user"]), int(action["time_ms"])
        before = self._row(plan, user, now_ms)
        replay(self.settings, final, None)
        text.row_change(final.actions, before, self._row(plan, user, now_ms))

    def _row(self, plan: Plan, user: int, now_ms: int) -> Reading:
        entities = {"user_id": user}
        views = [view for view in views_of(plan, entities, None) if view.kind == "streamed"]
        with RedisRowStore(self.settings.store_url) as store:
            return read_features(store, views, entities, now_ms)[0]

    def _show_a_page(self, last: ReplayReport) -> None:
        self._step("The last ranked page, and its tensors")
        if last.last is None:
            raise LocalError("demo.replay", required="a ranked page", got="none")
        page, reply = last.last
        text.page(page, reply, served_tensors(self.stack.url, page))

    def _assess(self, plan: Plan, trained: TrainReport, split_ms: int) -> Assessment:
        with self._bars() as tell:
            tell("judge", 0, 1, "both models and popularity, 1,000 resamples of the users")
            assessed = assess(self._assess_config(plan, trained, split_ms))
            tell("judge", 1, 1, f"{assessed.joined.exposed:,} shown candidates")
        text.assessed(assessed, JUDGED_TASK)
        return assessed

    def _assess_config(self, plan: Plan, trained: TrainReport, split_ms: int) -> AssessConfig:
        return AssessConfig(
            data_dir=self.settings.data_dir,
            plan=plan,
            service=self.settings.service,
            packages=trained.packages,
            split_ms=split_ms,
        )

    def _rebuild(self, plan: Plan, trained: TrainReport, split_ms: int) -> RebuildReport:
        """Tensors and scores of the last day's requests again, from the log alone."""
        program = ServiceProgram(plan, self.settings.service)
        query = JoinQuery(self.settings.service, program.service.fingerprint, split_ms)
        with self._bars() as tell:
            tell("rebuild", 0, 1, "tensors and scores from logged values")
            log = join_log(LogPaths.under(self.settings.data_dir), query)
            models = list(load_models(program, trained.packages).values())
            rebuilt = rebuild(log, program, models)
            tell("rebuild", 1, 1, f"{rebuilt.requests:,} requests")
        text.rebuilt(rebuilt)
        return rebuilt


def split_timeline(timeline: Timeline, split_ms: int) -> tuple[Timeline, Timeline, Timeline]:
    """The timeline in three: before `split_ms`; from there on, without the actions of its very
    last moment; those actions."""
    actions = timeline.actions
    cut = int((actions["time_ms"] < split_ms).sum())
    end = int((actions["time_ms"] < actions["time_ms"][-1]).sum())
    early = [page for page in timeline.pages if page.time_ms < split_ms]
    late = timeline.pages[len(early) :]
    return (
        replace(timeline, actions=actions[:cut], pages=early),
        replace(timeline, actions=actions[cut:end], pages=late),
        replace(timeline, actions=actions[end:], pages=[]),
    )
