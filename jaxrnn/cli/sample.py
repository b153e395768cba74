"""`jaxrnn sample`: text from a saved run."""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Iterator

import click

from jaxrnn.tasks import text
from jaxrnn.training import experiment
from jaxrnn.training.runs import Run


@click.command(short_help="Write text from a saved run.")
@click.argument("run", type=click.Path(path_type=pathlib.Path))
@click.option("--prompt", default="\n", help="What the text goes on from.  [default: a new line]")
@click.option("--temperature", default=0.8, show_default=True, help="1: as learnt; less: surer; 0: the likeliest.")
@click.option("--length", default=500, show_default=True, help="Characters to write.")
@click.option("--seed", default=0, show_default=True)
def sample(run: pathlib.Path, prompt: str, temperature: float, length: int, seed: int) -> None:
    """Write text from the best checkpoint of RUN, a folder that `jaxrnn train` made."""
    opened = Run.open(run)
    vocabulary = opened.settings.get("vocabulary")
    if vocabulary is None:
        raise ValueError(f"{str(run)!r} was not trained on text, and has none to write")
    net, params = experiment.trained(opened)
    characters = text.sample(net, params, vocabulary, prompt, length, temperature, seed)
    for character in _flushed(itertools.chain(prompt.lstrip("\n"), characters)):
        click.echo(character, nl=False)
    click.echo()


def _flushed(characters: Iterator[str]) -> Iterator[str]:
    for character in characters:
        yield character
        if character == "\n":
            sys.stdout.flush()
