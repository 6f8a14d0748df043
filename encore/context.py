"""What a command knows of its invocation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from encore.settings import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@dataclass
class Invocation:
    """One run of the command line. Settings are read when a command first asks for them."""

    config: Path | None

    @cached_property
    def settings(self) -> Settings:
        """The settings as given. Raises SettingsError."""
        from encore.settings import load_settings

        return load_settings(self.config)

    @cached_property
    def connected(self) -> Settings:
        """The settings with the running local stack filled in. Raises SettingsError."""
        from encore.stack_file import resolved

        return resolved(self.settings)

    @cached_property
    def stored(self) -> Settings:
        """The same for what talks to the store alone: no broker has to be set. Raises
        SettingsError."""
        from encore.stack_file import resolved

        return resolved(self.settings, ["store_url"])


def invocation(context: typer.Context) -> Invocation:
    """The invocation that the root callback put into the context."""
    found = context.obj
    assert isinstance(found, Invocation)
    return found
