"""Serving generations: all that a request needs besides rows, immutable, swapped by one pointer.

A request reads `Generations.current` once and keeps what it got, so a swap in the middle of a
request changes nothing for it, and no request ever sees a plan of one publication with a model made
for another. Everything slow happens before the pointer moves: packages are checked in a
child process, loaded and warmed in a thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aggregation.program import ServiceProgram
from predictor.card import Expected
from predictor.package import Model
from predictor.spec import Kind, input_spec
from schemas.plan import Plan, ServicePlan

WARMUP_ROUNDS = 3
WARMUP_ITEMS = 64


@dataclass(frozen=True, slots=True)
class ServingGeneration:
    """One consistent set of plan, request program and models.

    number: counts swaps of this process, from 1. coarse, fine: None where no model of the
    kind is published for the service's fingerprint.
    """

    number: int
    plan: Plan
    program: ServiceProgram
    coarse: Model | None = None
    fine: Model | None = None

    @property
    def service(self) -> ServicePlan:
        """The served feature service."""
        return self.program.service

    @property
    def fingerprint(self) -> int:
        """The service's fingerprint as a u64."""
        return int(self.service.fingerprint, 16)

    def model(self, kind: Kind) -> Model | None:
        """The model of a kind, None where there is none."""
        return self.coarse if kind == "two_tower" else self.fine

    def expected(self, kind: Kind) -> Expected:
        """What a package must be made for to join this generation."""
        service = self.service
        return Expected(kind, service.name, service.fingerprint, input_spec(service))

    def versions(self) -> dict[str, Any]:
        """What a reply says of the generation that made it."""
        return {
            "plan_version": self.plan.version,
            "serving_generation": self.number,
            "coarse_version": self.coarse.name if self.coarse else "",
            "fine_version": self.fine.name if self.fine else "",
        }


class Generations:
    """The pointer to the current generation. Readers take no lock; swaps are serialised."""

    def __init__(self, plan: Plan, service: str) -> None:
        self._swap = threading.Lock()
        self.current = ServingGeneration(1, plan, ServiceProgram(plan, service))

    def use_models(self, models: dict[Kind, Model | None]) -> ServingGeneration:
        """Swap in the given kinds; the others stay as they are."""
        with self._swap:
            now = self.current
            self.current = ServingGeneration(
                now.number + 1,
                now.plan,
                now.program,
                models.get("two_tower", now.coarse),
                models.get("fine", now.fine),
            )
            return self.current

    def program_of(self, plan: Plan) -> ServiceProgram:
        """What `use_plan` swaps in, made and warmed; slow, for another thread than the one that
        serves. Raises PlanError for a plan without the service."""
        program = ServiceProgram(plan, self.current.service.name)
        items = np.arange(WARMUP_ITEMS, dtype=np.int64)
        nothing = [None] * len(program.keys(0, items))
        for _ in range(WARMUP_ROUNDS):
            program.assemble(nothing, 0, items, 1)
        return program

    def use_plan(self, plan: Plan, program: ServiceProgram | None = None) -> ServingGeneration:
        """Swap in a plan. Models stay if the service's fingerprint does, else they are dropped:
        their ids would mean something else. Raises PlanError and changes nothing for a plan
        without the service. program: of the plan, made here unless given."""
        if program is None:
            program = self.program_of(plan)
        with self._swap:
            now = self.current
            same = program.service.fingerprint == now.service.fingerprint
            self.current = ServingGeneration(
                now.number + 1,
                plan,
                program,
                now.coarse if same else None,
                now.fine if same else None,
            )
            return self.current


def warm(model: Model) -> None:
    """Score the package's warm-up requests, so that the first real one meets warm kernels."""
    torch.set_num_threads(1)
    for _ in range(WARMUP_ROUNDS):
        for request in model.warmup:
            model.logits(request)
