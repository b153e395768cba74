"""Objectives: the error E_t of a step, and beside it dE_t/dO_t, the gradient that the reverse pass starts from.

An objective maps outputs O_t [..., V] (the network's scores, before any softmax or sigmoid) and targets to E_t [...].
Any such function is an objective; with one that carries its own gradient, the reverse pass needs no `jax.vjp`.

`yhat - y` is dE/dO, not dE/dyhat: dE_t/dyhat_t = -y_t / yhat_t, and the softmax Jacobian diag(yhat) - yhat yhat^T
turns one into the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax import lax
from jax.experimental import checkify

from jaxrnn.arguments import OTHER_VOCABULARY, as_array, cause_of_shape, is_concrete, is_integer, widened
from jaxrnn.layer.masking import blank
from jaxrnn.network.batch import LossSteps, read
from jaxrnn.network.readout import Readout, ReadoutParams

SLACK = 1e-2  # of probabilities and their sum: in bfloat16, where each is rounded, a sum is off by up to 4e-3

Error = Callable[[Array, Array], Array]  # (outputs, targets) -> E_t
ErrorAndGradient = Callable[[Array, Array], tuple[Array, Array]]  # (outputs, targets) -> (E_t, dE_t/dO_t)
Rules = Callable[[Any, int], list["Rule"]]  # (targets, V) -> what must be true of them

LABELS = "of a one-hot array, labels are targets.argmax(-1)"
NEGATIVE = (
    "targets must be labels or probabilities, got values from {low} to {high}; "
    "a softmax is held against neither scores nor logarithms"
)
SUMS = (
    "targets of probabilities must sum to one over the outputs, got sums from {low} to {high}; "
    "several answers at once are for jaxrnn.sigmoid_cross_entropy, and a step that counts more for weights"
)
OUTSIDE = "targets must lie in 0 .. 1, got values from {low} to {high}; other numbers are for jaxrnn.squared_error"
NUMBERS = "one number for each output, targets[..., None] of a single one; labels are for softmax_cross_entropy"


class Rule(NamedTuple):
    """Holds what must be true of the values of targets, and what to say where it is not."""

    holds: Any  # bool
    words: str  # with {low} and {high}
    low: Any
    high: Any


class Objective:
    """Wraps a function `(outputs, targets) -> E_t` that may carry its own gradient, added by `with_gradient`.

    Args:
        function: computes E_t.
        rules: gives what must be true of targets, as an array of NumPy or JAX, for so many outputs.
        staged: checks these where they are traced too, see `checked`.
    """

    def __init__(self, function: Error, rules: Rules = lambda targets, outputs: [], staged: bool = False) -> None:
        functools.update_wrapper(self, function)
        self.__name__ = function.__name__ + ".checked" * staged
        self._function, self._rules, self._staged = function, rules, staged
        self._value_and_gradient: ErrorAndGradient | None = None
        self._unchecked: Objective | None = None  # what this is the checked one of

    def __reduce__(self) -> Any:
        """Lets copies be the objective itself, and pickles hold its name, as they do of functions."""
        return self.__name__ if self._unchecked is None else (getattr, (self._unchecked, "checked"))

    @functools.cached_property
    def checked(self) -> Objective:
        """Returns the same objective, which reads the values of targets under `jax.jit` as well.

        What is jitted with it is to be called through `chex.chexify` with async_check=False, which raises what is found
        as a ValueError (by default at the end of the program only), or through `jax.experimental.checkify.checkify`;
        else JAX says so. It costs a pass over the targets.

        >>> import chex, jax, jax.numpy as jnp, jaxrnn
        >>> error = chex.chexify(jax.jit(jaxrnn.sigmoid_cross_entropy.checked), async_check=False)
        >>> try:
        ...     error(jnp.zeros((1, 2)), jnp.array([[0.0, 3.0]]))
        ... except ValueError as found:
        ...     print(str(found).partition(";")[0])
        targets must lie in 0 .. 1, got values from 0.0 to 3.0
        """
        made = Objective(self._function, self._rules, staged=True)
        made._value_and_gradient, made._unchecked = self._value_and_gradient, self
        return made

    def check_values(self, targets: Array, outputs: int) -> None:
        """Raises where the values of targets are not what they must be for so many outputs.

        Traced values cannot be read: `checked` has checks of these staged, and without it there is none.
        """
        if targets.size == 0:
            return
        if is_concrete(targets):
            values = np.asarray(targets)  # not jnp, whose operations on a constant are staged too
            for rule in self._rules(values if is_integer(values) else values.astype(np.float32), outputs):
                if not rule.holds:
                    raise ValueError(rule.words.format(low=rule.low, high=rule.high))
        elif self._staged:
            for rule in self._rules(targets, outputs):
                checkify.check(rule.holds, rule.words, low=rule.low, high=rule.high)

    def with_gradient(self, function: ErrorAndGradient) -> ErrorAndGradient:
        """Adds the function `(outputs, targets) -> (E_t, dE_t/dO_t)`, as a decorator."""
        self._value_and_gradient = function
        return function

    def __call__(self, outputs: Array, targets: Array) -> Array:
        """Computes E_t, [...]; raises where outputs are no numbers [..., V], or targets are none."""
        outputs, targets = as_array("outputs", outputs), as_array("targets", targets)
        if outputs.ndim < 1 or outputs.shape[-1] == 0 or outputs.dtype == bool:
            raise ValueError(f"outputs must be numbers [..., V], got {outputs.dtype} of shape {outputs.shape}")
        errors = self._function(outputs, targets)
        self.check_values(targets, outputs.shape[-1])
        return errors

    def __repr__(self) -> str:
        return self.__name__


def value_and_gradient(objective: Error, outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Computes E_t [...] and dE_t/dO_t [..., V] of all steps, by the objective's own gradient or else by `jax.vjp`."""
    if isinstance(objective, Objective) and objective._value_and_gradient is not None:
        found = objective._value_and_gradient(outputs, targets)  # shapes first
        if is_concrete(targets):
            objective.check_values(targets, outputs.shape[-1])
        return found
    errors, pullback = jax.vjp(lambda outputs: objective(outputs, targets), outputs)
    return errors, pullback(jnp.ones_like(errors))[0]


class Loss(NamedTuple):
    """Holds the readout, its parameters in the dtype that is computed in, and the objective."""

    readout: Readout
    objective: Error
    params: ReadoutParams

    def backward(self, hidden: Array, steps: LossSteps) -> tuple[Array, Array, ReadoutParams]:
        """Computes sum_t w_t E_t, g_t and the readout's gradients: the only place where logits exist.

            O_t = V s_t + c        e_t = w_t dE_t/dO_t        g_t = V^T e_t

        Args:
            hidden: what the readout sees, [K, *batch, H].
            steps: targets and weights of these steps.
        """
        chex.assert_tree_shape_prefix((hidden, steps), steps.weights.shape)
        outputs = self.readout.apply(self.params, hidden)  # [K, *batch, V]
        targets = read(steps.targets, steps.there, outputs.dtype)
        errors, e = blank(steps.there, value_and_gradient(self.objective, outputs, targets))
        weights = steps.weights
        g, grads = self.readout.adjoint(self.params, hidden, weights[..., None] * e)
        return jnp.sum(weights * errors, dtype=weights.dtype), g, grads


def _labels_or_distributions(targets: Array, outputs: int) -> list[Rule]:
    """Says that labels lie in range; that probabilities are not negative, and sum to one unless all are zero."""
    low, high = targets.min(), targets.max()
    if is_integer(targets):
        words = f"targets must lie in 0 .. {outputs - 1}, got values from {{low}} to {{high}}; {OTHER_VOCABULARY}"
        return [Rule((low >= 0) & (high < outputs), words, low, high)]
    sums = targets.sum(-1)
    one = ((sums == 0) | (abs(sums - 1) <= SLACK)).all()
    return [Rule(low >= 0, NEGATIVE, low, high), Rule(one, SUMS, sums.min(), sums.max())]


def _probabilities(targets: Array, outputs: int) -> list[Rule]:
    """Says that every target lies in 0 .. 1."""
    low, high = targets.min(), targets.max()
    return [Rule((low >= 0) & (high <= 1 + SLACK), OUTSIDE, low, high)]


@functools.partial(Objective, rules=_labels_or_distributions)
def softmax_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Computes the cross-entropy of a softmax over the outputs, in nats.

        yhat_t = softmax(O_t)        E_t = - sum_i y_t[i] log yhat_t[i]        dE_t/dO_t = yhat_t - y_t

    Args:
        outputs: O_t, [..., V].
        targets: integer labels [...], or probabilities [..., V] that sum to one; all of them zero is no loss.

    Returns:
        E_t, [...], in nats. Values are read outside jit, and by `softmax_cross_entropy.checked` under it too; else,
        there, a label out of range gives NaN, and probabilities that sum to m give m times the cross-entropy of a
        softmax.

    Raises:
        ValueError: the shapes do not fit; a label is out of range; probabilities are negative, or do not sum to one
            (for more or less of a step's error there are weights).
        TypeError: targets are neither integers nor floats.

    Source: Bridle (1990), "Probabilistic interpretation of feedforward classification network outputs", section 3.

    >>> import jax.numpy as jnp, jaxrnn
    >>> float(jaxrnn.softmax_cross_entropy(jnp.zeros((1, 4)), jnp.array([2]))[0])  # log 4
    1.3862943649291992
    """
    return _softmax_cross_entropy_gradient(outputs, targets)[0]


@softmax_cross_entropy.with_gradient
def _softmax_cross_entropy_gradient(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """Computes E_t and dE_t/dO_t = yhat_t - y_t (for targets that sum to m: m yhat_t - y_t)."""
    _check_labels_or_probabilities(outputs, targets)
    highest = lax.stop_gradient(jnp.max(outputs, -1, keepdims=True))
    exponentials = jnp.exp(outputs - highest)  # [..., V]
    Z = jnp.sum(exponentials, -1, keepdims=True)
    log_Z = jnp.log(Z[..., 0])  # of outputs less the highest: large logits would cost E its last digits
    yhat = exponentials / Z
    if is_integer(targets):
        targets = widened(targets)
        y = jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
        return log_Z - (_picked(outputs, targets) - highest[..., 0]), yhat - y
    mass = jnp.sum(targets, -1)
    return mass * log_Z - jnp.sum(targets * (outputs - highest), -1), mass[..., None] * yhat - targets


@functools.partial(Objective, rules=_probabilities)
def sigmoid_cross_entropy(outputs: Array, targets: Array) -> Array:
    """Computes the binary cross-entropy of a sigmoid at every output, summed over the outputs, in nats.

        yhat_t = sigmoid(O_t)
        E_t = - sum_i y_t[i] log yhat_t[i] + (1 - y_t[i]) log(1 - yhat_t[i])        dE_t/dO_t = yhat_t - y_t

    Args:
        outputs: O_t, [..., V].
        targets: [..., V], each 0, 1 or between them; bool and integers are taken as numbers.

    Returns:
        E_t, [...], in nats, summed over the V outputs as the figures for piano rolls are
        (Boulanger-Lewandowski et al. 2012, section 5).

    Raises:
        ValueError: targets do not have the shape of the outputs; outside jit, or as by `sigmoid_cross_entropy.checked`,
            they are not all in 0 .. 1.

    >>> import jax.numpy as jnp, jaxrnn
    >>> float(jaxrnn.sigmoid_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0, 1]]))[0])  # 2 log 2
    1.3862943649291992
    """
    _check_same_shape(outputs, targets, NUMBERS)
    return jnp.sum(jax.nn.softplus(outputs) - targets * outputs, -1)


@sigmoid_cross_entropy.with_gradient
def _sigmoid_cross_entropy_gradient(outputs: Array, targets: Array) -> tuple[Array, Array]:
    return sigmoid_cross_entropy(outputs, targets), jax.nn.sigmoid(outputs) - targets


@Objective
def squared_error(outputs: Array, targets: Array) -> Array:
    """Computes the squared error, summed over the outputs.

        E_t = sum_i (O_t[i] - y_t[i])^2        dE_t/dO_t = 2 (O_t - y_t)

    Arguments are those of `jaxrnn.sigmoid_cross_entropy`, the targets any numbers; what is not of the shape of the
    outputs is an error here too.

    Returns:
        E_t, [...], in the square of the outputs' unit.

    >>> import jax.numpy as jnp, jaxrnn
    >>> float(jaxrnn.squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 4.0]]))[0])
    5.0
    """
    _check_same_shape(outputs, targets, NUMBERS)
    return jnp.sum(jnp.square(outputs - targets), -1)


@squared_error.with_gradient
def _squared_error_gradient(outputs: Array, targets: Array) -> tuple[Array, Array]:
    return squared_error(outputs, targets), 2 * (outputs - targets)


def _picked(outputs: Array, labels: Array) -> Array:
    """Returns O_t[label], [...]: NaN where the label is out of range (jax would count a negative one from the end)."""
    labels = jnp.where(labels < 0, outputs.shape[-1], labels)
    return jnp.take_along_axis(outputs, labels[..., None], -1, mode="fill")[..., 0]


def _check_labels_or_probabilities(outputs: Array, targets: Array) -> None:
    """Raises unless targets are integer labels, or floats in the shape of the outputs."""
    steps = outputs.shape[:-1]
    if is_integer(targets):
        if targets.shape != steps:
            one_hot = targets.shape == outputs.shape
            cause = LABELS if one_hot else cause_of_shape(targets.shape, steps)
            raise ValueError(f"targets of integer labels must have shape {steps}, got {targets.shape}; {cause}")
    elif not jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"targets must be integer labels or float probabilities, got dtype {targets.dtype}; {LABELS}")
    else:
        _check_same_shape(outputs, targets, "labels must be integers, targets.astype(jnp.int32)")


def _check_same_shape(outputs: Array, targets: Array, without_axis: str) -> None:
    """Raises unless targets have the shape of the outputs; says `without_axis` where only the last axis is missing."""
    if targets.shape != outputs.shape:
        steps = outputs.shape[:-1]
        cause = without_axis if targets.shape == steps else cause_of_shape(targets.shape[:-1], steps)
        raise ValueError(f"targets must have the shape {outputs.shape} of the outputs, got {targets.shape}; {cause}")
