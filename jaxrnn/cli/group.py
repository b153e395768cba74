"""The group of commands, and how they tell a user's errors."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


class Group(click.Group):
    """Prints a user's errors as one line, without a traceback, with exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command; of a wrong argument, prints only what the library says about it."""
        try:
            return super().invoke(context)
        except (ValueError, TypeError) as error:
            click.echo(f"jaxrnn: {error}", err=True)
            context.exit(2)
        except FloatingPointError as error:
            click.echo(f"jaxrnn: {error}", err=True)
            context.exit(1)
