"""A plan's features in words."""

from __future__ import annotations

from catalog.durations import text
from catalog.selections import selected_text
from schemas.plan import AccumulatorPlan, FeaturePlan, ViewPlan


def made_of(view: ViewPlan, feature: FeaturePlan) -> str:
    """What a feature is made of: `count of play where value >= 3000, 1 h in hops of 5 min`."""
    if feature.kind == "ratio":
        smooth = f", smoothed by {feature.prior:g} over {feature.weight:g}" * (feature.weight > 0)
        return f"{' / '.join(feature.sources)}{smooth}"
    for ring in view.accumulators:
        if ring.field == feature.source and feature.kind != "field":
            of = selected_text(ring.action, ring.column, ring.where)
            over = f"{text(feature.window_ms)} in hops of {text(ring.hop_ms)}"
            return f"{_function(feature, ring)} of {of}, {over}"
    for held in view.sequences:
        if feature.source in (*held.fields, held.time_field) and feature.kind != "field":
            columns = dict(zip(held.fields, held.columns, strict=True))
            time = "time_ms" if feature.kind == "sequence" else "age_ms"
            beside = f", of {held.name}" if held.gaps else ""
            of = selected_text(held.action, columns.get(feature.source, time), held.where)
            many = f"newest {feature.capacity}" if feature.capacity else "newest"
            within = f", within {text(feature.within_ms)}" if feature.within_ms else ""
            return f"{many} of {of}{beside}{within}"
    return "attribute"


def _function(feature: FeaturePlan, ring: AccumulatorPlan) -> str:
    """What is made of the tiles, in words."""
    match feature.kind:
        case "window":
            return ring.function
        case "distinct":
            return f"distinct, exact to {ring.width - 1} a hop and beyond that an estimate,"
        case "decayed_sum":
            return f"{ring.function}, half after {text(feature.half_life_ms)},"
    return feature.kind
