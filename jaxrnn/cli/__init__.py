"""The `jaxrnn` command."""

from __future__ import annotations

import click

import jaxrnn
from jaxrnn.cli import machine
from jaxrnn.cli.check import check
from jaxrnn.cli.flow import flow
from jaxrnn.cli.group import Group
from jaxrnn.cli.sample import sample
from jaxrnn.cli.train import train
from jaxrnn.cli.tune import tune

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Group, commands=[train, sample, check, flow, tune], context_settings=HELP)
@click.version_option(jaxrnn.__version__, prog_name="jaxrnn")
def main() -> None:
    """Recurrent networks in JAX, with back-propagation through time written by hand.

    \b
    jaxrnn train               learn a text, character by character, in 1.5 to 5 minutes
    jaxrnn train --task NAME   learn something else; see jaxrnn train --help
    jaxrnn sample RUN          write text from what was learnt
    jaxrnn check               hold the gradients against autodiff and finite differences
    jaxrnn flow RUN            see how far back its gradients reach, and why no further
    jaxrnn tune                measure which lengths of segments are fastest on this machine
    """
    if click.get_current_context().invoked_subcommand != "tune":  # which measures what a user's own program meets
        machine.keep_the_heap()
    machine.use_all_cores()
    machine.silence_libraries()
