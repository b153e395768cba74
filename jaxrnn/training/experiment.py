"""An experiment: the task, the network and the optimizer that settings ask for, and how a run is found again."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxrnn.network.network import Network, NetworkParams, Readout
from jaxrnn.tasks import TASKS
from jaxrnn.tasks.base import Task
from jaxrnn.training import full_disk, memory, not_finite, step
from jaxrnn.training.fit import Log, Metrics, NotFiniteError, Outcome, Progress, evaluate, fit
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import CELLS, Settings


class Experiment(NamedTuple):
    """Holds what settings and data make."""

    settings: Settings
    task: Task
    net: Network
    optimizer: optax.GradientTransformation
    mesh: Mesh | None = None  # the devices that batches are spread over; None is one device

    def initial_state(self) -> step.TrainState:
        """Returns the train state before the first step."""
        key = jax.random.key(self.settings.seed)
        return step.initial_train_state(self.net, self.optimizer, self.settings.batch, key)

    def state_of(self, run: Run) -> step.TrainState:
        """Returns the train state that a run goes on from, on the devices of this experiment.

        That is the one of its last checkpoint, to whose metrics and progress the run goes back; of a run without one,
        the state before the first step.
        """
        found = run.restore_latest(_with_shardings(jax.eval_shape(self.initial_state), self.mesh))
        return self.initial_state() if found is None else found

    def validate(self, params: NetworkParams) -> Metrics:
        """Evaluates parameters on the validation part."""
        return evaluate(self.net, params, self.task.validation(), self.task.classes, self.mesh)

    def test(self, params: NetworkParams) -> Metrics | None:
        """Evaluates parameters on the test part, where the task has one."""
        batches = self.task.test()
        return None if batches is None else evaluate(self.net, params, batches, self.task.classes, self.mesh)

    def make_step(self) -> step.Step:
        """Makes the training step of the settings."""
        settings = self.settings

        def fade(step: chex.Array) -> chex.Array:
            """Returns a weight that falls as one over time (Pascanu, Mikolov & Bengio 2013, section 4)."""
            return settings.vanishing / (1 + jnp.asarray(step, jnp.float32) / settings.vanishing_steps)

        return step.make_step(
            self.net,
            self.optimizer,
            gradient=settings.gradient,
            flow=settings.flow > 0,
            vanishing=fade if settings.vanishing else None,
            noise=settings.noise,
            on_nan=settings.on_nan,
            mesh=self.mesh,
        )

    def train(
        self,
        run: Run,
        state: step.TrainState,
        show: Log = lambda metrics: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Outcome:
        """Trains to the end, or until it is told to stop; keeps metrics and checkpoints in the folder of the run.

        Args:
            run: the folder.
            state: from `state_of(run)`; of a new run, `initial_state()`.
            show: called with all metrics, and the seconds of training so far.
            stop: asked after every step, as `fit` does.

        Raises:
            FloatingPointError: a loss or a gradient is not finite. The message says where that began, the batch is kept
                in the folder, and the last checkpoint is as it was.
            OSError: the folder cannot be written to, or is full.
        """
        settings, before, start = self.settings, run.seconds(), time.perf_counter()

        def log(metrics: dict[str, Any]) -> None:
            metrics = {**metrics, "seconds": round(before + time.perf_counter() - start, 3)}
            run.log(metrics)
            show(metrics)

        def save(state: step.TrainState, progress: Progress) -> None:
            with full_disk.room_for(state, run.path):
                run.save(state, int(state.step), progress)

        try:
            return fit(
                state,
                self.make_step(),
                self.task.batch,
                settings.steps,
                validate=self.validate,
                every=settings.every,
                log=log,
                flow_every=settings.flow,
                patience=settings.patience or None,
                on_nan=settings.on_nan,
                save=save,
                stop=stop,
                progress=run.progress,
                mesh=self.mesh,
            )
        except NotFiniteError as error:
            if jax.process_count() > 1:  # no process has all of the batch and the states
                alone = f"a process alone says where that began: jaxrnn train --resume --out {run.path}"
                raise FloatingPointError(f"{error}\n{alone}") from None
            raise FloatingPointError(self._diagnose(run, error)) from None

    def _diagnose(self, run: Run, error: NotFiniteError) -> str:
        """Returns in words where a step went wrong, which is found by taking the run again up to it."""
        start, batch = self._last_saved(run), self.task.batch(error.step - 1)
        stands = f"the checkpoint of step {start.step} stands" if start.step else "there is no checkpoint yet"
        state = self._advance(start, error.step - 1)
        arguments = step.gradient_arguments(self.net, state, batch, self.settings.noise)
        origin = not_finite.find_origin(self.net, arguments)
        where = "taken again, its two passes are finite" if origin is None else str(origin)
        advice = not_finite.LOWER if origin is None else origin.advice
        try:
            not_finite.keep_batch(run.path, batch, error.step)
            kept = f"{run.path / not_finite.BATCH} has the batch"
        except OSError as refused:
            kept = f"the batch cannot be kept ({refused.strerror})"
        return (
            f"the loss or its gradient is not finite at step {error.step}: {where}\n"
            f"{kept}, {stands}. Try {advice}" + ("; or --on-nan skip" if self.settings.on_nan == "stop" else "")
        )

    def _last_saved(self, run: Run) -> step.TrainState:
        """Returns the train state of the last checkpoint, or where there is none, the one before the first step."""
        try:
            return self.state_of(run)
        except ValueError:
            return self.initial_state()

    def _advance(self, state: step.TrainState, number: int) -> step.TrainState:
        """Takes the steps up to a number of them, with no validation and nothing kept."""
        take = self.make_step()
        if self.mesh is not None:
            state = step.spread_train_state(state, self.mesh)
        while int(state.step) < number:
            state, _ = take(state, self.task.batch(int(state.step)))
        return state


def build(settings: Settings) -> Experiment:
    """Builds the experiment of the settings; reads the data."""
    task = TASKS[settings.task](settings.batch, settings.seed, settings.length, settings.chunk, settings.data)
    return Experiment(settings, task, make_network(settings, task.inputs, task.outputs), make_optimizer(settings))


def make_network(settings: Settings, inputs: int, outputs: int) -> Network:
    """Makes the layers between the inputs and the outputs of the settings' task."""
    task, H = TASKS[settings.task], settings.hidden
    steps = settings.length if task.length_is else settings.chunk if task.data_is else 1
    memory.check(memory.Sizes(settings.cell, inputs, H, outputs, settings.layers, steps, settings.batch), copies=4)
    make, of_first = functools.partial(CELLS[settings.cell], hidden=H), {}
    if settings.cell == "elman":
        options = {"recurrent_initializer": settings.initializer, "recurrent_scale": settings.recurrent_scale}
        make = functools.partial(make, activation=settings.activation, **options)
        of_first = {"input_scale": settings.input_scale * (math.sqrt(inputs) if task.tokens else 1.0)}
    return Network(
        (make(inputs, **of_first), *[make(H)] * (settings.layers - 1)),
        Readout(H, outputs),
        task.objective,
        dropout=settings.dropout if settings.layers > 1 else 0.0,
        recurrent_dropout=settings.dropout,
        last_step=task.last_step,
    )


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    """Makes the optimizer of the settings."""
    steps = -(-settings.steps // settings.accumulate)
    optimizer = step.adam(
        settings.rate, steps, settings.warmup, settings.clip, decay=settings.decay, accumulate=settings.accumulate
    )
    if settings.on_nan == "skip":
        optimizer = step.skip_not_finite(optimizer)
    return step.average_params(optimizer, settings.average) if settings.average else optimizer


def record(experiment: Experiment) -> dict[str, Any]:
    """Returns what the folder of the run keeps besides its checkpoints."""
    settings, task = dataclasses.asdict(experiment.settings), experiment.task
    settings["data"] = _absolute(settings["data"])
    if math.isinf(settings["vanishing_steps"]):
        del settings["vanishing_steps"]  # JSON knows no infinity
    kept = {
        "settings": settings,
        "network": {"inputs": task.inputs, "outputs": task.outputs},
        "digest": task.fingerprint(),
        "jax": jax.__version__,
    }
    return kept if task.vocabulary is None else kept | {"vocabulary": task.vocabulary}


def reopen(run: Run, data: str | None = None) -> Experiment:
    """Builds the experiment of a run again, to resume it.

    Args:
        run: the folder.
        data: where its data are now, if they are no longer where they were.

    Raises:
        ValueError: the data are not there, or are no longer what the run was trained on.
    """
    settings = settings_of(run)
    if data is not None:
        settings = dataclasses.replace(settings, data=_absolute(data))
    elif settings.data is not None and not pathlib.Path(settings.data).exists():
        raise ValueError(f"data: {settings.data!r} is no longer there: train --resume --data says where it is now")
    experiment = build(settings)
    kept, task = run.record, experiment.task
    if (task.fingerprint(), task.vocabulary) != (kept["digest"], kept.get("vocabulary")):
        source = settings.data or f"the data of {task.name}"
        raise ValueError(f"data: {source} has changed since the run began, and a run goes on with the same data")
    return experiment


def settings_of(run: Run) -> Settings:
    """Returns the settings a run was made with."""
    try:
        return Settings(**run.record["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(run.path)!r} was made by another version of jaxrnn: {error}") from error


def other_settings(run: Run, given: Mapping[str, Any]) -> list[str]:
    """Returns the names of those given settings that are others in a run; its data may lie elsewhere by now."""
    kept = settings_of(run)
    return [name for name, value in given.items() if name != "data" and getattr(kept, name) != value]


def load_best(run: Run, mesh: Mesh | None = None) -> tuple[Network, NetworkParams]:
    """Returns the network and the parameters with the least validation loss of a run, on one device; needs no data.

    Several processes call it together, with the mesh of their training.
    """
    settings = settings_of(run)
    net = make_network(settings, **run.record["network"])
    like = jax.eval_shape(
        lambda: step.initial_train_state(net, make_optimizer(settings), settings.batch, jax.random.key(0))
    )
    params = step.averaged_params(run.restore_best(_with_shardings(like, mesh)))
    return net, jax.tree.map(lambda leaf: leaf.addressable_data(0), params)


def _absolute(data: str | None) -> str | None:
    return None if data is None else str(pathlib.Path(data).expanduser().absolute())


def _with_shardings(like: step.TrainState, mesh: Mesh | None) -> step.TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        like,
        step.train_state_shardings(like, mesh),
    )
