"""`encore doctor`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from encore.context import JsonOption, invocation


def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Check the installation and what is running.

    Looks at Python, packages, binaries, C kernels, disk, ports, broker, topics, store and plan.
    Ends with 1 when a check fails. What is not configured and not running is skipped.
    """
    from encore.doctor import diagnose
    from encore.output import put_json, put_table

    checks = list(diagnose(invocation(context).settings))
    if as_json:
        put_json([asdict(check) for check in checks])
    else:
        rows = [(check.state, check.name, _sentence(check.found, check.do)) for check in checks]
        put_table(("state", "check", "found"), rows)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def _sentence(found: str, do: str) -> str:
    return f"{found}; {do}" if do else found
