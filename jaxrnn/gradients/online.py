"""Gradients forward in time: RTRL, which is exact, and two cheaper relatives. No backward pass, no states kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jaxrnn.arguments import as_array, cast, cast_like, check_choice, check_like, check_positive
from jaxrnn.cells.base import State, hidden_of
from jaxrnn.gradients.influence import METHODS, Method
from jaxrnn.gradients.parallel import BatchGradient
from jaxrnn.gradients.value_and_grad import value_and_grad as bptt
from jaxrnn.layer.masking import enter, leave
from jaxrnn.layer.scan import check_state
from jaxrnn.layer.sharding import sum_over_shards, vary_alike
from jaxrnn.network.batch import Batch, Call, Steps, read
from jaxrnn.network.network import Network, NetworkParams, start_states
from jaxrnn.network.setup import checked, set_up
from jaxrnn.printing import as_text


class Carry(NamedTuple):
    """Holds what goes from call to call."""

    state: State  # of the layer, [*batch, H]
    influence: ArrayTree  # ds_t/dtheta, as far as the method keeps it

    def __repr__(self) -> str:
        return as_text(self)


def value_and_grad(
    net: Network, method: Method = "rtrl", *, unroll: int = 1
) -> Callable[..., tuple[Any, NetworkParams]]:
    """Computes the loss of a network and its gradient forward in time: for learning at every step, while it happens.

        P_t = J_t P_{t-1} + d+ s_t/dtheta        dE/dtheta = sum_t (dE_t/ds_t) P_t        J_t = ds_t/ds_{t-1}

    theta are the weights of the recurrent layer, P_t = ds_t/dtheta is the influence that they have had so far, and
    d+ the immediate derivative, s_{t-1} held constant. What is kept of P and J makes the method:

        "rtrl"   all of it: the gradient of BPTT, exactly. B n P numbers for n numbers of a state and P weights, and
                 B n^2 P operations for every step: for some tens of units.
        "snap1"  of P what a weight reaches in one step, the p numbers of its own unit; of J what units do to
                 themselves. B p P numbers and B p^2 P operations for every step, p = 1, of an LSTM 2: the order of
                 BPTT's, but elementwise and for each sequence apart, and some times slower where BPTT is matrix
                 products. Exact where units do not see one another. In a GRU that resets before the product r_t of
                 one unit reaches all others within the step: of that too only what reaches its own unit is kept.
        "rflo"   as snap1, and J without any recurrent weight: of a GRU the way through z_t, of an LSTM that through
                 f_t. A plain Elman cell has no such way: there only the immediate derivative is left, BPTT truncated
                 to the step itself. The errors come back through V^T as they do in BPTT; the random feedback of the
                 paper is not offered.

    No T is too long, and nothing waits for the end of a sequence. Where that is not needed, BPTT is far cheaper.

    Args:
        net: a network of one layer that is not bidirectional, without dropout, `last_step` or a learned initial state.
        method: "rtrl", "snap1" or "rflo".
        unroll: how many steps one turn of the compiled loop takes, as for `lax.scan`.

    Returns:
        A function `(params, inputs, targets, weights=None, carry=None, mask=None, reset=None) -> ((E, carry), grads)`,
        the arguments those of `jaxrnn.value_and_grad`, a single step (T = 1) included. The carry goes into the next
        call, with the same method; None begins. Where parameters change between calls, the influence is that of the
        ones before, as in all real-time learning, and small steps are what keeps it right. Weights left out are those
        of each call by itself: calls of one step each add up to T times the gradient of one call. It is pure, and not
        jitted.

    Raises:
        TypeError: net is not a Network; for "snap1" and "rflo" a cell without `own_operands`; a carry of another kind.
        ValueError: an unknown method, a network of another kind, a carry of another batch; for "snap1" and "rflo" a
            weight whose first axis is not a multiple of H; and all that `jaxrnn.value_and_grad` says.

    Source: Williams & Zipser (1989), "A learning algorithm for continually running fully recurrent neural networks";
    Menick et al. (2021), "Practical real time recurrent learning with a sparse approximation"; Murray (2019), "Local
    online learning in recurrent networks with random feedback".

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> step, carry = jax.jit(jaxrnn.online.value_and_grad(net)), None
    >>> for t in range(12):  # an update at every step
    ...     (loss, carry), grads = step(params, tokens[t : t + 1], tokens[t + 1 : t + 2], carry=carry)
    ...     params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    >>> grads.layers[0].W.shape
    (8, 8)
    """
    return _OnlineValueAndGrad(net, method, unroll)


@dataclasses.dataclass(frozen=True)
class _OnlineValueAndGrad(BatchGradient):
    """Computes loss and gradients forward in time, as `value_and_grad` documents it."""

    net: Network
    method: Method
    unroll: int

    def __post_init__(self) -> None:
        check_positive("unroll", self.unroll)
        _check_network(self.net, self.method)

    def check(
        self,
        params: NetworkParams,
        inputs: Array,
        targets: Array,
        weights: Array | None = None,
        carry: Carry | None = None,
        mask: Array | None = None,
        reset: Array | None = None,
    ) -> Call:
        """Returns the arguments of a call, checked; the carry is the state before it."""
        call = checked(self.net, params, Batch(inputs, as_array("targets", targets), weights, mask, reset))
        if carry is None:
            return call
        (state,), _ = start_states(self.net, call, None)
        expected = jax.eval_shape(lambda: METHODS[self.method](self.net.layers[0], params.layers[0], state).nothing())
        return dataclasses.replace(call, state=_check_carry(self.net.layers[0], carry, state, expected))

    def compute(self, params: NetworkParams, call: Call, axes: tuple[str, ...] = ()) -> tuple[Any, NetworkParams]:
        """Takes all steps, and sums what each adds to the gradients."""
        carry, call = call.state, dataclasses.replace(call, state=(None,))
        setup = set_up(self.net, params, call, axes=axes)
        ((layer,), (state,)) = setup.stack.layers, setup.state
        influence = METHODS[self.method](layer.cell, layer.params, state)
        nothing = vary_alike(influence.nothing(), state)
        carry = carry if isinstance(carry, Carry) else Carry(state, nothing)

        def step(now: tuple, steps: Steps) -> tuple[tuple, None]:
            state, reached, sums = now
            x, flags = read(steps.inputs, steps.flags.mask, call.dtype), steps.flags
            before = enter(flags, layer.initial, state)
            reached = enter(flags, nothing, reached)  # no weight had any influence on the initial state
            after, moved = influence.ahead(before, x, reached)
            after, moved = leave(flags, (before, reached), (after, moved))
            assert steps.loss is not None
            E, g, readout = setup.loss.backward(hidden_of(after), steps.loss)
            return (after, moved, jax.tree.map(jnp.add, sums, (E, influence.gradient(g, moved), readout))), None

        E, zeros, _ = setup.zeros
        now = vary_alike((*carry, (E, zeros.layers[0], zeros.readout)), setup.call)
        (state, reached, sums), _ = lax.scan(step, now, setup.steps, unroll=self.unroll)
        E, grads, readout = setup.total(sums)
        grads = sum_over_shards(NetworkParams((grads,), readout), params)
        return (E, Carry(state, reached)), cast_like(grads, params)

    def spread(self, batch: PartitionSpec) -> Any:
        """Returns how the value is spread: the carry as the batch is."""
        return PartitionSpec(), batch


def _check_carry(cell: Any, carry: Carry, start: State, influence: ArrayTree) -> Carry:
    """Returns state and influence to go on from, in the dtype that is computed in."""
    if not isinstance(carry, Carry):
        raise TypeError(f"carry must be the Carry that the call before returned, or None, got {type(carry).__name__}")
    *batch, _ = hidden_of(start).shape
    state = check_state(cell, carry.state, tuple(batch), hidden_of(start).dtype, "carry.state")
    cause = "the carry must be one of this network, method and batch"
    check_like("carry.influence", carry.influence, influence, cause)
    return Carry(state, cast(carry.influence, hidden_of(start).dtype))


def _check_network(net: Network, method: Method) -> None:
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    check_choice("method", method, tuple(METHODS))
    if len(net.layers) != 1 or net.bidirectional:
        raise ValueError(f"net must have one layer that reads forward only, got {net.layers}")
    for name in ("recurrent_dropout", "last_step", "learn_state"):
        if getattr(net, name):
            raise ValueError(f"net must not have {name}: gradients forward in time do not know of it")
    cell: Any = net.layers[0]
    own = jax.eval_shape(lambda key: cell.own_operands(cell.prepare(cell.init(key))), jax.random.key(0))
    if method != "rtrl" and own is None:
        raise TypeError(f"method {method!r} needs a cell with a method own_operands, which {cell} does not have")


class Comparison(NamedTuple):
    """Compares one method with BPTT."""

    cosine: float  # of the two gradients of the layer, all its weights together; the readout's is the same in both
    ratio: float  # of their norms
    by_weight: dict[str, tuple[float, float]]  # the same for each weight, those of the readout included


class Comparisons(NamedTuple):
    """Compares every method with BPTT; printed, it is a table."""

    methods: dict[Method, Comparison]

    def __str__(self) -> str:
        names = list(next(iter(self.methods.values())).by_weight)
        rows = [f"{'':8}" + "".join(f"{name:>20}" for name in ("layer", *names))]
        for method, found in self.methods.items():
            pairs = [(found.cosine, found.ratio), *found.by_weight.values()]
            rows.append(f"{method:8}" + "".join(f"{f'{cosine:.4f}, {ratio:.3f}':>20}" for cosine, ratio in pairs))
        return "\n".join([*rows, "cosine with the gradient of BPTT, and norm against its norm"])


def compare(net: Network, params: NetworkParams, inputs: Array, targets: Array, **options: Array) -> Comparisons:
    """Measures how far each method's gradient is from that of BPTT, on one batch.

        cosine = <a, b> / (|a| |b|)        ratio = |a| / |b|        a: the method's gradient, b: that of BPTT

    The readout sees no recurrence: its gradient is exact in all methods, and is left out of the figures for the layer.

    Args:
        net, params, inputs, targets: as for `value_and_grad`.
        options: weights, mask and reset.

    Returns:
        `Comparisons`, which print as a table. A gradient of zero has a cosine of 0.

    Raises:
        TypeError, ValueError: as for `value_and_grad`.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (13, 2), 0, 5)
    >>> report = jaxrnn.online.compare(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> round(report.methods["rtrl"].cosine, 4), list(report.methods["rtrl"].by_weight)
    (1.0, ['U', 'W', 'b', 'V', 'c'])
    """
    _, truth = jax.jit(bptt(net))(params, inputs, targets, **options)
    found: dict[Method, Comparison] = {}
    for method in METHODS:
        _, grads = jax.jit(value_and_grad(net, method))(params, inputs, targets, **options)
        pairs = [(grads.layers[0], truth.layers[0]), (grads.readout, truth.readout)]
        by_weight = {
            jax.tree_util.keystr(path).lstrip("."): _angle(mine, true)
            for part, true_part in pairs
            for (path, mine), true in zip(jax.tree.leaves_with_path(part), jax.tree.leaves(true_part), strict=True)
        }
        found[method] = Comparison(*_angle(*pairs[0]), by_weight)
    return Comparisons(found)


def _angle(mine: ArrayTree, true: ArrayTree) -> tuple[float, float]:
    a, b = (np.asarray(ravel_pytree(tree)[0], np.float64) for tree in (mine, true))
    size, true_size = float(np.linalg.norm(a)), float(np.linalg.norm(b))
    return float(a @ b) / max(size * true_size, 1e-300), size / max(true_size, 1e-300)
