"""`python -m tests.simulation --seeds 200`: hundreds of histories, failing ones made short."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.simulation.run import describe, generate


def main() -> int:
    """Returns the exit code: 1 where a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--shrink", type=int, default=300, help="runs spent on a shorter history")
    chosen = parser.parse_args()
    began, total, rows, failed, told = time.monotonic(), Counter[str](), 0, 0, 0
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        outcome = generate(seed, chosen.steps)
        total.update(outcome.happened)
        rows += outcome.rows_checked
        told += outcome.told
        if outcome.error is not None:
            failed += 1
            text = f"seed {seed}: {outcome.error}"
            print(
                describe(seed, outcome, runs=chosen.shrink) if chosen.shrink else text, flush=True
            )
    spent = time.monotonic() - began
    events = sum(total.values())
    print(f"{chosen.seeds} seeds, {events} events, {rows} rows checked, {told} told, {spent:.1f} s")
    print(", ".join(f"{kind} {count}" for kind, count in total.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
