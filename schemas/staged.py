"""A plan that lies beside the published one while the rows of its new generations are filled.

Readers do not look at it. Stream workers fold its new generations once it says that they are filled
(`streams.following`). The text shares its version number with the published plan, so of a
publication and a staging at the same time one wins.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from schemas.errors import PlanError
from schemas.plan import Plan, dump_plan, load_plan

STAGED_FORMAT: Final = 1

State = Literal["none", "filling", "filled"]


@dataclass(frozen=True, slots=True)
class Staged:
    """What is staged.

    state: `none` where nothing is, `filling` while rows are written, `filled` once all are. plan:
    the whole plan that follows the published one, None in state `none`. views: {name: generation}
    of those that are filled. used: {name: the last generation that was ever staged}: also those of
    a filling that was given up, whose numbers no plan may take again. history: names the files of
    actions from before the log that the rows are filled from, "" where there are none. foreign:
    {name: (generation, history)} of the last generation of each view that readers had of such
    files: the log alone does not give it again.
    """

    state: State = "none"
    plan: Plan | None = None
    views: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    history: str = ""
    foreign: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        """Something is staged."""
        return self.state != "none"


def dump_staged(staged: Staged) -> str:
    """The stored text."""
    return json.dumps(
        {
            "format": STAGED_FORMAT,
            "state": staged.state,
            "plan": None if staged.plan is None else json.loads(dump_plan(staged.plan)),
            "views": staged.views,
            "used": staged.used,
            "history": staged.history,
            "foreign": staged.foreign,
        },
        indent=2,
        sort_keys=True,
    )


def load_staged(text: str | None, where: str) -> Staged:
    """The inverse of `dump_staged`; None is the state before anything was staged.

    Raises PlanError for anything else.
    """
    if text is None:
        return Staged()
    try:
        held: dict[str, Any] = json.loads(text)
        if held["format"] != STAGED_FORMAT or held["state"] not in ("none", "filling", "filled"):
            raise ValueError
        history = held.get("history", "")
        if not isinstance(history, str):
            raise ValueError
        if (held["plan"] is None) != (held["state"] == "none"):
            raise ValueError
        foreign = {
            str(name): (int(generation), str(named))
            for name, (generation, named) in held.get("foreign", {}).items()
        }
        views, used = (
            {str(k): int(v) for k, v in held[name].items()} for name in ("views", "used")
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PlanError(
            where,
            required=f"a staged plan of format {STAGED_FORMAT}",
            got=repr(text[:60]),
            do="use the version of encore that staged it, or remove the key and begin again",
        ) from None
    plan = None if held["plan"] is None else load_plan(json.dumps(held["plan"]), f"{where}.plan")
    return Staged(held["state"], plan, views, used, history, foreign)
