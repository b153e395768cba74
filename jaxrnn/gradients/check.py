"""BPTT held against autodiff of the plain scan, central differences and RTRL: a report."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array
from jax.sharding import Mesh

from jaxrnn.arguments import cast, check_choice, check_positive
from jaxrnn.gradients import online
from jaxrnn.gradients.parallel import data_parallel
from jaxrnn.gradients.pieces import loss_of_pieces
from jaxrnn.gradients.truncation import Truncation
from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.network.network import Network, NetworkParams

EXACT = 1e-12  # float64 against float64: rounding only
SINGLE = 1e-5  # float32 against the float64 truth
DIFFERENCES = 1e-6  # central differences in float64, whose own error is of the order of 1e-9
FORWARD = 1e-10  # RTRL in float64: rounding, along another way
INFLUENCE = 2**27  # numbers that RTRL may carry; of a larger network it is left out


class Row(NamedTuple):
    """Holds what was found for one parameter. Errors are relative: max |a - b| / max |b|."""

    parameter: str
    bptt: float  # BPTT against the float64 truth, jax.grad of the plain scan
    autodiff: float  # jax.grad in the dtype asked for, against the same truth: zero by definition in float64
    bound: float  # for bptt
    differences: float  # BPTT in float64 along random directions against central differences
    forward: float | None  # BPTT in float64 against RTRL, forward in time; None where that was left out

    @property
    def passed(self) -> bool:
        """Tells whether all errors are within their bounds; NaN is not."""
        forward = self.forward is None or self.forward <= FORWARD
        return self.bptt <= self.bound and self.differences <= DIFFERENCES and forward


class Report(NamedTuple):
    """Holds the outcome of `check`."""

    rows: tuple[Row, ...]
    seconds: dict[str, float]  # of one loss and gradient, the median of several

    @property
    def passed(self) -> bool:
        """Tells whether every parameter passed."""
        return all(row.passed for row in self.rows)


def check(
    net: Network,
    steps: int = 50,
    batch: int = 8,
    *,
    dtype: str = "float32",
    segment: int | str = "auto",
    recompute: bool | str = False,
    truncate: Truncation | None = None,
    tokens: bool = False,
    mask: bool = False,
    reset: bool = False,
    seed: int = 0,
    directions: int = 5,
    mesh: Mesh | None = None,
) -> Report:
    """Compares the gradients of a network on random sequences with three references that share no code with them.

    The truth is `jax.grad` of the plain scan in float64. BPTT in float64 must match it to 1e-12; BPTT in float32 to
    1e-5, and be no worse than twice jax.grad's own error in float32. Central differences hold the truth itself to
    account: along random directions d of each parameter, (E(p + h d) - E(p - h d)) / 2h against the inner product of
    BPTT's gradient with d, the median over the directions, within 1e-6. And RTRL, which has no backward pass at all,
    within 1e-10 in float64, for one layer that is small enough (of 64 units, some seconds).

    A truncated gradient is not that of E, but that of the sum of the pieces that the truncation leaves, each a plain
    scan with the state before it held constant: autodiff and the differences are then of this sum, without RTRL.

    Parameters are random and W does not commute with its transpose, so that no transpose can hide. Needs no flag:
    float64 is switched on for the duration of the call only. Call it outside jit.

    Args:
        net: the network; its objective decides what targets are drawn.
        steps: T.
        batch: B.
        dtype: "float32" or "float64".
        segment, recompute, truncate: as for `jaxrnn.value_and_grad`.
        tokens: whether the inputs are integer tokens.
        mask, reset: whether a quarter of the steps is masked, where inputs are NaN; whether a quarter begins anew.
        seed: for parameters and sequences.
        directions: how many random directions for each parameter.
        mesh: with an axis "data", the devices that BPTT spreads the batch over; None is one device.

    Returns:
        A `Report` with a row for each parameter and the time of each method.

    Raises:
        TypeError, ValueError: a size below 1, an unknown dtype, options that `jaxrnn.value_and_grad` refuses, a batch
            that does not divide by the number of devices, a truncation of a network with `last_step`.

    >>> import jaxrnn, jaxrnn.gradients.check
    >>> net = jaxrnn.Network((jaxrnn.Elman(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    >>> jaxrnn.gradients.check.check(net, steps=7, batch=2, dtype="float64").passed
    True
    """
    check_choice("dtype", dtype, ("float32", "float64"))
    for name, value in (("steps", steps), ("batch", batch), ("directions", directions)):
        check_positive(name, value)
    key = jax.random.key(seed)
    by_hand = value_and_grad(net, segment, recompute, truncate)
    loss = _loss(net, truncate)
    autodiff = "jax.grad" if truncate is None else "jax.grad of the pieces"
    methods = {
        "BPTT": jax.jit(by_hand if mesh is None else data_parallel(by_hand, mesh)),
        autodiff: jax.jit(lambda params, **given: jax.value_and_grad(loss)(params, params, **given)),
    }
    # Rounded to float32 first, so that both dtypes differentiate at the same point.
    params, given = problem(net, steps, batch, key, tokens=tokens, mask=mask, reset=reset)
    if dtype == "float32":
        found = {name: _timed(function, params, given) for name, function in methods.items()}
    with jax.enable_x64(True):
        double, given = cast((params, given), jnp.float64)
        exact = {name: _timed(function, double, given) for name, function in methods.items()}
        (hand, _), (truth, _) = exact.values()
        found = found if dtype == "float32" else exact
        at = jax.jit(lambda params: loss(params, double, **given))
        at(double)
        start = time.perf_counter()
        differences = _differences(at, double, hand, directions, jax.random.fold_in(key, 1))
        seconds = {name: took for name, (_, took) in found.items()}
        seconds["central differences"] = (time.perf_counter() - start) / directions
        forward: list[float | None] = [None] * len(differences)
        if truncate is None and _small(net, params, batch):
            by_rtrl, seconds["RTRL"] = _timed(jax.jit(online.value_and_grad(net)), double, given, repeats=1)
            forward = list(map(relative_error, *map(jax.tree.leaves, (hand, by_rtrl))))
    (mine, _), (theirs, _) = found.values()
    return Report(tuple(_rows(dtype, mine, theirs, truth, zip(differences, forward, strict=True))), seconds)


def _rows(
    dtype: str, by_hand: NetworkParams, autodiff: NetworkParams, truth: NetworkParams, others: Iterable[tuple]
) -> Iterator[Row]:
    """Yields a row for each parameter; `others` are the errors against differences and RTRL."""
    gradients = (jax.tree.leaves(grads) for grads in (by_hand, autodiff))
    for (path, true), mine, theirs, errors in zip(jax.tree.leaves_with_path(truth), *gradients, others, strict=True):
        own = relative_error(theirs, true)
        # Both errors are maxima over few roundings: below some units in the last place their ratio says nothing.
        bound = min(SINGLE, max(2 * own, 8 * float(np.finfo(np.float32).eps))) if dtype == "float32" else EXACT
        yield Row(jax.tree_util.keystr(path).lstrip("."), relative_error(mine, true), own, bound, *errors)


def _loss(net: Network, truncate: Truncation | None) -> Callable[..., Array]:
    """Returns the function of params, of the same held constant, and of the data whose gradient is looked for."""
    if truncate is None:
        return lambda params, _, **given: net.loss(params, **given)
    return functools.partial(loss_of_pieces, net, truncate)


def problem(
    net: Network, steps: int, batch: int, key: Array, *, tokens: bool, mask: bool, reset: bool
) -> tuple[NetworkParams, dict[str, Array | None]]:
    """Draws random parameters, float32, and the other arguments of a call, by name."""
    keys = jax.random.split(key, 6)
    params = net.init(keys[0])
    leaves, structure = jax.tree.flatten(params)
    # An orthogonal W commutes with its transpose, and zero biases hide their gradient's sign: move every parameter.
    moved = [
        leaf + 0.3 * jax.random.normal(jax.random.fold_in(keys[1], i), leaf.shape) / math.sqrt(leaf.shape[-1])
        for i, leaf in enumerate(leaves)
    ]
    D, V, shape = net.layers[0].inputs, net.readout.outputs, (steps, batch)
    inputs = jax.random.randint(keys[2], shape, 0, D) if tokens else jax.random.normal(keys[2], (*shape, D))
    read = shape[1:] if net.last_step else shape
    if net.objective in (softmax_cross_entropy, softmax_cross_entropy.checked):
        targets = jax.random.randint(keys[3], read, 0, V)
    else:
        targets = jax.random.uniform(keys[3], (*read, V))
    here, begins = (jax.random.bernoulli(key, share, shape) for key, share in zip(keys[4:], (0.75, 0.25), strict=True))
    if mask and not tokens:
        inputs = jnp.where(here[..., None], inputs, jnp.nan)
    given = {"inputs": inputs, "targets": targets, "mask": here if mask else None, "reset": begins if reset else None}
    return jax.tree.unflatten(structure, moved), given


def _small(net: Network, params: NetworkParams, batch: int) -> bool:
    """Tells whether RTRL takes the network, and whether what it carries fits the machine."""
    if len(net.layers) > 1 or net.bidirectional or net.last_step or net.learn_state or net.recurrent_dropout:
        return False
    n = sum(leaf.shape[-1] for leaf in jax.tree.leaves(net.initial_state()))
    return batch * n * sum(leaf.size for leaf in jax.tree.leaves(params.layers)) <= INFLUENCE


def relative_error(value: Any, truth: Any) -> float:
    """Computes max |value - truth| / max |truth|, in float64."""
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    return float(np.max(np.abs(value - truth)) / max(np.max(np.abs(truth)), np.finfo(np.float64).tiny))


def _differences(loss: Callable, params: Any, grads: Any, directions: int, key: Array) -> list[float]:
    """Computes the median error of each parameter's directional derivative, relative to the greatest of them."""
    leaves, structure = jax.tree.flatten(params)
    errors = []
    for i, (leaf, grad) in enumerate(zip(leaves, jax.tree.leaves(grads), strict=True)):
        h = 1e-5 * max(1.0, float(jnp.max(jnp.abs(leaf))))
        pairs = []
        for n in range(directions):
            d = jax.random.normal(jax.random.fold_in(key, n * len(leaves) + i), leaf.shape, leaf.dtype)
            d = d / jnp.linalg.norm(d)
            ahead, behind = (
                float(loss(jax.tree.unflatten(structure, [*leaves[:i], leaf + step * d, *leaves[i + 1 :]])))
                for step in (h, -h)
            )
            pairs.append((float(jnp.sum(grad * d)), (ahead - behind) / (2 * h)))
        scale = max(*(abs(reference) for _, reference in pairs), np.finfo(np.float64).tiny)
        errors.append(statistics.median(abs(mine - reference) for mine, reference in pairs) / scale)
    return errors


def _timed(
    function: Callable, params: NetworkParams, given: dict[str, Array | None], repeats: int = 5
) -> tuple[Any, float]:
    """Returns the gradient, and the median duration of a call after the one that compiles."""
    (_, grads), times = jax.block_until_ready(function(params, **given)), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(params, **given))
        times.append(time.perf_counter() - start)
    return grads, statistics.median(times)
