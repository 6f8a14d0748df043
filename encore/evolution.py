"""What a difference of plans means for the models that are live, and whether it may be applied."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from catalog.difference import Difference, ServiceChange, lines
from predictor.live import LiveModel
from schemas.errors import PlanError


def retired_by(service: ServiceChange, models: Iterable[LiveModel]) -> tuple[LiveModel, ...]:
    """The live models that a change of a service retires: they were made for what it was before."""
    return tuple(
        model
        for model in models
        if service.retires and (model.service, model.fingerprint) == (service.name, service.before)
    )


def guard(models: Iterable[LiveModel], *, retire: bool) -> Callable[[Difference], None]:
    """A review for `catalog.apply`: a slot that a live model uses is not removed, unless `retire`.

    What it returns raises PlanError. Models that a new or changed slot retires are shown, not kept:
    their service is told to serve without a model until another is trained.
    """
    live = tuple(models)

    def review(found: Difference) -> None:
        for service in found.services:
            hit = retired_by(service, live)
            if service.removed and hit and not retire:
                raise PlanError(
                    f"service {service.name}",
                    required="the slots that a live model uses",
                    got=f"{', '.join(service.removed)} removed, used by {named(hit)}",
                    do="keep them, or retire the models with `encore apply --retire-models`",
                )

    return review


def named(models: Iterable[LiveModel]) -> str:
    """For people: `fine 0123456789abcdef`."""
    return ", ".join(f"{model.kind} {model.version}" for model in models)


def as_data(found: Difference, models: Iterable[LiveModel]) -> Mapping[str, Any]:
    """For programs: the difference with the models that each service's change retires."""
    live = tuple(models)
    data = asdict(found)
    for service, change in zip(data["services"], found.services, strict=True):
        service["retires"] = [asdict(model) for model in retired_by(change, live)]
    for view, plain in zip(found.views, data["views"], strict=True):
        plain["new_generation"] = view.new_generation
    return data


def told(found: Difference, models: Iterable[LiveModel], filled: Collection[str] = ()) -> list[str]:
    """For people: the lines of the difference, and what it retires.

    filled: views whose new generation a backfill fills.
    """
    live = tuple(models)
    text = lines(found, filled)
    for service in found.services:
        hit = retired_by(service, live)
        if hit:
            text.append(f"  ! service {service.name} retires {named(hit)}: train them again")
    return text
