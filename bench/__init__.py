"""Benchmarks: what encore does beside what its peers do, on the same data in the same run.

`python -m bench` lists them. Each prints a table for people and, as its last line, one JSON object.
They report; the tests assert.
"""
