"""Masks and resets: against autodiff, and against plain runs of the pieces that they make of a sequence."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error
from test_user_cells import Glider

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
T, B, D, H, V = 9, 3, 4, 5, 6
CELLS = [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM, Glider]
BREAKS = ["plain", "mask", "reset", "both"]


@dataclasses.dataclass
class Data:
    """A network of the cell and everything its loss takes, in float64."""

    Cell: type
    layers: int = 1
    tokens: bool = False
    breaks: str = "both"
    both_ways: bool = False

    def __post_init__(self):
        random = np.random.default_rng(5)
        width = 2 * H if self.both_ways else H
        cells = [self.Cell(D if i == 0 else width, H) for i in range(self.layers)]
        layers = [jaxrnn.Bidirectional(cell, cell) for cell in cells] if self.both_ways else cells
        self.net = jaxrnn.Network(tuple(layers), jaxrnn.Readout(width, V), jaxrnn.softmax_cross_entropy)
        shapes = jax.eval_shape(self.net.init, jax.random.key(0))
        self.params = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 2), shapes)
        self.inputs = jnp.asarray(random.integers(0, D, (T, B)) if self.tokens else random.normal(size=(T, B, D)))
        self.targets = jnp.asarray(random.integers(0, V, (T, B)))
        # Of one sign: a loss that all but cancels would show the rounding of its terms, 1e-10 of itself.
        self.weights = jnp.asarray(np.abs(random.normal(size=(T, B))))
        zeros = jax.eval_shape(lambda: self.net.initial_state((B,), jnp.float64))
        self.state = jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape)), zeros)
        mask, reset = random.random((T, B)) < 0.6, random.random((T, B)) < 0.3
        self.mask = jnp.asarray(mask) if self.breaks in ("mask", "both") else None
        self.reset = jnp.asarray(reset) if self.breaks in ("reset", "both") else None

    def arguments(self):
        return self.params, self.inputs, self.targets, self.weights, self.state, self.mask, self.reset

    def pieces(self):
        """For every sequence the index arrays of its runs from one reset to the next, unmasked steps only."""
        mask = np.ones((T, B), bool) if self.mask is None else np.asarray(self.mask)
        reset = np.zeros((T, B), bool) if self.reset is None else np.asarray(self.reset)
        for b in range(B):
            edges = [0, *(t for t in range(T) if reset[t, b] and t > 0), T]
            for first, last in itertools.pairwise(edges):
                steps = np.array([t for t in range(first, last) if mask[t, b]], int)
                yield b, first == 0 and not reset[0, b], steps

    def loss_in_pieces(self, params):
        """The loss with neither mask nor reset in use: every piece on its own, by the plain scan."""
        E, final = 0.0, {}
        for b, continued, steps in self.pieces():
            state = jax.tree.map(lambda leaf, b=b: leaf[b], self.state)
            state = state if continued else self.net.initial_state((), jnp.float64)
            if len(steps):
                sequence = (array[steps, b] for array in (self.inputs, self.targets, self.weights))
                error, state = self.net.loss(params, *sequence, state, return_state=True)
                E += error
            final[b] = state
        return E, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(final[b] for b in range(B)))


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "tokens"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("Cell", CELLS)
def test_value_and_grad_equals_autodiff(Cell, breaks, both_ways, layers, tokens):
    data = Data(Cell, layers, tokens, breaks, both_ways)
    truth = jax.jit(jax.value_and_grad(lambda *a: data.net.loss(*a, return_state=True), has_aux=True))
    by_hand = jax.jit(jaxrnn.value_and_grad(data.net, 4, return_state=True))
    assert relative_error(by_hand(*data.arguments()), truth(*data.arguments())) <= EXACT


@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("Cell", CELLS)
def test_the_loss_is_that_of_the_pieces(Cell, breaks):
    """Packed equals apart, padded equals cut, with holes equals without; gradient and final state too."""
    data = Data(Cell, 1, False, breaks)
    truth = jax.jit(jax.value_and_grad(data.loss_in_pieces, has_aux=True))(data.params)
    by_hand = jax.jit(jaxrnn.value_and_grad(data.net, 4, return_state=True))
    assert relative_error(by_hand(*data.arguments()), truth) <= EXACT


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("breaks", BREAKS)
@pytest.mark.parametrize("Cell", CELLS)
def test_unroll_gradient_equals_autodiff(Cell, breaks, reverse):
    """To parameters, inputs and state, through the hidden states, the held ones too, and the final state."""
    data = Data(Cell, 1, False, breaks)
    cell, flags = data.net.layers[0], {"mask": data.mask, "reset": data.reset, "reverse": reverse}

    def error(params, inputs, state, gradient):
        hidden, final = jaxrnn.unroll(cell, params, inputs, state, gradient=gradient, **flags)
        return jnp.sum(jnp.sin(hidden)) + sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(final))

    gradient = jax.jit(jax.value_and_grad(error, (0, 1, 2)), static_argnums=3)
    arguments = data.params.layers[0], data.inputs, data.state[0]
    assert relative_error(gradient(*arguments, "bptt"), gradient(*arguments, "autodiff")) <= EXACT


@pytest.mark.parametrize("Cell", CELLS)
def test_unroll_backwards_is_unroll_of_the_reversed(Cell):
    data = Data(Cell)
    cell, params = data.net.layers[0], data.params.layers[0]
    backwards, last = jaxrnn.unroll(cell, params, data.inputs, mask=data.mask, reset=data.reset, reverse=True)
    forwards, final = jaxrnn.unroll(cell, params, data.inputs[::-1], mask=data.mask[::-1], reset=data.reset[::-1])
    assert relative_error((backwards, last), (forwards[::-1], final)) <= EXACT


@pytest.mark.parametrize(("tokens", "jit"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("gradient", ["bptt", "autodiff"])
@pytest.mark.parametrize("Cell", CELLS)
def test_what_stands_at_a_masked_step_is_of_no_consequence(Cell, gradient, tokens, jit):
    """NaN, tokens and labels out of range, and NaN weights change no bit of loss or gradient."""
    data = Data(Cell, 2, tokens)
    bptt, autodiff = jaxrnn.value_and_grad(data.net), jax.value_and_grad(data.net.loss)
    function = bptt if gradient == "bptt" else autodiff
    function = jax.jit(function) if jit else function
    clean = function(*data.arguments())
    there = data.mask if tokens else data.mask[..., None]
    data.inputs = jnp.where(there, data.inputs, 10**6 if tokens else jnp.nan)
    data.targets = jnp.where(data.mask, data.targets, -7)
    data.weights = jnp.where(data.mask, data.weights, jnp.nan)
    assert relative_error(function(*data.arguments()), clean) == 0


def test_masked_inputs_get_no_gradient():
    data = Data(jaxrnn.Elman, breaks="mask")
    cell, params = data.net.layers[0], data.params.layers[0]
    inputs = jnp.where(data.mask[..., None], data.inputs, jnp.nan)
    dx = jax.grad(lambda inputs: jaxrnn.unroll(cell, params, inputs, mask=data.mask)[0].sum())(inputs)
    assert jnp.all((dx == 0).all(-1) == ~data.mask)


@pytest.mark.parametrize("Cell", CELLS)
def test_nothing_there_gives_zero(Cell):
    """An all-False mask: loss 0, gradient 0, the state as it was."""
    data = Data(Cell, 2)
    mask = jnp.zeros((T, B), bool)
    value_and_grad = jaxrnn.value_and_grad(data.net, return_state=True)
    (E, final), grads = value_and_grad(data.params, data.inputs, data.targets, state=data.state, mask=mask)
    assert E == 0
    assert all(jnp.all(leaf == 0) for leaf in jax.tree.leaves(grads))
    assert relative_error(final, data.state) == 0


def test_default_weights_count_the_steps_that_are_there():
    data = Data(jaxrnn.Elman)
    loss = data.net.loss(data.params, data.inputs, data.targets, mask=data.mask)
    weights = data.mask / data.mask.sum()
    assert relative_error(loss, data.net.loss(data.params, data.inputs, data.targets, weights, mask=data.mask)) <= EXACT


def test_lengths_make_the_mask():
    mask = jaxrnn.lengths_to_mask(jnp.array([[0, 2], [3, 1]]), 3)
    assert mask.shape == (3, 2, 2)
    assert mask.sum(0).tolist() == [[0, 2], [3, 1]]
    assert mask[:, 0, 1].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("lengths", "error", "words"),
    [
        ([4], ValueError, "lengths must lie in 0 .. T = 3"),
        ([-1], ValueError, "lengths must lie in 0 .. T = 3"),
        ([1.0], TypeError, "lengths must be integers"),
    ],
)
def test_wrong_lengths_are_told(lengths, error, words):
    with pytest.raises(error, match=words):
        jaxrnn.lengths_to_mask(jnp.array(lengths), 3)


@pytest.mark.parametrize("name", ["mask", "reset"])
@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (np.ones((T, B)), TypeError, "must be boolean, got dtype float64"),
        (np.ones((T, B), int), TypeError, "must be boolean, got dtype int64"),
        (np.ones((B, T), bool), ValueError, "time comes first"),
        (np.ones(T, bool), ValueError, "nothing is broadcast"),
    ],
)
def test_wrong_masks_and_resets_are_told(name, value, error, words):
    data = Data(jaxrnn.Elman)
    cell, params = data.net.layers[0], data.params.layers[0]
    calls = [
        lambda **flags: jaxrnn.unroll(cell, params, data.inputs, **flags),
        lambda **flags: data.net.loss(data.params, data.inputs, data.targets, **flags),
        lambda **flags: jaxrnn.value_and_grad(data.net)(data.params, data.inputs, data.targets, **flags),
    ]
    for call in calls:
        with pytest.raises(error, match=f"{name} .*{words}"):
            call(**{name: value})


def test_a_mask_changes_content_without_recompiling():
    data = Data(jaxrnn.Elman)
    traces = []

    @jax.jit
    def function(*arguments):
        traces.append(1)
        return jaxrnn.value_and_grad(data.net)(*arguments)

    function(*data.arguments())
    function(*data.arguments()[:-2], ~data.mask, ~data.reset)
    assert len(traces) == 1
