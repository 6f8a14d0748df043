"""Lists the benchmarks; `python -m bench NAME [--quick] [--json FILE]` runs one."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from bench.ending import ended_in_order
from bench.report import Benchmark, Options, Report, as_json
from schemas.errors import EncoreError

BENCHMARKS: Final = (
    Benchmark("format", "the same values at rest: bytes, encoding, decoding", "bench.format"),
    Benchmark("ids", "raw values to int ids, beside pipelines keyed by strings", "bench.ids"),
    Benchmark("stream", "actions into rows, and how soon a request reads them", "bench.stream"),
    Benchmark("backfill", "history from Parquet into rows of a new generation", "bench.backfill"),
    Benchmark("aggregate", "one user and N items from the store to tensors", "bench.aggregate"),
    Benchmark("serve", "the service under open-loop load over gRPC and HTTP", "bench.serve"),
    Benchmark("cache", "requests, starts and changes by how much is cached", "bench.cache"),
    Benchmark("swaps", "plans published under load: latency beside steady", "bench.swaps"),
    Benchmark(
        "faults", "the store goes wrong under load: replies in time, and honest", "bench.faults"
    ),
    Benchmark("chaos", "processes and servers killed under load, then every row", "bench.chaos"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when the benchmark could not run, or found something else than must be; 2 for
    a wrong command line; 130 after Ctrl-C, 143 after SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Benchmarks of encore beside its peers."
    )
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("name", nargs="?", choices=names, help="which; without it: the list")
    parser.add_argument("--quick", action="store_true", help="end within 45 s on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the JSON object there too")
    parser.add_argument("--kills", type=int, metavar="N", help="chaos: how many events")
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="chaos: of the events")
    given = parser.parse_args(arguments)
    if given.name is None:
        rows = [(benchmark.name, benchmark.summary) for benchmark in BENCHMARKS]
        width = max(len(name) for name in names)
        print("\n".join(f"{name.ljust(width)}  {summary}" for name, summary in rows))
        return 0
    return ended_in_order(lambda: _run(given))


def _run(given: argparse.Namespace) -> int:
    chosen = next(benchmark for benchmark in BENCHMARKS if benchmark.name == given.name)
    run: Callable[[Options], Report] = importlib.import_module(chosen.module).run
    say = partial(print, file=sys.stderr, flush=True)
    try:
        report = run(Options(given.quick, say, given.kills, given.seed))
    except EncoreError as error:
        print(f"{chosen.name}: {error}", file=sys.stderr)
        return 1
    line = {"bench": chosen.name, "quick": given.quick, "cores": os.cpu_count(), **report.line}
    text = as_json(line)
    print("\n".join(report.lines))
    print(text)
    if given.json is not None:
        given.json.write_text(text + "\n")
    for each in report.wrong:
        print(f"{chosen.name}: WRONG: {each}", file=sys.stderr)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
