"""Training: one jitted optax step on gradients by BPTT, and the loop around it."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from jaxrnn.arguments import Array, check_choice
from jaxrnn.cell import State
from jaxrnn.gradient import value_and_grad
from jaxrnn.network import Network, NetworkParams


class TrainState(NamedTuple):
    """All that training goes on from."""

    params: NetworkParams
    optimizer_state: optax.OptState
    state: tuple[State, ...]  # carried from batch to batch
    step: Array  # how many steps were taken
    key: Array  # for everything random; it never changes, steps fold themselves in


class Batch(Protocol):
    """What a step is fed: anything with these attributes."""

    @property
    def inputs(self) -> Any:
        """[T, B, ...]."""

    @property
    def targets(self) -> Any:
        """[T, B, ...]."""

    @property
    def fresh(self) -> bool:
        """Whether the carried state is dropped before this batch."""


class Outcome(NamedTuple):
    """How `fit` ended."""

    train: TrainState
    interrupted: bool


def adam(rate: float, steps: int, warmup: int = 100, clip: float = 1.0) -> optax.GradientTransformation:
    """Adam on gradients clipped to a global norm, its rate rising linearly over `warmup` steps and falling as a cosine.

    Source: Kingma & Ba (2015), algorithm 1; Pascanu, Mikolov & Bengio (2013), algorithm 1, for the clipping;
    Loshchilov & Hutter (2017), equation 5, for the cosine.
    """
    warmup = min(warmup, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, 1)) if warmup else rate
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(schedule))


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
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """One jitted training step; its first argument is donated, so that parameters are updated in place.

    Args:
        net: the network.
        optimizer: any optax transformation.
        segment: as for `jaxrnn.value_and_grad`.
        gradient: "bptt" by hand, or "autodiff" for `jax.value_and_grad` of the plain scan: the same curve, more slowly.
        flow: whether the metrics hold the gradient flow of the step as well, "flow": |dE/ds_t| [T] of every layer.

    Returns:
        `(train, inputs, targets, fresh) -> (train, {"loss", "gradient_norm"})`; the loss is that before the update.

    Raises:
        ValueError: an unknown gradient, a segment below 1, flow with gradient="autodiff", which has none to show.

    >>> import jax, optax, jaxrnn, jaxrnn.train
    >>> net = jaxrnn.Network((jaxrnn.Elman(5, 8),), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    >>> optimizer = optax.adam(1e-2)
    >>> train = jaxrnn.train.initial(net, optimizer, 2, jax.random.key(0))
    >>> step = jaxrnn.train.make_step(net, optimizer)
    >>> tokens = jax.random.randint(jax.random.key(1), (8, 2), 0, 5)
    >>> train, metrics = step(train, tokens[:-1], tokens[1:], True)
    >>> int(train.step), sorted(metrics)
    (1, ['gradient_norm', 'loss'])
    """
    check_choice("gradient", gradient, ("bptt", "autodiff"))
    if flow and gradient == "autodiff":
        raise ValueError('flow needs gradient="bptt": autodiff does not show what its reverse pass carries')
    if gradient == "bptt":
        loss_and_gradient = value_and_grad(net, segment, return_state=True, return_flow=flow)
    else:
        loss_and_gradient = jax.value_and_grad(functools.partial(net.loss, return_state=True), has_aux=True)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(train: TrainState, inputs: Array, targets: Array, fresh: Any) -> tuple[TrainState, dict[str, Array]]:
        batch = jax.tree.leaves(train.state)[0].shape[:-1]
        state = jax.tree.map(lambda s, s_0: jnp.where(fresh, s_0, s), train.state, net.initial_state(batch))
        # A learned s_0 gets its gradient through a reset; where none is learned, the loops need not look for one.
        reset = jnp.zeros((inputs.shape[0], *batch), bool).at[0].set(fresh) if net.learn_state else None
        key = jax.random.fold_in(train.key, train.step)
        (loss, final, *found), grads = loss_and_gradient(train.params, inputs, targets, None, state, None, reset, key)
        updates, optimizer_state = optimizer.update(grads, train.optimizer_state, train.params)
        params = optax.apply_updates(train.params, updates)
        metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
        if flow:
            metrics["flow"] = jnp.stack([layer.adjoint for layer in found[0]])  # [layers, T]
        return TrainState(params, optimizer_state, final, train.step + 1, train.key), metrics

    return step


def evaluate(net: Network, params: NetworkParams, batches: Iterable[Batch]) -> float:
    """The mean error of a step over all batches, the state carried except into fresh ones."""
    total, steps, state = 0.0, 0, None
    for batch in batches:
        errors, state = _errors(net, params, batch.inputs, batch.targets, None if batch.fresh else state)
        total += float(errors.sum())
        steps += errors.size
    if not steps:
        raise ValueError("batches must hold at least one batch, got none")
    return total / steps


@functools.partial(jax.jit, static_argnums=0)
def _errors(net: Network, params: NetworkParams, inputs: Array, targets: Array, state: Any) -> tuple[Array, Any]:
    outputs, final = net.apply(params, inputs, state)
    return net.objective(outputs, targets), final


def fit(
    train: TrainState,
    step: Callable[..., tuple[TrainState, dict[str, Array]]],
    batches: Callable[[int], Batch],
    steps: int,
    *,
    validate: Callable[[NetworkParams], float] | None = None,
    every: int = 500,
    log: Callable[[dict[str, Any]], None] = lambda metrics: None,
    log_every: int = 25,
    flow_every: int = 0,
    save: Callable[[TrainState], None] = lambda train: None,
) -> Outcome:
    """Train from where `train` stands to `steps` steps in all. Ctrl-C ends it after the step under way, and saves.

    Args:
        train: from `initial`, or restored; its buffers are donated.
        step: from `make_step`.
        batches: the batch of a step, counted from 0: a function of the position alone, so that resuming is exact.
        steps: where to stop.
        validate: the validation loss of parameters, called every `every` steps and at the end.
        every: steps between validations, each followed by a save.
        log: called with {"step", "loss", "gradient_norm"}, means since the last call, or {"step", "validation_loss"}.
        log_every: steps between calls of `log`.
        flow_every: steps between calls of `log` with {"step", "flow"}, for a step that was made with it; 0 for none.
        save: called after every validation and on Ctrl-C.

    Raises:
        FloatingPointError: the loss is no longer finite. What was saved last is not touched.
    """
    pending: list[dict[str, Array]] = []
    with _interruption() as interrupted:
        for i in range(int(train.step), steps):
            batch = batches(i)
            train, metrics = step(train, batch.inputs, batch.targets, batch.fresh)
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
                log({"step": done, "validation_loss": validate(train.params)})
            if done % every == 0 or last:
                save(train)
            if interrupted.is_set():
                return Outcome(train, done < steps)
    return Outcome(train, False)


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
