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

from jaxrnn.training.run_folder import Run

console = Console(highlight=False, markup=False, soft_wrap=True)  # a path may have brackets
option = functools.partial(click.option, show_default=True)
PATH = click.Path(path_type=pathlib.Path)
# What is wrong with what a user gave, or with the machine that it was given to.
ERRORS = (ValueError, TypeError, OverflowError, ImportError, MemoryError, OSError)


class Group(click.Group):
    """Prints a user's errors as one line or two, without a traceback, with exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Runs a command; of a wrong argument, prints only what the library says about it."""
        try:
            return super().invoke(context)
        except BrokenPipeError:  # whoever read the output has enough of it: click ends without a word
            raise
        except FloatingPointError as error:
            _end(context, str(error), 1)
        except ERRORS as error:
            _end(context, _in_words(error), 2)
        except jax.errors.JaxRuntimeError as error:
            said = str(error).splitlines()[0]
            if said.startswith("RESOURCE_EXHAUSTED"):
                _end(context, f"the memory is not enough: {said}", 2)
            if not jax.distributed.is_initialized():
                raise
            _end(context, f"another process has ended or is out of reach; start all again with --resume\n{said}", 1)


def _in_words(error: BaseException) -> str:
    """Returns an error in words, two lines at most."""
    if isinstance(error, OSError) and error.strerror:
        place = "" if error.filename is None else f"{str(error.filename)!r}: "
        return f"{place}{error.strerror}"
    kind = {MemoryError: "the memory is not enough: ", OverflowError: "a number is too large: "}
    return next((words for of, words in kind.items() if isinstance(error, of)), "") + "\n".join(
        str(error).splitlines()[:2]
    )


def _end(context: click.Context, message: str, code: int) -> None:
    click.echo(f"jaxrnn: {message}", err=True)
    if jax.distributed.is_initialized():
        # An orderly end would wait for the other processes, and they for this one.
        sys.stdout.flush()
        os._exit(code)
    context.exit(code)


def open_run(path: pathlib.Path, writing: bool = False) -> Run:
    """Opens the folder of a run, which may come from a stranger: nothing in it may be a link that leads out of it."""
    if (link := next((inside for inside in path.rglob("*") if inside.is_symlink()), None)) is not None:
        raise ValueError(f"{str(link)!r} is a link: what is read and written must be in the folder of the run itself")
    return Run.open(path, writing=writing)
