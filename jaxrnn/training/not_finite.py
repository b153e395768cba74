"""Where a loss or a gradient ceased to be finite: the two passes of one step taken again, looked at layer by layer."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.layer.both_ways import PreparedPair, forward_pair
from jaxrnn.layer.masking import blank
from jaxrnn.layer.scan import Residuals, forward_segment
from jaxrnn.network.batch import Batch, read
from jaxrnn.network.network import Network
from jaxrnn.network.passes import forward, inputs_of, last_hidden
from jaxrnn.network.setup import Setup, checked, set_up
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.step import GradientArguments

BATCH = "not_finite.npz"
LOWER = "a lower --rate, or a smaller --clip"
ADVICE = {  # by the quantity that went first
    "parameters": LOWER,
    "inputs": "other data: these are not numbers",
    "states": f"{LOWER}; for Elman cells a smaller --recurrent-scale, or --activation tanh",
    "outputs": LOWER,
    "targets": "other data: these are not numbers",
    "errors": f"{LOWER}, or targets of another scale",
    "gradient": f"{LOWER}; for Elman cells a smaller --recurrent-scale",
}


class Origin(NamedTuple):
    """Says what ceased to be finite first."""

    quantity: str  # one of `ADVICE`
    name: str  # in words, such as "the states of layer 0"
    step: int | None  # t, counted from 0, the first one forward, the last one backward; None where time has no part
    sequence: int | None  # the first of the batch, counted from 0
    largest: float  # the largest modulus that was finite there

    def __str__(self) -> str:
        place = "" if self.step is None else f" at t = {self.step}"
        place += "" if self.sequence is None else f" of sequence {self.sequence}"
        return f"{self.name} went first,{place}".rstrip(",") + f" (the largest that were finite: {self.largest:.2g})"

    @property
    def advice(self) -> str:
        """Returns what to try."""
        return ADVICE[self.quantity]


def find_origin(net: Network, arguments: GradientArguments) -> Origin | None:
    """Takes the two passes of a step again, and returns what ceased to be finite first; None where all is finite.

    The order is that of the passes: parameters, inputs, the states of every layer from the bottom, outputs, targets,
    errors; then what is carried back through every layer from the top, and the gradients.

    Args:
        net: the network, as it was trained.
        arguments: of the step, from `jaxrnn.training.step.gradient_arguments`.

    >>> import jax, jax.numpy as jnp, jaxrnn, optax
    >>> from jaxrnn.tasks.base import Sequences
    >>> from jaxrnn.training import not_finite, step
    >>> net = jaxrnn.Network((jaxrnn.Elman(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.squared_error)
    >>> train = step.initial_train_state(net, optax.sgd(0.1), 2, jax.random.key(0))
    >>> batch = Sequences(jnp.ones((7, 2, 3)).at[4, 1].set(jnp.nan), jnp.ones((7, 2, 5)))
    >>> print(not_finite.find_origin(net, step.gradient_arguments(net, train, batch)))
    the inputs went first, at t = 4 of sequence 1 (the largest that were finite: 1)
    """
    for quantity, name, tree, axes in _forward(net, arguments):
        if (found := _place(tree, axes)) is not None:
            return Origin(quantity, name, *found)
    for name, array, axes in _backward(net, arguments):
        if (found := _place(array[::-1] if axes else array, axes)) is not None:
            step, sequence, largest = found
            return Origin("gradient", name, None if step is None else array.shape[0] - 1 - step, sequence, largest)
    return None


def keep_batch(folder: pathlib.Path, batch: Sequences, step: int) -> None:
    """Writes a batch and the number of its step into `not_finite.npz`, arrays by the names of `Sequences`."""
    arrays = {name: np.asarray(leaf) for name, leaf in batch._asdict().items() if leaf is not None}
    np.savez(folder / BATCH, allow_pickle=False, step=np.array(step), **arrays)


def _forward(net: Network, arguments: GradientArguments) -> Iterator[tuple[str, str, Any, int]]:
    """Yields what the forward pass computes: quantity, name, arrays, and how many axes of time and batch they have."""
    params, inputs, targets, weights, state, mask, reset, key = arguments
    yield "parameters", "the parameters", params, 0
    yield "inputs", "the inputs", blank(mask, jnp.asarray(inputs)), 2
    yield "states", "the state carried from the batch before", state, 0
    setup = set_up(net, params, checked(net, params, Batch(inputs, targets, weights, mask, reset), state, key))
    final, kept = forward(setup.stack, "none", setup.state, setup.steps, _take)
    for i, residuals in enumerate(kept):
        states = residuals.states if isinstance(residuals, Residuals) else residuals.hidden
        yield "states", f"the states of layer {i}", states, 2
    yield from _loss(setup, final, kept)


def _take(layer: Any, *arguments: Any) -> Any:
    return (forward_pair if isinstance(layer, PreparedPair) else forward_segment)(layer, *arguments)


def _loss(setup: Setup, final: Any, kept: Any) -> Iterator[tuple[str, str, Any, int]]:
    """Yields what the readout and the objective compute."""
    net, last = setup.net, setup.call.last
    if last is None:
        top, loss, axes = inputs_of(setup.stack, setup.steps, kept)[-1], setup.steps.loss, 2
    else:
        top, loss, axes = last_hidden(net.layers, net.residual, final), last, 0
    assert loss is not None
    outputs = net.readout.apply(setup.loss.params, top)
    yield "outputs", "the outputs of the readout (logits)", blank(loss.there, outputs), axes
    targets = read(loss.targets, loss.there, outputs.dtype)
    yield "targets", "the targets", targets, axes
    yield "errors", "the errors E_t", blank(loss.there, net.objective(outputs, targets)), axes


def _backward(net: Network, arguments: GradientArguments) -> Iterator[tuple[str, chex.Array, int]]:
    """Yields what the reverse pass computes: name, array, and whether its axis is time."""
    one_way = not net.bidirectional
    value, grads = value_and_grad(net, return_flow=one_way)(*arguments)
    for i in reversed(range(len(net.layers) if one_way else 0)):
        yield f"the gradient carried back through layer {i}", value[1][i].adjoint, 1
    for path, leaf in jax.tree.leaves_with_path(grads):
        yield f"the gradient of {jax.tree_util.keystr(path).lstrip('.')}", leaf, 0


def _place(tree: Any, axes: int) -> tuple[int | None, int | None, float] | None:
    """Returns step and sequence of the first number that is not finite, and the largest that is; None where all are.

    Args:
        tree: arrays [T, B, ...], or [T] where `axes` is 1.
        axes: how many of time and batch they have; 0 for arrays that have other ones.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    leaves = [leaf.astype(np.float64) for leaf in leaves if not np.issubdtype(leaf.dtype, np.integer)]
    wrong = [leaf for leaf in leaves if not np.isfinite(leaf).all()]
    if not wrong:
        return None
    largest = max(float(np.abs(leaf[np.isfinite(leaf)]).max(initial=0.0)) for leaf in leaves)
    if not axes:
        return None, None, largest
    places = [np.argwhere(~np.isfinite(leaf))[0][:axes].tolist() for leaf in wrong]  # in order of time, then of batch
    first = [*min(places), None][:2]
    return first[0], first[1], largest
