"""The table of a network: every array is in it once, whatever the layers are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CELLS, KEY, Problem, shapes
from user_cells import Leaky

import jaxrnn


def test_the_table():
    pair = jaxrnn.Bidirectional(jaxrnn.GRU(3, 9, bias=False), jaxrnn.GRU(3, 9, bias=False), "sum")
    net = jaxrnn.Network((pair, jaxrnn.LSTM(9, 8)), jaxrnn.Readout(8, 2), jaxrnn.squared_error, learn_state=True)
    params = jax.eval_shape(lambda key: net.init(key, jnp.bfloat16), KEY)
    params = params._replace(readout=net.readout.init(KEY))
    what, *rows = [line.split() for line in str(jaxrnn.summary(net, params)).splitlines()[1:]]
    assert " ".join(what) == (
        "layers[0] Bidirectional(forward=GRU(inputs=3, hidden=9, bias=False), "
        "backward=GRU(inputs=3, hidden=9, bias=False), merge='sum') 648 1,296"
    )
    assert rows == [
        ["forward.U", "bfloat16[27,3]", "81", "162"],
        ["forward.W", "bfloat16[27,9]", "243", "486"],
        ["backward.U", "bfloat16[27,3]", "81", "162"],
        ["backward.W", "bfloat16[27,9]", "243", "486"],
        ["layers[1]", "LSTM(inputs=9,", "hidden=8)", "576", "1,152"],
        ["U", "bfloat16[32,9]", "288", "576"],
        ["W", "bfloat16[32,8]", "256", "512"],
        ["b", "bfloat16[32]", "32", "64"],
        ["readout", "Readout(hidden=8,", "outputs=2)", "18", "72"],
        ["V", "float32[2,8]", "16", "64"],
        ["c", "float32[2]", "2", "8"],
        ["state", "learned", "34", "68"],
        ["[0][0]", "bfloat16[9]", "9", "18"],
        ["[0][1]", "bfloat16[9]", "9", "18"],
        ["[1].s", "bfloat16[8]", "8", "16"],
        ["[1].m", "bfloat16[8]", "8", "16"],
        ["in", "all", "1,276", "2,588"],
    ]


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("Cell", CELLS)
def test_all_is_counted(Cell, both_ways):
    problem = Problem(CELLS[Cell], 2, both_ways=both_ways, learn_state=True)
    found = jaxrnn.summary(problem.net, problem.params(jnp.float32))
    leaves = jax.tree.leaves(shapes(problem.net)[0])
    assert found.size == sum(leaf.size for leaf in leaves)
    assert found.nbytes == 4 * found.size
    assert sum(len(part.arrays) for part in found.parts) == len(leaves)
    assert len({len(line) for line in repr(found).splitlines()}) == 1  # columns are straight
    assert repr(jaxrnn.summary(problem.net)) == str(found)


def test_a_cell_whose_parameters_are_one_array():
    @dataclasses.dataclass(frozen=True)
    class Bare(Leaky):
        def init(self, key, dtype=jnp.float32):
            return jnp.ones((self.hidden, self.inputs), dtype)

    net = jaxrnn.Network((Bare(3, 4),), jaxrnn.Readout(4, 2), jaxrnn.squared_error)
    found = jaxrnn.summary(net, net.init(KEY))
    assert found.parts[0].arrays[""].shape == (4, 3)
    assert found.size == 12 + 10


NET = Problem().net
WRONG = {
    "no network": (NET.layers[0], NET, TypeError, "net must be a jaxrnn.Network, got Elman"),
    "no parameters": (NET, 3, TypeError, "params must be NetworkParams"),
    "of another": (NET, Problem(H=8).params(np.float32), ValueError, r"params.layers\[0\].U must have shape"),
}


@pytest.mark.parametrize(("net", "params", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(net, params, error, message):
    with pytest.raises(error, match=message):
        jaxrnn.summary(net, params)
