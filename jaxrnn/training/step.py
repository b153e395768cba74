"""One jitted training step: an optax optimizer on gradients by BPTT, and the state that it goes on from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxrnn.arguments import check_above_zero, check_choice, check_positive, check_scale
from jaxrnn.cells.base import State
from jaxrnn.gradients.parallel import data_parallel
from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.devices import AXIS, shardings, spread

Step = Callable[["TrainState", Sequences], tuple["TrainState", dict[str, chex.Array]]]


class TrainState(NamedTuple):
    """Holds all that training goes on from."""

    params: NetworkParams
    optimizer_state: optax.OptState
    network_state: tuple[State, ...]  # carried from batch to batch
    step: chex.Array  # how many steps were taken
    key: chex.PRNGKey  # for everything random; it never changes, steps fold themselves in


def initial_train_state(
    net: Network, optimizer: optax.GradientTransformation, batch_size: int, key: chex.PRNGKey
) -> TrainState:
    """Returns the state before the first step."""
    key, key_params = jax.random.split(key)
    params = net.init(key_params)
    return TrainState(params, optimizer.init(params), net.initial_state((batch_size,)), jnp.zeros((), jnp.int32), key)


def spread_train_state(train: TrainState, mesh: Mesh) -> TrainState:
    """Spreads the carried state of the network over the devices of a mesh; all else is on each of them."""
    places = train_state_shardings(train, mesh)
    if jax.process_count() == 1:
        return jax.device_put(train, places)
    return jax.jit(lambda train: train, out_shardings=places)(train)


def train_state_shardings(train: TrainState, mesh: Mesh | None) -> TrainState:
    """Returns where every array of a train state lies, in the same structure; None for the mesh is one device."""
    everywhere = shardings(train, mesh)
    return everywhere._replace(network_state=shardings(train.network_state, mesh, AXIS))


def spread_batch(batch: Sequences, mesh: Mesh, last_step: bool = False) -> Sequences:
    """Spreads the sequences of a batch over the devices of a mesh, where their number divides by that of devices.

    Args:
        batch: the whole batch, on every process; each reads its own part of it.
        mesh: from `jaxrnn.training.devices.make_mesh`.
        last_step: whether targets have no axis of time, as those of a network with `last_step`.
    """
    divides = batch.inputs.shape[1] % mesh.size == 0
    of_steps, of_answers = ((None, AXIS), (AXIS,)) if divides else ((), ())
    inputs, mask, reset = spread((batch.inputs, batch.mask, batch.reset), mesh, *of_steps)
    targets = spread(batch.targets, mesh, *(of_answers if last_step else of_steps))
    return Sequences(inputs, targets, mask, reset, batch.fresh)


def adam(
    rate: float, steps: int, warmup: int = 100, clip: float = 1.0, decay: float = 0.0, accumulate: int = 1
) -> optax.GradientTransformation:
    """Makes Adam on clipped gradients; its rate rises linearly over `warmup` steps, then falls as a cosine.

    `clip` is the largest global norm. With a `decay` it is AdamW: parameters shrink by the rate times it at every step.
    With `accumulate`, gradients of so many batches are averaged before a step is taken.

    Raises:
        ValueError, TypeError: a rate or clip that is not a finite number above zero, steps or accumulate below 1, a
            warmup or decay that is negative or not finite.

    Source: Kingma & Ba (2015), algorithm 1; Pascanu, Mikolov & Bengio (2013), algorithm 1, for the clipping;
    Loshchilov & Hutter (2017), equation 5, for the cosine, and (2019), algorithm 2, for the decay.
    """
    for name, value in (("rate", rate), ("clip", clip)):
        check_above_zero(name, value)
    for name, value in (("steps", steps), ("accumulate", accumulate)):
        check_positive(name, value)
    for name, value in (("warmup", warmup), ("decay", decay)):
        check_scale(name, value)
    warmup = min(warmup, steps // 2)
    falling = optax.cosine_decay_schedule(rate, steps)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, steps) if warmup else falling
    chain = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=decay))
    return chain if accumulate == 1 else optax.MultiSteps(chain, accumulate).gradient_transformation()


class AveragingState(NamedTuple):
    """Holds the state of an optimizer that averages parameters."""

    inner: optax.OptState
    average: NetworkParams


def average_params(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Makes an optimizer keep an exponential moving average of the parameters beside them.

        average <- decay average + (1 - decay) params

    Source: Polyak & Juditsky (1992), "Acceleration of stochastic approximation by averaging".
    """

    def init(params: chex.ArrayTree) -> AveragingState:
        return AveragingState(optimizer.init(params), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: AveragingState, params: Any = None) -> tuple[Any, AveragingState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        new = optax.apply_updates(params, updates)
        return updates, AveragingState(inner, optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(init, update)


def skip_not_finite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Makes an optimizer leave out every gradient that is not finite: parameters and its own state stay as they are."""
    return optax.apply_if_finite(optimizer, max_consecutive_errors=2**30)  # `fit` says when there were too many


def averaged_params(train: TrainState) -> NetworkParams:
    """Returns the average of the parameters, or the parameters themselves where the optimizer keeps no average."""
    state = train.optimizer_state
    return state.average if isinstance(state, AveragingState) else train.params


def make_step(
    net: Network,
    optimizer: optax.GradientTransformation,
    *,
    segment: int | str = "auto",
    gradient: Literal["bptt", "autodiff"] = "bptt",
    flow: bool = False,
    clip: float | None = None,
    vanishing: Callable[[chex.Array], chex.Array] | None = None,
    noise: float = 0.0,
    on_nan: Literal["stop", "skip"] = "stop",
    mesh: Mesh | None = None,
) -> Step:
    """Makes one jitted training step; its first argument is donated, so that parameters are updated in place.

    Args:
        net: the network.
        optimizer: any optax transformation.
        segment: as for `jaxrnn.value_and_grad`.
        gradient: "bptt" by hand, or "autodiff" for `jax.value_and_grad` of the plain scan: the same, but slower.
        flow: True adds the gradient flow of the step to the metrics, "flow": |dE/ds_t| of every layer, [layers, T].
        clip: the largest |dE/ds_t| inside the reverse scan, as for `jaxrnn.value_and_grad`.
        vanishing: gives the weight of the vanishing-gradient regulariser at a step, counted from 0, such as
            `lambda step: 4.0 / (1 + step)`.
        noise: standard deviation of normal noise on all parameters while the gradient is taken, anew at every step
            (Murray & Edwards 1994, "Enhanced MLP performance and fault tolerance resulting from synaptic weight
            noise").
        on_nan: "skip" carries on the state from before a batch that leaves it not finite, for an optimizer of
            `skip_not_finite`; "stop" leaves it to `fit` to look at the loss, and costs nothing.

    Returns:
        `(train, batch) -> (train, {"loss", "gradient_norm"})`; the batch is a `jaxrnn.tasks.base.Sequences`, the
        loss is the one before the update.

    Raises:
        ValueError: an unknown gradient, a segment below 1; with gradient="autodiff" what only the hand-written reverse
            scan has: flow, clip and vanishing.

    >>> import jax, optax, jaxrnn, jaxrnn.training.step
    >>> from jaxrnn.tasks.base import Sequences
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> optimizer = optax.adam(1e-2)
    >>> train = jaxrnn.training.step.initial_train_state(net, optimizer, 2, jax.random.key(0))
    >>> step = jaxrnn.training.step.make_step(net, optimizer)
    >>> tokens = jax.random.randint(jax.random.key(1), (8, 2), 0, 5)
    >>> train, metrics = step(train, Sequences(tokens[:-1], tokens[1:]))
    >>> int(train.step), sorted(metrics)
    (1, ['gradient_norm', 'loss'])
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    check_choice("on_nan", on_nan, ("stop", "skip"))
    check_scale("noise", noise)
    if gradient == "autodiff" and (flow or clip is not None or vanishing is not None):
        raise ValueError('flow, clip and vanishing need gradient="bptt": autodiff lets nobody into its reverse pass')
    if gradient == "bptt":
        by_hand = value_and_grad(net, segment, clip=clip, return_state=True, return_flow=flow)
        loss_and_gradient = by_hand if mesh is None else data_parallel(by_hand, mesh, AXIS)
    else:
        loss_and_gradient = jax.value_and_grad(functools.partial(net.loss, return_state=True), has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(train: TrainState, batch: Sequences) -> tuple[TrainState, dict[str, chex.Array]]:
        arguments = gradient_arguments(net, train, batch, noise)
        weight = {} if vanishing is None else {"vanishing": vanishing(train.step)}
        (loss, final, *found), grads = loss_and_gradient(*arguments, **weight)
        if on_nan == "skip":
            final = _where_finite(final, arguments.state)
        updates, optimizer_state = optimizer.update(grads, train.optimizer_state, train.params)
        params = optax.apply_updates(train.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        if flow:
            metrics["flow"] = jnp.stack([layer.adjoint for layer in found[0]])  # [layers, T]
        return TrainState(params, optimizer_state, final, train.step + 1, train.key), metrics

    return step if mesh is None else lambda train, batch: step(train, spread_batch(batch, mesh, net.last_step))


class GradientArguments(NamedTuple):
    """Holds what a step takes the gradient of, in the order in which `jaxrnn.value_and_grad(net)` takes it."""

    params: NetworkParams  # with the noise of the step
    inputs: Any
    targets: Any
    weights: None
    state: tuple[State, ...]  # that the batch begins with
    mask: Any
    reset: Any
    key: chex.PRNGKey  # for dropout


def gradient_arguments(net: Network, train: TrainState, batch: Sequences, noise: float = 0.0) -> GradientArguments:
    """Returns what the step that follows on a train state takes the gradient of."""
    key_dropout, key_noise = jax.random.split(jax.random.fold_in(train.key, train.step))
    state, reset = _enter_batch(net, train, batch)
    params = _add_noise(train.params, noise, key_noise)
    return GradientArguments(params, batch.inputs, batch.targets, None, state, batch.mask, reset, key_dropout)


def _where_finite(new: Any, old: Any) -> Any:
    """Returns the new state where all of it is finite, else the old one."""
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)


def _enter_batch(net: Network, train: TrainState, batch: Sequences) -> tuple[tuple[State, ...], chex.Array | None]:
    """Returns the state that a batch begins with, and its resets."""
    size = jax.tree.leaves(train.network_state)[0].shape[:-1]
    state = jax.tree.map(lambda s, s_0: jnp.where(batch.fresh, s_0, s), train.network_state, net.initial_state(size))
    if not net.learn_state:
        return state, batch.reset
    # A learned s_0 gets its gradient through a reset; where none is learned, the loops need not look for one.
    reset = jnp.zeros((batch.inputs.shape[0], *size), bool) if batch.reset is None else jnp.asarray(batch.reset)
    return state, reset.at[0].set(reset[0] | batch.fresh)


def _add_noise(params: NetworkParams, deviation: float, key: chex.PRNGKey) -> NetworkParams:
    if not deviation:
        return params
    keys = optax.tree.split_key_like(key, params)
    return jax.tree.map(lambda p, key: p + deviation * jax.random.normal(key, p.shape, p.dtype), params, keys)
