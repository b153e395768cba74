"""What parameters, states and networks print as: short, whatever stands in them, and of networks what makes them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CELLS, Problem
from user_cells import Leaky

import jaxrnn
from jaxrnn.printing import as_text, brief

KEY = jax.random.key(0)
STACK = jaxrnn.Network(
    (jaxrnn.LSTM(65, 128), jaxrnn.LSTM(128, 128)), jaxrnn.Readout(128, 65), jaxrnn.softmax_cross_entropy
)
SMALL = jaxrnn.Elman(3, 4)
ELMAN = "ElmanParams(U: float32[4,3], W: float32[4,4], b: float32[4])"


def test_the_parameters_of_a_network_are_a_few_lines():
    assert repr(STACK.init(KEY)) == str(jax.eval_shape(STACK.init, KEY)) == (
        "NetworkParams(\n"
        "    layers=(\n"
        "        LSTMParams(U: float32[512,65], W: float32[512,128], b: float32[512]),\n"
        "        LSTMParams(U: float32[512,128], W: float32[512,128], b: float32[512]),\n"
        "    ),\n"
        "    readout=ReadoutParams(V: float32[65,128], c: float32[65]),\n"
        ")"
    )  # fmt: skip


def test_a_network_is_a_few_lines():
    assert str(STACK) == (
        "Network(\n"
        "    layers=(LSTM(inputs=65, hidden=128), LSTM(inputs=128, hidden=128)),\n"
        "    readout=Readout(hidden=128, outputs=65),\n"
        "    objective=softmax_cross_entropy,\n"
        ")"
    )


@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("Cell", ["Elman", "relu", "GRU", "GRU before", "LSTM"])
def test_what_a_network_prints_as_makes_it(Cell, both_ways):
    options = {"dropout": 0.25, "residual": True, "learn_state": True, "objective": "sigmoid"}
    net = Problem(CELLS[Cell], 2, H=4, both_ways=both_ways, merge="sum", bias=False, **options).net
    assert eval(repr(net), vars(jaxrnn)) == net
    assert "last_step" not in repr(net)
    assert "bias=False" in repr(net)


def test_what_holds_for_a_cell_of_a_user():
    def nothing(outputs, targets):
        return jnp.sum(outputs, -1)

    net = jaxrnn.Network((Leaky(3, 4, rate=0.5),), jaxrnn.Readout(4, 2), nothing)
    assert "layers=(Leaky(inputs=3, hidden=4, rate=0.5),)" in repr(net)
    assert "objective=nothing" in repr(net)

    @dataclasses.dataclass(frozen=True)
    class Named(Leaky):
        def __repr__(self):
            return "two\nlines"

    assert "(\n        two\n        lines,\n    )" in repr(dataclasses.replace(net, layers=(Named(3, 4),)))


PARAMS = SMALL.init(KEY)
SPECS = jax.tree.map(lambda leaf: jax.P("data"), PARAMS)
DELETED = jax.tree.map(jnp.copy, PARAMS)
jax.tree.map(lambda leaf: leaf.delete(), DELETED)
TEXTS = {
    "arrays": (PARAMS, ELMAN),
    "of NumPy": (jax.tree.map(np.asarray, PARAMS), ELMAN),
    "shapes": (jax.eval_shape(SMALL.init, KEY), ELMAN),
    "deleted": (DELETED, ELMAN),
    "no bias": (PARAMS._replace(b=None), "ElmanParams(U: float32[4,3], W: float32[4,4], b=None)"),
    "narrow": (jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS), ELMAN.replace("float32", "bfloat16")),
    "bits": (jax.tree.map(lambda leaf: leaf > 0, PARAMS), ELMAN.replace("float32", "bool")),
    "how they are spread": (SPECS, f"ElmanParams(U={SPECS.U!r}, W={SPECS.U!r}, b={SPECS.U!r})"),
    "words": (jaxrnn.ElmanParams("rate", "rate", 3), "ElmanParams(U='rate', W='rate', b=3)"),
    "sizes": (jax.tree.map(jnp.size, PARAMS), "ElmanParams(U=12, W=16, b=4)"),
    "norms": (jax.tree.map(lambda leaf: jnp.float32(0.1), PARAMS), "ElmanParams(U=0.1, W=0.1, b=0.1)"),
    "norms of NumPy": (jax.tree.map(lambda leaf: np.float64(2.5), PARAMS), "ElmanParams(U=2.5, W=2.5, b=2.5)"),
    "narrow numbers": (jaxrnn.ElmanParams(*jnp.ones(2, jnp.bfloat16), jnp.array(True)),
                       "ElmanParams(U=1, W=1, b=True)"),
    "keys": (jaxrnn.ElmanParams(KEY, KEY, jax.random.split(KEY, 3)),
             "ElmanParams(U: key<fry>[], W: key<fry>[], b: key<fry>[3])"),
    "pairs": (jaxrnn.ElmanParams((PARAMS.b, 1), [PARAMS.b], {"m": PARAMS.b}),
              "ElmanParams(U=(float32[4], 1), W=[float32[4]], b={'m': float32[4]})"),
    "nothing": (jaxrnn.ElmanParams((), optax.MaskedNode(), {}), "ElmanParams(U=(), W=MaskedNode(), b={})"),
    "a state": (jaxrnn.LSTM(3, 4).initial_state((2,)), "LSTMState(s: float32[2,4], m: float32[2,4])"),
    "a chunk": (jaxrnn.Chunk(np.zeros((5, 2), int), mask=np.ones((5, 2), bool)),
                "Batch(inputs: int64[5,2], mask: bool[5,2])"),
}  # fmt: skip


@pytest.mark.parametrize(("value", "text"), TEXTS.values(), ids=TEXTS)
def test_whatever_stands_in_parameters(value, text):
    assert repr(value) == text


def test_tracers():
    seen = []

    @jax.jit
    def look(params):
        seen.append(repr(params))
        jax.vmap(lambda params: seen.append(repr(params)))(params)
        jax.grad(lambda params: seen.append(repr(params._replace(W=params.b.sum()))) or params.b.sum())(params)

    look(jax.tree.map(lambda leaf: jnp.ones((4, *leaf.shape)), PARAMS))
    wide = ELMAN.replace("[4", "[4,4")
    assert seen == [wide, ELMAN, "ElmanParams(U: float32[4,4,3], W: float32[], b: float32[4,4])"]


def test_the_state_of_an_optimiser_is_short():
    assert len(repr(optax.adam(1e-3).init(STACK.init(KEY)))) < 1200


def test_a_value_in_a_message_is_short_too():
    assert brief(STACK.init(KEY)).startswith("NetworkParams(layers=(LSTMParams(U: float32[512,65], ")
    assert len(brief(list(range(1000)))) <= 200
    assert brief([1] * 1000).endswith(" ...")
    assert "\n" not in brief(STACK)
    assert as_text((1,)) == "(1,)"
