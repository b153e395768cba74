"""The training loop: steps, metrics, validations and saves, to the end or to Ctrl-C; and the error on some batches."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxrnn.arguments import check_choice
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.step import Step, TrainState, averaged_params, spread_batch, spread_train_state

MOST_SKIPPED = 25  # steps in a row whose gradient was not finite

Log = Callable[[dict[str, Any]], None]


class Metrics(NamedTuple):
    """Says how good parameters are on some batches."""

    loss: float  # the mean error of a step, or of a sequence with one answer
    error_rate: float | None  # the share of wrong answers, of a task with classes


def evaluate(
    net: Network,
    params: NetworkParams,
    batches: Iterable[Sequences],
    classes: bool = False,
    mesh: Mesh | None = None,
) -> Metrics:
    """Computes the mean over all real steps of all batches; the state is carried, except into fresh batches.

    Args:
        net, params: a network.
        batches: what to evaluate it on.
        classes: True computes the error rate too.
        mesh: the devices that batches are spread over, where the parameters are; None is one device.

    Raises:
        ValueError: no batches, or none with a real step.
    """
    sums, state = np.zeros(3), None
    for batch in batches:
        if mesh is not None:
            batch = spread_batch(batch, mesh, net.last_step)
        found, state = _sum_errors(net, params, batch, None if batch.fresh else state, classes)
        sums += [float(each) for each in found]
    loss, wrong, count = sums
    if not count:
        raise ValueError("batches must hold at least one batch with a real step, got none")
    return Metrics(loss / count, wrong / count if classes else None)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _sum_errors(
    net: Network, params: NetworkParams, batch: Sequences, state: Any, classes: bool
) -> tuple[tuple[chex.Array, chex.Array, chex.Array], Any]:
    """Returns the sum of errors, the number of wrong answers and of all, and the final state."""
    outputs, final = net.apply(params, batch.inputs, state, batch.mask, batch.reset)
    errors = net.objective(outputs, batch.targets)
    there = jnp.ones(errors.shape, bool)
    if batch.mask is not None:
        there = jnp.any(batch.mask, 0) if net.last_step else jnp.asarray(batch.mask)
    wrong = jnp.argmax(outputs, -1) != batch.targets if classes else jnp.zeros(errors.shape, bool)
    return (jnp.sum(errors, where=there), jnp.sum(wrong & there), jnp.sum(there)), final


class Outcome(NamedTuple):
    """Says how `fit` ended."""

    train: TrainState
    interrupted: bool


class NotFiniteError(FloatingPointError):
    """Says that a loss or a gradient is not finite.

    Fields:
        step: the first such step, counted from 1.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def fit(
    train: TrainState,
    step: Step,
    batches: Callable[[int], Sequences],
    steps: int,
    *,
    validate: Callable[[NetworkParams], Metrics] | None = None,
    every: int = 500,
    log: Log = lambda metrics: None,
    log_every: int = 25,
    flow_every: int = 0,
    patience: int | None = None,
    on_nan: Literal["stop", "skip"] = "stop",
    save: Callable[[TrainState], None] = lambda train: None,
    mesh: Mesh | None = None,
) -> Outcome:
    """Trains from where `train` stands to `steps` steps in all. Ctrl-C ends it after the step under way, and saves.

    Several processes may train together, on one mesh; Ctrl-C at one of them ends all, when metrics are logged next.

    Args:
        train: from `initial_train_state`, or restored; its buffers are donated.
        step: from `make_step`.
        batches: gives the batch of a step, counted from 0: a function of the position alone, so that resuming is exact.
        steps: where to stop.
        validate: evaluates parameters; called every `every` steps and at the end.
        every: steps between validations, each followed by a save.
        log: called with {"step", "loss", "gradient_norm"}, means since the last call, or {"step", "validation_loss"},
            with "validation_error_rate" where that is known.
        log_every: steps between calls of `log`.
        flow_every: steps between calls of `log` with {"step", "flow"}, for a step that was made with it; 0 for none.
        patience: stop after so many validations in a row without a smaller loss than all before (early stopping).
        on_nan: "stop" where a loss or a gradient is not finite, which is looked for before every log, validation and
            save; or "skip", with a step and an optimizer made for it: `log` then gets means over the others, and how
            many were "skipped", and it stops after more than 25 of them in a row.
        save: called after every validation and on Ctrl-C.
        mesh: the devices that the step was made with; the train state is spread over them.

    Raises:
        NotFiniteError: a loss or a gradient is not finite, see `on_nan`. What was saved last is not touched.
        FloatingPointError: the validation loss is not finite.
    """
    check_choice("on_nan", on_nan, ("stop", "skip"))
    pending: list[dict[str, chex.Array]] = []
    losses: list[float] = []
    if mesh is not None:
        train = spread_train_state(train, mesh)
    with _interruption() as interrupted:
        for done in range(int(train.step) + 1, steps + 1):
            train, metrics = step(train, batches(done - 1))
            flow = metrics.pop("flow", None)
            if flow is not None and flow_every and done % flow_every == 0:
                log({"step": done, "flow": flow.tolist()})
            pending.append(metrics)
            logs = done % log_every == 0 or done == steps or _told_to_stop(interrupted, False)
            if logs or done % every == 0:
                means = _finite_means(train, pending, on_nan)
            if logs:
                log({"step": done, **means})
                pending = []
            if validate is not None and (done % every == 0 or done == steps):
                found = validate(averaged_params(train))
                if not math.isfinite(found.loss):
                    raise FloatingPointError(f"the validation loss is {found.loss} at step {done}: lower the rate")
                rate = {} if found.error_rate is None else {"validation_error_rate": found.error_rate}
                log({"step": done, "validation_loss": found.loss} | rate)
                losses.append(found.loss)
            stopped = _told_to_stop(interrupted, done % log_every == 0)
            if done % every == 0 or done == steps or stopped:
                _finite_means(train, pending, on_nan)
                save(train)
            if patience is not None and losses and len(losses) - 1 - losses.index(min(losses)) >= patience:
                break
            if stopped:
                return Outcome(train, done < steps)
    return Outcome(train, False)


def _told_to_stop(interrupted: threading.Event, together: bool) -> bool:
    """Returns whether Ctrl-C has come; of several processes, to any of them, and only where all ask `together`."""
    if jax.process_count() == 1:
        return interrupted.is_set()
    return together and bool(multihost_utils.process_allgather(np.array(interrupted.is_set())).any())


def _finite_means(
    train: TrainState, metrics: list[dict[str, chex.Array]], on_nan: Literal["stop", "skip"]
) -> dict[str, float]:
    """Returns the means over the last steps, up to that of the train state, and how many were left out, if any.

    Raises:
        NotFiniteError: one is not finite, and none may be; or too many in a row are not.
    """
    means = _means(metrics)
    if all(map(math.isfinite, means.values())):  # one number of each tells of all
        return means
    values = jax.device_get(metrics)
    finite = [all(map(math.isfinite, of_step.values())) for of_step in values]
    if on_nan == "skip":
        _check_skipped(train)
        kept = [of_step for of_step, there in zip(values, finite, strict=True) if there]
        return {"skipped": len(values) - len(kept), **_means(kept)}
    if all(finite):  # only their sum is not
        return means
    first = finite.index(False)
    step, loss = int(train.step) + first + 1 - len(metrics), values[first]["loss"]
    what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
    raise NotFiniteError(step, f"{what} at step {step}: lower the rate, or clip more")


def _means(metrics: list[dict[str, chex.Array]]) -> dict[str, float]:
    return jax.tree.map(lambda *values: float(jnp.mean(jnp.stack(values))), *metrics or [{}])


def _check_skipped(train: TrainState) -> None:
    """Raises where an optimizer that skips steps has skipped too many in a row."""
    count = int(optax.tree_utils.tree_get(train.optimizer_state, "notfinite_count", 0))
    if count > MOST_SKIPPED:
        step = int(train.step) + 1 - count
        raise NotFiniteError(step, f"no gradient is finite any more from step {step} on, {count} were skipped")


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Turns Ctrl-C into a flag: raised in the middle of a step, it would leave donated buffers and no result."""
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
