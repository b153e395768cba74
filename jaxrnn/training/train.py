"""Training: one jitted optax step on gradients by BPTT, and the loop around it."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from chex import Array

from jaxrnn.arguments import check_choice, check_scale
from jaxrnn.cells.base import State
from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.sequences import Sequences


class TrainState(NamedTuple):
    """All that training goes on from."""

    params: NetworkParams
    optimizer_state: optax.OptState
    state: tuple[State, ...]  # carried from batch to batch
    step: Array  # how many steps were taken
    key: Array  # for everything random; it never changes, steps fold themselves in


class Outcome(NamedTuple):
    """How `fit` ended."""

    train: TrainState
    interrupted: bool


def adam(
    rate: float, steps: int, warmup: int = 100, clip: float = 1.0, decay: float = 0.0, accumulate: int = 1
) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm, its rate rising linearly over `warmup` steps and falling as a cosine.

    With a `decay` it is AdamW: parameters shrink by the rate times it at every step. With `accumulate`, gradients of so
    many batches are averaged before a step is taken.

    Source: Kingma & Ba (2015), algorithm 1; Pascanu, Mikolov & Bengio (2013), algorithm 1, for the clipping;
    Loshchilov & Hutter (2017), equation 5, for the cosine, and (2019), algorithm 2, for the decay.
    """
    warmup = min(warmup, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, 1)) if warmup else rate
    chain = optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=decay))
    return chain if accumulate == 1 else optax.MultiSteps(chain, accumulate).gradient_transformation()


class Averaged(NamedTuple):
    """The state of an optimizer that averages parameters."""

    inner: Any
    average: NetworkParams


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """The same optimizer, which keeps an exponential moving average of the parameters beside them.

        average <- decay average + (1 - decay) params

    Source: Polyak & Juditsky (1992), "Acceleration of stochastic approximation by averaging".
    """

    def init(params: Any) -> Averaged:
        return Averaged(optimizer.init(params), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: Averaged, params: Any = None) -> tuple[Any, Averaged]:
        updates, inner = optimizer.update(updates, state.inner, params)
        new = optax.apply_updates(params, updates)
        return updates, Averaged(inner, optax.incremental_update(new, state.average, 1 - decay))

    return optax.GradientTransformation(init, update)


def best_guess(train: TrainState) -> NetworkParams:
    """The parameters to use: their average, where one is kept."""
    return train.optimizer_state.average if isinstance(train.optimizer_state, Averaged) else train.params


def initial(net: Network, optimizer: optax.GradientTransformation, batch: int, key: Array) -> TrainState:
    """The state before the first step."""
    key, key_params = jax.random.split(key)
    params = net.init(key_params)
    return TrainState(params, optimizer.init(params), net.initial_state((batch,)), jnp.zeros((), jnp.int32), key)


def make_step(
    net: Network,
    optimizer: optax.GradientTransformation,
    *,
    segment: int | str = "auto",
    gradient: str = "bptt",
    flow: bool = False,
    clip: float | None = None,
    vanishing: Callable[[Array], Array] | None = None,
    noise: float = 0.0,
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One jitted training step; its first argument is donated, so that parameters are updated in place.

    Args:
        net: the network.
        optimizer: any optax transformation.
        segment: as for `jaxrnn.value_and_grad`.
        gradient: "bptt" by hand, or "autodiff" for `jax.value_and_grad` of the plain scan: the same curve, more slowly.
        flow: whether the metrics hold the gradient flow of the step as well, "flow": |dE/ds_t| [T] of every layer.
        clip: of |dE/ds_t| inside the reverse scan, as for `jaxrnn.value_and_grad`.
        vanishing: the weight of the vanishing-gradient regulariser by step, counted from 0, such as
            `lambda step: 4.0 / (1 + step)`.
        noise: standard deviation of normal noise on all parameters while the gradient is taken, anew at every step
            (Murray & Edwards 1994, "Enhanced MLP performance and fault tolerance resulting from synaptic weight
            noise").

    Returns:
        `(train, batch) -> (train, {"loss", "gradient_norm"})`; the batch is a `jaxrnn.tasks.sequences.Sequences`, the
        loss that before the update.

    Raises:
        ValueError: an unknown gradient, a segment below 1; with gradient="autodiff" what only the hand-written reverse
            scan has: flow, clip and vanishing.

    >>> import jax, optax, jaxrnn, jaxrnn.training.train
    >>> from jaxrnn.tasks.sequences import Sequences
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> optimizer = optax.adam(1e-2)
    >>> train = jaxrnn.training.train.initial(net, optimizer, 2, jax.random.key(0))
    >>> step = jaxrnn.training.train.make_step(net, optimizer)
    >>> tokens = jax.random.randint(jax.random.key(1), (8, 2), 0, 5)
    >>> train, metrics = step(train, Sequences(tokens[:-1], tokens[1:]))
    >>> int(train.step), sorted(metrics)
    (1, ['gradient_norm', 'loss'])
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    check_scale("noise", noise)
    if gradient == "autodiff" and (flow or clip is not None or vanishing is not None):
        raise ValueError(
            'flow, clip and vanishing need gradient="bptt": autodiff does not let them into its reverse pass'
        )
    if gradient == "bptt":
        loss_and_gradient = value_and_grad(net, segment, clip=clip, return_state=True, return_flow=flow)
    else:
        loss_and_gradient = jax.value_and_grad(functools.partial(net.loss, return_state=True), has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(train: TrainState, batch: Sequences) -> tuple[TrainState, dict[str, Array]]:
        key_dropout, key_noise = jax.random.split(jax.random.fold_in(train.key, train.step))
        state, reset = _entering(net, train, batch)
        weight = {} if vanishing is None else {"vanishing": vanishing(train.step)}
        (loss, final, *found), grads = loss_and_gradient(
            _noisy(train.params, noise, key_noise), batch.inputs, batch.targets, None, state, batch.mask, reset,
            key_dropout, **weight,
        )  # fmt: skip
        updates, optimizer_state = optimizer.update(grads, train.optimizer_state, train.params)
        params = optax.apply_updates(train.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        if flow:
            metrics["flow"] = jnp.stack([layer.adjoint for layer in found[0]])  # [layers, T]
        return TrainState(params, optimizer_state, final, train.step + 1, train.key), metrics

    return step


def _entering(net: Network, train: TrainState, batch: Sequences) -> tuple[tuple[State, ...], Array | None]:
    """The state that a batch begins with, and its resets."""
    size = jax.tree.leaves(train.state)[0].shape[:-1]
    state = jax.tree.map(lambda s, s_0: jnp.where(batch.fresh, s_0, s), train.state, net.initial_state(size))
    if not net.learn_state:
        return state, batch.reset
    # A learned s_0 gets its gradient through a reset; where none is learned, the loops need not look for one.
    reset = jnp.zeros((batch.inputs.shape[0], *size), bool) if batch.reset is None else jnp.asarray(batch.reset)
    return state, reset.at[0].set(reset[0] | batch.fresh)


def _noisy(params: NetworkParams, deviation: float, key: Array) -> NetworkParams:
    if not deviation:
        return params
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noisy = [
        leaf + deviation * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)


class Figures(NamedTuple):
    """How good parameters are on some batches."""

    loss: float  # the mean error of a step, or of a sequence with one answer
    wrong: float | None  # the share of wrong answers, of a task with classes


def evaluate(net: Network, params: NetworkParams, batches: Iterable[Sequences], classes: bool = False) -> Figures:
    """The mean over all real steps of all batches, the state carried except into fresh ones.

    Raises:
        ValueError: no batches.
    """
    sums, state = np.zeros(3), None
    for batch in batches:
        found, state = _errors(net, params, batch, None if batch.fresh else state, classes)
        sums += [float(each) for each in found]
    if not sums[2]:
        raise ValueError("batches must hold at least one batch with a real step, got none")
    return Figures(sums[0] / sums[2], sums[1] / sums[2] if classes else None)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _errors(
    net: Network, params: NetworkParams, batch: Sequences, state: Any, classes: bool
) -> tuple[tuple[Array, Array, Any], Any]:
    """Sums of errors and of wrong answers, their number, and the final state."""
    outputs, final = net.apply(params, batch.inputs, state, batch.mask, batch.reset)
    errors = net.objective(outputs, batch.targets)
    there = jnp.ones(errors.shape, bool)
    if batch.mask is not None:
        there = jnp.any(batch.mask, 0) if net.last_step else jnp.asarray(batch.mask)
    wrong = jnp.argmax(outputs, -1) != batch.targets if classes else jnp.zeros(errors.shape, bool)
    return (jnp.sum(errors, where=there), jnp.sum(wrong & there), jnp.sum(there)), final


def fit(
    train: TrainState,
    step: Callable[..., tuple[TrainState, dict[str, Array]]],
    batches: Callable[[int], Sequences],
    steps: int,
    *,
    validate: Callable[[NetworkParams], Figures] | None = None,
    every: int = 500,
    log: Callable[[dict[str, Any]], None] = lambda metrics: None,
    log_every: int = 25,
    flow_every: int = 0,
    patience: int | None = None,
    save: Callable[[TrainState], None] = lambda train: None,
) -> Outcome:
    """Train from where `train` stands to `steps` steps in all. Ctrl-C ends it after the step under way, and saves.

    Args:
        train: from `initial`, or restored; its buffers are donated.
        step: from `make_step`.
        batches: the batch of a step, counted from 0: a function of the position alone, so that resuming is exact.
        steps: where to stop.
        validate: `evaluate` of parameters, called every `every` steps and at the end.
        every: steps between validations, each followed by a save.
        log: called with {"step", "loss", "gradient_norm"}, means since the last call, or {"step", "validation_loss"},
            with "validation_wrong" where that is known.
        log_every: steps between calls of `log`.
        flow_every: steps between calls of `log` with {"step", "flow"}, for a step that was made with it; 0 for none.
        patience: stop after so many validations in a row without a smaller loss than all before (early stopping).
        save: called after every validation and on Ctrl-C.

    Raises:
        FloatingPointError: the loss is no longer finite. What was saved last is not touched.
    """
    pending: list[dict[str, Array]] = []
    best, since = math.inf, 0
    with _interruption() as interrupted:
        for i in range(int(train.step), steps):
            batch = batches(i)
            train, metrics = step(train, batch)
            done = i + 1
            flow = metrics.pop("flow", None)
            if flow is not None and flow_every and done % flow_every == 0:
                log({"step": done, "flow": flow.tolist()})
            pending.append(metrics)
            last = done == steps or interrupted.is_set()
            if last or done % log_every == 0:
                log({"step": done, **_means(pending, done)})
                pending = []
            if validate is not None and (done % every == 0 or done == steps):
                figures = validate(best_guess(train))
                log({"step": done, "validation_loss": figures.loss} | _known("validation_wrong", figures.wrong))
                best, since = (figures.loss, 0) if figures.loss < best else (best, since + 1)
            if done % every == 0 or last:
                save(train)
            if patience is not None and since >= patience:
                break
            if interrupted.is_set():
                return Outcome(train, done < steps)
    return Outcome(train, False)


def _known(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None else {name: value}


def _means(metrics: list[dict[str, Array]], step: int) -> dict[str, float]:
    means = {name: float(jnp.mean(jnp.stack([m[name] for m in metrics]))) for name in metrics[0]}
    if not math.isfinite(means["loss"]):
        raise FloatingPointError(f"the loss is {means['loss']} at step {step}: lower the rate, or clip more")
    return means


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Ctrl-C as a flag: raised in the middle of a step, it would leave donated buffers and no result."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def interrupt(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)  # a second Ctrl-C does not wait

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
