"""Weights of Keras: the same hidden states and final states, and mistakes that are told.

Answers to weights that are all alike are those of Keras's own tests; answers to waves, in which no gate is like
another, were computed by Keras 3.15.1. All are in float32.
"""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from interop.examples import D, H, cases, params_of, stack

import jaxrnn
from jaxrnn import interop

GATES = {"SimpleRNN": 1, "GRU": 3, "LSTM": 4}


def constants(kind: str, inputs: int, units: int, bias: float | None = 0.03, forget: float | None = None) -> list:
    """Kernel .01, recurrent kernel .02, and a bias, in which that of the forget gate may be another."""
    gates = GATES[kind] * units
    weights = [np.full((inputs, gates), 0.01, np.float32), np.full((units, gates), 0.02, np.float32)]
    if bias is None:
        return weights
    b = np.full((2, gates) if kind == "GRU" else gates, bias, np.float32)
    if forget is not None:
        b[units : 2 * units] = forget
    return [*weights, b]


def counting(*shape: int) -> np.ndarray:
    """0, 1, 2 ... batch-major [B, T, D], as [T, B, D]."""
    return np.arange(np.prod(shape)).reshape(shape).astype(np.float32).swapaxes(0, 1)


def waves(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """sin(7 i + 1.3 n) for the n-th number of the i-th array."""
    numbers = [np.sin(7.0 * i + 1.3 * np.arange(np.prod(shape))) for i, shape in enumerate(shapes)]
    return [array.reshape(shape).astype(np.float32) for array, shape in zip(numbers, shapes, strict=True)]


RESET_BEFORE = {"reset": "before"}  # of `from_keras`, for a GRU with reset_after=False
KERNELS = {
    "SimpleRNN": [(3, 2), (2, 2), (2,)],
    "GRU": [(3, 6), (2, 6), (2, 6)],
    "LSTM": [(3, 8), (2, 8), (8,)],
}
WAVES = np.cos(np.arange(24)).reshape(2, 4, 3).astype(np.float32).swapaxes(0, 1)


NO_OPTIONS: Mapping[str, Any] = types.MappingProxyType({})


class Example(NamedTuple):
    """Weights of a Keras layer, and what it is to read."""

    kind: str
    weights: list[np.ndarray]
    inputs: np.ndarray  # [T, B, D]
    options: Mapping[str, Any] = NO_OPTIONS  # of `from_keras`
    reverse: bool = False
    state: Any = None
    mask: np.ndarray | None = None  # [T, B]


def alike(
    kind: str,
    shape: tuple[int, ...],
    units: int,
    options: Mapping[str, Any] = NO_OPTIONS,
    bias: float | None = 0.03,
    forget: float | None = None,
    **rest: Any,
) -> Example:
    """Returns an example of weights that are all alike; an option `merge` asks for those of both directions."""
    weights = constants(kind, shape[-1], units, bias, forget) * (1 + ("merge" in options))
    return Example(kind, weights, counting(*shape), options, **rest)


STATE = {units: np.arange(2 * units).reshape(2, units).astype(np.float32) for units in (2, 4)}
MASK = np.array([[True, True, False, True], [True, False, False, True]]).T
ALIKE = {
    "SimpleRNN": alike("SimpleRNN", (2, 3, 4), 4),
    "SimpleRNN, reverse": alike("SimpleRNN", (2, 3, 4), 4, reverse=True),
    "SimpleRNN, state": alike("SimpleRNN", (2, 4, 3), 4, state=STATE[4]),
    "SimpleRNN, both": alike("SimpleRNN", (2, 3, 4), 2, {"merge": "concatenate"}),
    "GRU": alike("GRU", (3, 6, 4), 3),
    "GRU, reverse": alike("GRU", (3, 6, 4), 3, reverse=True),
    "GRU, no bias": alike("GRU", (3, 6, 4), 3, bias=None),
    "GRU, state": alike("GRU", (2, 4, 3), 2, state=STATE[2]),
    "GRU, mask": alike("GRU", (2, 4, 3), 2, mask=MASK),
    "GRU, sum": alike("GRU", (2, 3, 4), 2, {"merge": "sum"}),
    "LSTM, forget": alike("LSTM", (3, 6, 4), 3, forget=1.0),
    "LSTM, forget, reverse": alike("LSTM", (3, 6, 4), 3, forget=1.0, reverse=True),
    "LSTM": alike("LSTM", (3, 6, 4), 3),
    "LSTM, no bias": alike("LSTM", (3, 6, 4), 3, bias=None),
    "LSTM, state": alike("LSTM", (2, 4, 3), 2, forget=1.0, state=jaxrnn.LSTMState(STATE[2], STATE[2])),
    "LSTM, both": alike("LSTM", (2, 4, 3), 2, {"merge": "concatenate"}, forget=1.0),
}
IN_WAVES = {
    "SimpleRNN waves, relu": Example("SimpleRNN", waves(*KERNELS["SimpleRNN"]), WAVES, {"activation": "relu"}),
}
for kind, shapes in KERNELS.items():
    IN_WAVES |= {
        f"{kind} waves": Example(kind, waves(*shapes), WAVES),
        f"{kind} waves, no bias": Example(kind, waves(*shapes[:2]), WAVES),
        f"{kind} waves, concatenate": Example(kind, waves(*2 * shapes), WAVES),
        f"{kind} waves, sum": Example(kind, waves(*2 * shapes), WAVES, {"merge": "sum"}),
    }
BEFORE = waves((3, 6), (2, 6), (6,))  # which tell by their bias
IN_WAVES |= {
    "GRU before waves": Example("GRU", BEFORE, WAVES),
    "GRU before waves, no bias": Example("GRU", BEFORE[:2], WAVES, RESET_BEFORE),
    "GRU before waves, mask": Example("GRU", BEFORE, WAVES, RESET_BEFORE, mask=MASK),
    "GRU before waves, reverse": Example("GRU", BEFORE, WAVES, reverse=True),
    "GRU before waves, concatenate": Example("GRU", waves(*2 * [(3, 6), (2, 6), (6,)]), WAVES),
}
EXAMPLES = ALIKE | IN_WAVES


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    """Unrolls all examples in one compiled program: name -> hidden states and final state."""
    converted = {name: interop.from_keras(each.kind, each.weights, **each.options) for name, each in EXAMPLES.items()}
    layers = {name: layer for name, (layer, _) in converted.items()}

    @jax.jit
    def unroll_all(params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        return {
            name: jaxrnn.unroll(layers[name], params[name], *data[name][:2], mask=data[name][2], reverse=each.reverse)
            for name, each in EXAMPLES.items()
        }

    data = {name: (each.inputs, each.state, each.mask) for name, each in EXAMPLES.items()}
    return unroll_all({name: params for name, (_, params) in converted.items()}, data)


def close(came: Any, expected: Any) -> bool:
    return np.shape(came) == np.shape(expected) and np.allclose(came, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SimpleRNN", [0.405432, 0.73605347]),
        ("SimpleRNN, reverse", [0.11144729, 0.5528889]),
        ("GRU", [0.5217289, 0.6371659, 0.39384964]),
        ("GRU, reverse", [0.24406259, 0.611516, 0.3928808]),
        ("GRU, no bias", [0.49988455, 0.64701194, 0.4103359]),
        ("LSTM, forget", [0.6288687, 0.86899155, 0.9460773]),
        ("LSTM, forget, reverse", [0.35622165, 0.74789524, 0.8872726]),
        ("LSTM", [0.57019705, 0.8661914, 0.9459622]),
        ("LSTM, no bias", [0.54986924, 0.86226785, 0.9443936]),
    ],
)
def test_keras_known_answers(answers: dict, name: str, expected: list) -> None:
    hidden, _ = answers[name]
    last = hidden[0 if EXAMPLES[name].reverse else -1]
    assert close(last, np.repeat(expected, last.shape[-1]).reshape(last.shape))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("SimpleRNN", [[0.33621645] * 4, [0.6262637] * 4]),
        ("GRU", [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
        ("LSTM", [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
    ],
)
def test_keras_known_answers_from_a_state(answers: dict, kind: str, expected: list) -> None:
    assert close(answers[f"{kind}, state"][0][-1], expected)


def test_keras_known_answers_under_a_mask(answers: dict) -> None:
    hidden, _ = answers["GRU, mask"]
    first, second = [0.03606692, 0.09497581, 0.09497581, 0.19393763], [0.16051409, 0.16051409, 0.16051409, 0.30818558]
    assert close(hidden[..., 0], np.transpose([first, second]))
    assert close(hidden[..., 1], hidden[..., 0])


def test_keras_known_answers_in_both_directions(answers: dict) -> None:
    _, final = answers["SimpleRNN, both"]
    assert close(final[0], [[0.39687276] * 2, [0.7237238] * 2])
    assert close(final[1], [[0.10004295] * 2, [0.53391594] * 2])
    hidden, _ = answers["GRU, sum"]
    first, second = [0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]
    assert close(hidden[..., 0], np.transpose([first, second]))
    assert close(hidden[..., 1], hidden[..., 0])
    _, final = answers["LSTM, both"]
    for state, s, m in zip(
        final,
        [(0.1990008, 0.52335435), (0.12659755, 0.44717982)],
        [(0.35567185, 1.0492687), (0.2501858, 0.941473)],
        strict=True,
    ):
        assert close(state.s[:, 0], s)
        assert close(state.m[:, 0], m)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SimpleRNN waves", [[0.77543974, 0.09691443], [0.89436281, 0.5733003]]),
        ("SimpleRNN waves, relu", [[1.80432034, 0.7309711], [2.08320022, 1.28577578]]),
        ("SimpleRNN waves, no bias", [[-0.26279944, -0.39058074], [0.02372421, 0.11817096]]),
        ("GRU waves", [[0.3782177, 0.25801972], [0.24790965, 0.30942819]]),
        ("GRU waves, no bias", [[0.13301583, -0.75439793], [-0.3436735, -0.4919259]]),
        ("GRU before waves", [[0.40239728, 0.15239088], [0.13025156, 0.20847441]]),
        ("GRU before waves, no bias", [[0.11543941, -0.72866392], [-0.33475068, -0.48117992]]),
        ("GRU before waves, mask", [[0.43728271, 0.10496716], [0.00592106, 0.10533202]]),
        ("LSTM waves", [[0.24625535, 0.09894925], [0.11654456, 0.16392681]]),
        ("LSTM waves, no bias", [[0.19630016, 0.05640403], [0.01089074, 0.08521304]]),
    ],
)
def test_keras_computes_the_same(answers: dict, name: str, expected: list) -> None:
    assert close(answers[name][0][-1], expected)


def test_keras_computes_the_same_backwards(answers: dict) -> None:
    hidden, _ = answers["GRU before waves, reverse"]
    assert close(hidden[0], [[0.30512407, 0.23794614], [0.19967815, 0.26218671]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "SimpleRNN waves, concatenate",
            [[0.71005321, 0.07695153, 0.23116997, -0.49558279], [0.83871901, 0.46590391, 0.23622331, -0.78712904]],
        ),
        ("SimpleRNN waves, sum", [[0.94122314, -0.41863126], [1.07494235, -0.32122514]]),
        (
            "GRU waves, concatenate",
            [[0.24394248, 0.17480268, -0.62062979, -0.68651158], [0.22920352, 0.13263822, -0.11032034, -0.58465135]],
        ),
        ("GRU waves, sum", [[-0.37668729, -0.51170892], [0.11888318, -0.45201313]]),
        (
            "GRU before waves, concatenate",
            [[0.28013891, 0.13079126, -0.38724712, -0.46603292], [0.20221326, 0.0715722, 0.34952769, -0.34712359]],
        ),
        (
            "LSTM waves, concatenate",
            [[0.19475411, 0.06752098, 0.07042462, -0.10427895], [0.20962581, 0.11167581, 0.06356771, -0.17162837]],
        ),
        ("LSTM waves, sum", [[0.26517874, -0.03675797], [0.27319351, -0.05995256]]),
    ],
)
def test_keras_computes_the_same_in_both_directions(answers: dict, name: str, expected: list) -> None:
    assert close(answers[name][0][1], expected)


# Mistakes: each is told by the name of the argument.


class Mine(jaxrnn.GRU):
    """A user's cell, which may compute anything."""


ELMAN, GRU, LSTM = (stack(kind)[0] for kind in ("tanh", "GRU", "LSTM"))
RELU, RESETS = jaxrnn.Elman(D, H, "relu"), jaxrnn.GRU(D, H, reset="before")
weights = [np.ones(array.shape) for array in interop.to_keras(GRU, params_of((GRU,))[0])]

KERAS_IN: dict[str, tuple] = {
    "an unknown kind": (("RNN", weights), ValueError, "kind must be one of 'SimpleRNN'"),
    "an unknown activation": (("SimpleRNN", weights, "sigmoid"), ValueError, "activation must be one of"),
    "an activation of a GRU": (("GRU", weights, "relu"), ValueError, "activation is for .* GRU"),
    "an unknown merge": (("GRU", weights, "tanh", "concat"), ValueError, "merge must be one of"),
    "a merge of one": (("GRU", weights, "tanh", "sum"), ValueError, "merge is for a Bidirectional"),
    "one array": (("GRU", weights[0]), TypeError, "weights must be the list .* got ndarray"),
    "one array in a list": (("GRU", weights[:1]), ValueError, "weights must be 2 or 3 .* got 1"),
    "five arrays": (("GRU", (weights * 2)[:5]), ValueError, "weights must be 2 or 3 .* got 5"),
    "another kind": (("LSTM", weights), ValueError, r"weights\[0\] must have shape \(3, 20\), got \(3, 15\); .* LSTM"),
    "an unknown reset": (("GRU", weights, "tanh", "concatenate", "never"), ValueError, "reset must be one of"),
    "a reset of an LSTM": (
        ("LSTM", constants("LSTM", D, H), "tanh", "concatenate", "before"),
        ValueError,
        "reset is for a GRU, got 'before' with weights of LSTM",
    ),
    "reset before, and two biases": (
        ("GRU", weights, "tanh", "concatenate", "before"),
        ValueError,
        r"weights\[2\] must have shape \(15,\), got \(2, 15\).* reset_after=False",
    ),
    "reset after, and one bias": (
        ("GRU", [*weights[:2], np.ones(15)], "tanh", "concatenate", "after"),
        ValueError,
        r"weights\[2\] must have shape \(2, 15\), got \(15,\).* reset_after=True",
    ),
    "reset before, backwards alone": (
        ("GRU", [*weights, *weights[:2], np.ones(15)]),
        ValueError,
        r"weights\[5\] must have shape \(2, 15\), got \(15,\)",
    ),
    "a bias of one": (("GRU", [*weights[:2], np.ones((2, 1))]), ValueError, r"weights\[2\] must have shape \(2, 15\)"),
    "transposed": (("GRU", [weights[0].T, *weights[1:]]), ValueError, r"weights\[0\] must have shape \(15, 15\)"),
    "a scalar": (("GRU", [np.float32(1), *weights[1:]]), ValueError, r"weights\[0\] must have shape .*, got \(\)"),
    "integers": (("GRU", [*weights[:2], np.ones((2, 15), int)]), TypeError, r"weights\[2\] must be floating"),
    "two layers": (
        ("LSTM", [np.ones((3, 20)), np.ones((5, 20)), np.ones((5, 20)), np.ones((5, 20))]),
        ValueError,
        "same",
    ),
}
KERAS_OUT: dict[str, tuple] = {
    "two layers": (((GRU, GRU), params_of((GRU, GRU))), TypeError, "layer must be an Elman"),
    "a user's cell": ((Mine(D, H), params_of((GRU,))[0]), TypeError, "layer must be an Elman.* got Mine"),
    "two kinds": ((jaxrnn.Bidirectional(ELMAN, GRU), ()), ValueError, "layer must have one kind.* Elman, GRU"),
    "two resets": ((jaxrnn.Bidirectional(GRU, RESETS), ()), ValueError, "layer must have one reset.* after, before"),
    "two activations": ((jaxrnn.Bidirectional(ELMAN, RELU), ()), ValueError, "layer must have one activation"),
    "another's parameters": ((GRU, params_of((LSTM,))[0]), TypeError, "params must have the structure"),
    "parameters of a stack": ((GRU, params_of((GRU,))), TypeError, "params must have the structure"),
}
MISTAKES = cases((interop.from_keras, KERAS_IN), (interop.to_keras, KERAS_OUT))


@pytest.mark.parametrize(("function", "arguments", "error", "message"), MISTAKES)
def test_mistakes_are_told(function: Any, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_the_arguments_beside_the_mistakes_are_right() -> None:
    assert interop.from_keras("GRU", weights)[0] == GRU
