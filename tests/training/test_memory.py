"""The least that sizes take: the parameters of a network as they are, and refusals before anything is made."""

import jax
import pytest

from jaxrnn.arguments import check_memory
from jaxrnn.printing import in_bytes
from jaxrnn.training import experiment, memory
from jaxrnn.training.settings import CELLS, Settings, recipe


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_are_those_of_the_network_but_for_biases(cell):
    settings = Settings(task="copy", cell=cell, hidden=7, layers=3)
    net = experiment.make_network(settings, 10, 9)
    counted = memory.Sizes(cell, 10, 7, 9, 3, 1, 1).parameters
    leaves = jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0)))
    assert counted == sum(leaf.size for leaf in leaves if leaf.ndim == 2)


@pytest.mark.parametrize(
    "change",
    [{name: 2**31 - 1} for name in ("hidden", "layers", "length", "batch")] + [{"batch": 10**7, "length": 10**5}],
)
def test_what_no_machine_has_is_refused_before_it_is_made(change):
    with pytest.raises(ValueError, match=r"a network of these sizes would take .* at least, and this machine has"):
        experiment.build(recipe("adding", **change))


def test_what_fits_is_let_through():
    assert experiment.build(recipe("adding")).net
    check_memory("a byte", 1)


@pytest.mark.parametrize("name", ["steps", "warmup", "seed", "accumulate", "every"])
def test_integers_are_those_of_jax(name):
    with pytest.raises(ValueError, match=rf"{name} must be below 2\^31"):
        Settings(**{name: 2**31})


def test_bytes_are_written_as_people_read_them():
    assert [in_bytes(size) for size in (5, 1000, 12_300_000, 2e9, 4e15)] == [
        "5 bytes", "1.0 kB", "12.3 MB", "2.0 GB", "4,000 TB",
    ]  # fmt: skip
