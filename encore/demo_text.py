"""What the demo says. One function a step; nothing is computed here that the step did not find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from encore.output import put
from schemas.actions import ActionType

if TYPE_CHECKING:
    from audit.rebuild import RebuildReport
    from catalog.materialize import Materialized
    from encore.demo_live import Swap
    from encore.kuairand import Page, Timeline
    from encore.lookup import Reading
    from encore.ranking import RankReply
    from encore.replay import ReplayReport
    from training.assess import Assessment
    from training.evaluate import Interval
    from training.run import TrainReport

SHOWN_ITEMS = 10


def heading(title: str) -> None:
    """A step begins."""
    put(f"\n== {title}")


def line(words: str) -> None:
    """One line of a step."""
    put(f"   {words}")


def loaded(done: Materialized) -> None:
    """A batch view is in the store."""
    counts = f"{done.read:,} rows read, {done.written:,} written"
    line(f"{done.view}: {counts}, {done.row_bytes} bytes each")


def timeline(log: Timeline, share: float, last_day_share: float) -> None:
    """What will be replayed."""
    line(
        f"KuaiRand: {log.rows:,} impressions ({log.duplicates:,} exact duplicates dropped) are "
        f"{len(log.actions):,} actions on {log.all_pages:,} pages"
    )
    line(
        f"all actions are replayed; ranked are the pages of {100 * share:g}% of the users, by "
        f"hash, and of {100 * last_day_share:g}% on the last day: {len(log.pages):,}"
    )


def replayed(report: ReplayReport) -> None:
    """A part of the log went through."""
    counts = report.counts
    line(f"{counts.actions:,} actions in {counts.ticks:,} ticks of ten minutes, all in rows")
    named = ", ".join(f"{n:,} {name or 'ranked whole'}" for name, n in report.degraded.items())
    line(f"{counts.requests:,} requests answered: {named or 'none'}")
    waits = max(counts.waits, 1)
    line(f"waited {counts.waited_s / waits * 1000:.0f} ms a tick for the rows, {waits:,} times")


def archived(requests: int) -> None:
    """The rank log is complete on disk."""
    line(f"{requests:,} requests with all their candidates lie in the Parquet log")


def trained(report: TrainReport) -> None:
    """Both models are packages now."""
    line(
        f"{report.examples:,} shown candidates with labels to learn from, {report.validation:,} to "
        f"know when to stop, {report.rescored:,} candidates rescored by the teacher for the student"
    )
    for kind, path in report.packages.items():
        fit = report.teacher if kind == "fine" else report.student
        best = fit.epochs[fit.best]
        learnt = f"{len(fit.epochs)} epochs, validation AUC {best.validation_auc:.4f}"
        line(f"{kind}: {path.name}, {learnt}")


def swapped(swap: Swap) -> None:
    """The service took the packages over."""
    line(
        f"checked and swapped in after {swap.seconds:.1f} s; meanwhile {swap.answered} requests, "
        f"all answered, the slowest in {swap.slowest_ms:.0f} ms"
    )


def row_change(actions: NDArray[np.void], before: Reading, after: Reading) -> None:
    """Which features of a row some actions of its user changed. actions: (a,) of dtype ACTION."""
    for action in actions:
        kind = ActionType(int(action["type"])).name.lower()
        played = f", {action['value'] / 1000:.1f} s" if action["value"] else ""
        line(f"user {action['user']}: {kind} of video {action['item']}{played}")
    fences = f"({before.epoch}, {before.offset}) → ({after.epoch}, {after.offset})"
    line(f"row {after.key}, fence {fences}")
    for name, value in after.values.items():
        if before.values[name] != value:
            line(f"  {name:<16} {_short(before.values[name])} → {_short(value)}")


def _short(value: object) -> str:
    if isinstance(value, list):
        head = ", ".join(str(each) for each in value[:5])
        return f"[{head}{', …' if len(value) > 5 else ''}] ({len(value)})"
    return f"{value:,}" if isinstance(value, int) else str(value)


def page(asked: Page, reply: RankReply, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """A page as it was answered, and the tensors behind it."""
    for name, (datatype, shape) in tensors.items():
        line(f"{name:<38} {datatype:<6} {shape}")
    line(
        f"user {asked.user_id}, {len(asked.candidates)} candidates → page of {len(reply.page_ids)}"
    )
    shown = list(zip(reply.page_ids, reply.outputs["page_scores"], strict=True))[:SHOWN_ITEMS]
    for place, (item, score) in enumerate(shown):
        line(f"  {place + 1:>2}. video {item:<6} score {score:.4f}")


def assessed(found: Assessment, task: str) -> None:
    """AUC and GAUCs of each model, with 95 % intervals over users."""
    evaluation = found.tasks[task]
    line(
        f"{evaluation.examples:,} shown candidates of {evaluation.users:,} users on the last day, "
        f"{evaluation.positives:,} with a {task}; {found.live:.0%} ranked live by these packages"
    )
    line(
        f"GAUC: of {evaluation.gauc_users:,} users with both classes; page GAUC: of "
        f"{evaluation.gauc_pages:,} such pages"
    )
    line(f"{'':<12} {'AUC':<24}   {'GAUC':<24}   page GAUC")
    for name, quality in evaluation.models.items():
        figures = (quality.auc, quality.gauc, quality.page_gauc)
        line(f"{name:<12} {'   '.join(map(_interval, figures))}")
    for each in evaluation.differences:
        name = f"{each.model} − {each.baseline}"
        line(f"{name}: AUC {_interval(each.auc)}, page GAUC {_interval(each.page_gauc)}")


def _interval(figure: Interval) -> str:
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def rebuilt(report: RebuildReport) -> None:
    """Serving and log agree, or not."""
    line(
        f"{report.values:,} scores of {report.requests:,} requests computed again from the log: "
        f"{len(report.mismatches)} differ"
    )


def end(seconds: float, data_dir: Path, failures: list[str]) -> None:
    """The verdict, and where to look next."""
    heading(
        f"{'Done' if not failures else 'Failed'} in {seconds:.0f} s; no process is left running"
    )
    for failure in failures:
        line(failure)
    log = data_dir / "archive" / "rank-log"
    line(f"the log of what was ranked, one row a candidate: {log / 'candidates'}")
    query = (
        "SELECT position, count(*) AS shown, round(avg(fine_click), 4) AS click "
        f"FROM '{log}/candidates/**/*.parquet' WHERE fine_click > 0 GROUP BY 1 ORDER BY 1"
    )
    line("a question to it:")
    put(f'.venv/bin/python -c "import duckdb; duckdb.sql(\\"{query}\\").show()"')
