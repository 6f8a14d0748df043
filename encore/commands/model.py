"""`encore train`: from the service's log to the models it serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from encore.context import JsonOption, invocation

if TYPE_CHECKING:
    from predictor.spec import Kind
    from training.loop import Fit
    from training.run import TrainReport

DAY_MS = 86_400_000
TRAIN_EPILOG = """\b
Examples:
  encore train
  encore train --end-ms 1651708800000 --no-publish
"""


def train(
    context: typer.Context,
    start_ms: Annotated[
        int, typer.Option(min=0, help="Learn from requests at or after this, ms since 1970.")
    ] = 0,
    end_ms: Annotated[
        int,
        typer.Option(
            min=1,
            help="Learn from requests before this, and from what users did before it, ms since"
            " 1970. Default: all.",
            show_default=False,
        ),
    ] = 1 << 62,
    validation_ms: Annotated[
        int, typer.Option(min=1, help="The log's last part, ms, says when to stop learning.")
    ] = DAY_MS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    publish: Annotated[
        bool, typer.Option("--publish/--no-publish", help="Let running services take them over.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Train both models from the archived log.

    The fine-ranking teacher learns from what was shown, the two-tower from that and from the
    teacher's judgement of every candidate. Packages go to packages_dir, where running services find
    them, check them and take them over without a dropped request.
    """
    from encore.output import put_facts, put_json
    from encore.progress import Bars

    settings = invocation(context).stored
    from encore.lookup import published_plan
    from store.redis_store import RedisRowStore
    from training.run import TrainConfig
    from training.run import train as run

    with RedisRowStore(settings.store_url) as store:
        plan = published_plan(store)
    config = TrainConfig(
        data_dir=settings.data_dir,
        packages=settings.packages,
        plan=plan,
        service=settings.service,
        trained_ms=time.time_ns() // 1_000_000,
        start_ms=start_ms,
        end_ms=end_ms,
        validation_ms=validation_ms,
        seed=seed,
        publish=publish,
    )
    with Bars() as bars:
        report = run(config, bars.update)
    if as_json:
        put_json(_data(report))
        return
    put_facts(_facts(report))


def _facts(report: TrainReport) -> dict[str, str]:
    """For people."""
    facts = {
        "log": f"{report.joined.requests:,} requests, {report.joined.exposed:,} shown items",
        "learnt from": f"{report.examples:,} examples, {report.validation:,} to stop by",
        "rescored": f"{report.rescored:,} candidates",
    }
    for kind, fit in _fits(report).items():
        facts[f"{kind} model"] = f"validation AUC {_auc(fit):.4f}, {report.packages[kind]}"
    return facts


def _fits(report: TrainReport) -> dict[Kind, Fit]:
    return {"fine": report.teacher, "two_tower": report.student}


def _auc(fit: Fit) -> float:
    return fit.epochs[fit.best].validation_auc


def _data(report: TrainReport) -> dict[str, object]:
    return {
        "requests": report.joined.requests,
        "exposed": report.joined.exposed,
        "examples": report.examples,
        "validation": report.validation,
        "rescored": report.rescored,
        "validation_auc": {kind: _auc(fit) for kind, fit in _fits(report).items()},
        "packages": {str(kind): path for kind, path in report.packages.items()},
    }
