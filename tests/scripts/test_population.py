"""A population: networks side by side are what they are alone."""

import functools
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import population
import pytest

import jaxrnn

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "population.py"


@pytest.mark.parametrize("together", [1, 2])
def test_networks_side_by_side_are_those_of_runs_of_their_own(together):
    with jax.enable_x64(True):
        task = population.Adding(4, length=5)
        net = jaxrnn.Network((jaxrnn.Elman(2, 3),), jaxrnn.Readout(3, 1), task.objective, last_step=True)
        train = functools.partial(population.train, net, task, 4)
        keys, rates = jax.random.split(jax.random.key(0), 8), jnp.geomspace(1e-3, 1e-1, 8)
        alone = population.one_after_the_other(train)(keys, rates)
        beside = jax.jit(population.side_by_side(train, together))(keys, rates)
    assert beside.shape == (8, 4)
    assert len(np.unique(beside)) == beside.size
    np.testing.assert_allclose(beside, alone, rtol=1e-12)


def test_a_quick_run_on_two_devices():
    arguments = ["--devices", "2", "--hidden", "4", "--networks", "4", "--updates", "6", "--rounds", "1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.count("| 0.") + done.stdout.count("e-") >= 4
    assert "side by side, on 2 devices, 2 networks at a time" in done.stdout
    wrong = subprocess.run(
        [sys.executable, str(SCRIPT), "--devices", "2", "--networks", "3"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "--networks must be a multiple of the 2 devices, got 3" in wrong.stderr
