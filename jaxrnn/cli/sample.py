"""`jaxrnn sample`: text from a saved run."""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Iterator

import click

from jaxrnn.tasks import text
from jaxrnn.training import experiment
from jaxrnn.training.run_folder import Run


@click.command(short_help="Write text from a saved run.")
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--prompt", default="\n", help="Go on from this text.  [default: a new line]")
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    help="Draw with this temperature: 1 as learnt, less is surer, 0 takes the likeliest.",
)
@click.option("--length", default=500, show_default=True, help="Write so many characters.")
@click.option("--seed", default=0, show_default=True, help="Set the seed of the draws.")
def sample(run: pathlib.Path, prompt: str, temperature: float, length: int, seed: int) -> None:
    """Write text from the best checkpoint of RUN, a folder that `jaxrnn train` made."""
    opened = Run.open(run)
    vocabulary = opened.record.get("vocabulary")
    if vocabulary is None:
        raise ValueError(f"{str(run)!r} was not trained on text, and has none to write")
    net, params = experiment.load_best(opened)
    characters = text.sample(net, params, vocabulary, prompt, length, temperature, seed)
    for character in _flushed(itertools.chain(prompt.lstrip("\n"), characters)):
        click.echo(character, nl=False)
    click.echo()


def _flushed(characters: Iterator[str]) -> Iterator[str]:
    for character in characters:
        yield character
        if character == "\n":
            sys.stdout.flush()
