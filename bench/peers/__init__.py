"""Peers of the benchmarks, each set up as its own documentation says is fast."""
