"""What the commands share: options, the console, and how they tell a user's errors."""

from __future__ import annotations

import functools
import os
import pathlib
import sys
from typing import Any

import click
import jax
from rich.console import Console

console = Console(highlight=False, markup=False, soft_wrap=True)  # a path may have brackets
option = functools.partial(click.option, show_default=True)
PATH = click.Path(path_type=pathlib.Path)


class Group(click.Group):
    """Prints a user's errors as one line, without a traceback, with exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command; of a wrong argument, prints only what the library says about it."""
        try:
            return super().invoke(context)
        except (ValueError, TypeError, FloatingPointError) as error:
            _end(context, str(error), 1 if isinstance(error, FloatingPointError) else 2)
        except jax.errors.JaxRuntimeError as error:
            if not jax.distributed.is_initialized():
                raise
            said = str(error).splitlines()[0]
            _end(context, f"another process has ended or is out of reach; start all again with --resume\n{said}", 1)


def _end(context: click.Context, message: str, code: int) -> None:
    click.echo(f"jaxrnn: {message}", err=True)
    if jax.distributed.is_initialized():
        # An orderly end would wait for the other processes, and they for this one.
        sys.stdout.flush()
        os._exit(code)
    context.exit(code)
