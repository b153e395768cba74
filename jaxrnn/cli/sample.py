"""`jaxrnn sample`: text from a saved run."""

from __future__ import annotations

import itertools
import pathlib

import click

from jaxrnn.cli.group import PATH, open_run, option
from jaxrnn.tasks import text
from jaxrnn.training import experiment


@click.command(short_help="Write text from a saved run.")
@click.argument("run", type=PATH)
@click.option("--prompt", help="Go on from this text.  [default: a new line, or the first character there is]")
@option("--temperature", default=0.8, help="Draw with this: 1 as learnt, less is surer, 0 takes the likeliest.")
@option("--length", default=500, help="Write so many characters.")
@option("--seed", default=0, help="Set the seed of the draws.")
def sample(run: pathlib.Path, prompt: str | None, temperature: float, length: int, seed: int) -> None:
    """Write text from the best checkpoint of RUN, a folder that `jaxrnn train` made."""
    opened = open_run(run)
    vocabulary = opened.record.get("vocabulary")
    if vocabulary is None:
        raise ValueError(f"{str(run)!r} was not trained on text, and has none to write")
    net, params = experiment.load_best(opened)
    characters = text.sample(net, params, vocabulary, prompt, length, temperature, seed)
    for character in itertools.chain((prompt or "").lstrip("\n"), characters, "\n"):
        click.echo(character, nl=False)
