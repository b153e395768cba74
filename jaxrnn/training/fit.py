"""The training loop: steps, metrics, validations and saves, until it is told to stop; and the error on some batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxrnn.arguments import check_choice
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.processes import largest_of_all
from jaxrnn.training.step import Step, TrainState, averaged_params, spread_batch, spread_train_state

MOST_SKIPPED = 25  # steps in a row whose gradient was not finite
# Steps that are dispatched and not done. Without a limit a training on two CPU devices, on two cores, may wait for
# itself until XLA ends the process ("may be stuck", jaxlib 0.10.2): a call that is 32 computations ahead waits on one
# of the two threads that the sum over devices needs (xla/pjrt/cpu/cpu_client.cc, max_inflight_computations_semaphore).
IN_FLIGHT = 4

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


class Progress(NamedTuple):
    """Holds what `fit` decides by besides the train state, so that a training that was stopped goes on exactly.

    All of it is numbers that JSON keeps to the bit.
    """

    pending: tuple[dict[str, float], ...] = ()  # the metrics of the steps since the last log
    best: float = math.inf  # the least validation loss so far
    waited: int = 0  # validations since then


BEGINNING = Progress()


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
    save: Callable[[TrainState, Progress], None] = lambda train, progress: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress = BEGINNING,
    mesh: Mesh | None = None,
) -> Outcome:
    """Trains from where `train` stands to `steps` steps in all, or until it is told to stop, after the step under way.

    With what `save` was given last, train state and progress, it goes on as if it had never stopped: the same steps,
    the same logs, the same end.

    Several processes may train together, on one mesh; where one of them is told to stop all do, when metrics are logged
    or validated next.

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
        save: called after every validation and when told to stop, with all that a later call goes on from.
        stop: asked after every step; True ends the training, saved. `jaxrnn.training.signals.stop_on_signals` makes one
            of Ctrl-C, SIGTERM and SIGHUP, which by themselves end a step in its middle.
        progress: where `train` stands besides, as it was saved.
        mesh: the devices that the step was made with; the train state is spread over them.

    Raises:
        NotFiniteError: a loss or a gradient is not finite, see `on_nan`. What was saved last is not touched.
        FloatingPointError: the validation loss is not finite; with "skip" it only counts as no improvement.
    """
    check_choice("on_nan", on_nan, ("stop", "skip"))
    pending: list[dict[str, Any]] = list(progress.pending)
    best, waited, stopped = progress.best, progress.waited, False

    def out_of_patience() -> bool:
        return patience is not None and waited >= patience

    if mesh is not None:
        train = spread_train_state(train, mesh)
    for done in range(int(train.step) + 1, steps + 1):
        if stopped or out_of_patience():
            break
        train, metrics = step(train, batches(done - 1))
        flow = metrics.pop("flow", None)
        if flow is not None and flow_every and done % flow_every == 0:
            log({"step": done, "flow": flow.tolist()})
        pending.append(metrics)
        jax.block_until_ready(pending[:-IN_FLIGHT][-1:])
        logs, due = (done == steps or done % often == 0 for often in (log_every, every))
        if logs or due:
            pending = _fetch(train, pending, on_nan)
        if logs:
            log({"step": done, **_means(pending)})
            pending = []
        if validate is not None and due:
            found = validate(averaged_params(train))
            if on_nan == "stop" and not math.isfinite(found.loss):
                raise FloatingPointError(f"the validation loss is {found.loss} at step {done}: lower the rate")
            rate = {} if found.error_rate is None else {"validation_error_rate": found.error_rate}
            log({"step": done, "validation_loss": found.loss} | rate)
            best, waited = (found.loss, 0) if found.loss < best else (best, waited + 1)
        stopped = _told_to_stop(stop, due or logs)
        if due or stopped:
            pending = _fetch(train, pending, on_nan)
            save(train, Progress(tuple(pending), best, waited))
    return Outcome(train, stopped and done < steps and not out_of_patience())


def _told_to_stop(stop: Callable[[], bool], together: bool) -> bool:
    """Returns whether to stop; of several processes, whether any of them is to, and only where all ask `together`."""
    if jax.process_count() == 1:
        return stop()
    return together and largest_of_all(stop()) > 0


def _fetch(train: TrainState, metrics: list[dict[str, Any]], on_nan: str) -> list[dict[str, float]]:
    """Returns the metrics of the last steps, up to that of the train state, as numbers of Python.

    Raises:
        NotFiniteError: one is not finite, and none may be; or too many in a row are not.
    """
    fetched = jax.tree.map(float, jax.device_get(metrics))
    for step, of_step in enumerate(fetched, int(train.step) + 1 - len(fetched)):
        if on_nan == "stop" and not _finite(of_step):
            loss = of_step["loss"]
            what = "the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
            raise NotFiniteError(step, f"{what} at step {step}: lower the rate, or clip more")
    if on_nan == "skip":
        _check_skipped(train)
    return fetched


def _finite(metrics: dict[str, float]) -> bool:
    return all(map(math.isfinite, metrics.values()))


def _check_skipped(train: TrainState) -> None:
    """Raises where an optimizer that skips steps has skipped too many in a row."""
    count = int(optax.tree_utils.tree_get(train.optimizer_state, "notfinite_count", 0))
    if count > MOST_SKIPPED:
        step = int(train.step) + 1 - count
        raise NotFiniteError(step, f"no gradient is finite any more from step {step} on, {count} were skipped")


def _means(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Returns the means over the steps whose metrics are finite, and how many of the others there are, if any."""
    kept = list(filter(_finite, metrics))
    means = {name: math.fsum(row[name] for row in kept) / len(kept) for name in metrics[0]} if kept else {}
    return means if len(kept) == len(metrics) else {"skipped": len(metrics) - len(kept), **means}
