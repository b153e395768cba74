"""What the commands share: options, the console, and how they tell a user's errors."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import click
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)
option = functools.partial(click.option, show_default=True)
PATH = click.Path(path_type=pathlib.Path)


class Group(click.Group):
    """Prints a user's errors as one line, without a traceback, with exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command; of a wrong argument, prints only what the library says about it."""
        try:
            return super().invoke(context)
        except (ValueError, TypeError, FloatingPointError) as error:
            click.echo(f"jaxrnn: {error}", err=True)
            context.exit(1 if isinstance(error, FloatingPointError) else 2)
