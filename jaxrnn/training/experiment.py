"""An experiment: a task, a network and its training, all that is built from settings, and how a run is found again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import check_choice, check_positive, check_scale
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.lstm import LSTM
from jaxrnn.network import losses
from jaxrnn.network.network import Network, NetworkParams, Readout
from jaxrnn.tasks import adding, chorales, copy_memory, digits, reber, temporal_order, text
from jaxrnn.tasks.sequences import Task
from jaxrnn.training import train
from jaxrnn.training.runs import Run

CELLS = {"elman": Elman, "gru": GRU, "lstm": LSTM}
TASKS = ("text", "chorales", "adding", "copy", "order", "reber", "digits", "permuted-digits")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a run, and with the data and the machine, its every bit."""

    task: str = "text"
    data: str | None = None  # of text a file or folder, or the embedded text; of chorales a file
    length: int = 100  # of the sequences of adding and order; of copy the pause
    cell: str = "elman"
    hidden: int = 768
    layers: int = 1
    activation: str = "tanh"
    initializer: str = "orthogonal"
    input_scale: float = 2.0  # standard deviation of the fresh U x_t
    recurrent_scale: float = 0.5
    batch: int = 32
    chunk: int = 64  # steps of BPTT where sequences are longer; the state is carried further
    steps: int = 2000
    rate: float = 2e-3
    warmup: int = 100
    clip: float = 1.0
    decay: float = 0.0  # of weights, see `train.adam`
    noise: float = 0.0  # on weights, see `train.make_step`
    dropout: float = 0.0  # between layers, and on the recurrent path
    vanishing: float = 0.0  # weight of the regulariser Omega, divided by 1 + step / vanishing_steps
    vanishing_steps: float = math.inf
    average: float = 0.0  # of parameters, exponential; 0 for none
    accumulate: int = 1
    patience: int = 0  # validations without an improvement before the end; 0 for never
    gradient: str = "bptt"
    seed: int = 0
    every: int = 250  # steps between validations
    flow: int = 0  # steps between records of the gradient flow; 0 for none

    def __post_init__(self) -> None:
        check_choice("task", self.task, TASKS)
        check_choice("cell", self.cell, tuple(CELLS))
        for name in ("length", "hidden", "layers", "batch", "chunk", "steps", "every", "accumulate"):
            check_positive(name, getattr(self, name))
        for name in ("rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("decay", "noise", "vanishing", "average", "dropout", "input_scale", "recurrent_scale"):
            check_scale(name, getattr(self, name))
        for name in ("warmup", "flow", "patience"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.average >= 1:
            raise ValueError(f"average must be less than 1, got {self.average}")


# What suits a task, where it is not what suits text.
RECIPES: dict[str, dict[str, Any]] = {
    "text": {},
    "chorales": {"hidden": 200, "input_scale": 1.0, "batch": 16, "chunk": 100, "steps": 2000, "every": 50},
    "adding": {"hidden": 100, "activation": "relu", "initializer": "identity", "recurrent_scale": 1.0,
               "input_scale": 0.03, "batch": 64, "rate": 1e-3, "steps": 4000},
    "copy": {"hidden": 128, "input_scale": 1.0, "recurrent_scale": 1.0, "batch": 64, "rate": 1e-3, "steps": 4000},
    "order": {"hidden": 100, "input_scale": 1.0, "recurrent_scale": 1.0, "batch": 64, "rate": 1e-3, "steps": 4000},
    "reber": {"hidden": 64, "input_scale": 1.0, "recurrent_scale": 1.0, "steps": 2000},
    "digits": {"hidden": 128, "input_scale": 1.0, "recurrent_scale": 1.0, "batch": 64, "rate": 1e-3, "steps": 3000},
}  # fmt: skip
RECIPES["permuted-digits"] = RECIPES["digits"]


class Experiment(NamedTuple):
    """What the settings and the data make."""

    settings: Settings
    task: Task
    net: Network
    optimizer: Any
    text: text.Text | None = None  # of the task of that name

    def initial(self) -> train.TrainState:
        """The train state before the first step."""
        return train.initial(self.net, self.optimizer, self.settings.batch, jax.random.key(self.settings.seed))

    def validate(self, params: NetworkParams) -> train.Figures:
        """The figures of the validation part."""
        return train.evaluate(self.net, params, self.task.validation(), self.task.classes)

    def fit(self, state: train.TrainState, run: Run, log: Callable[[dict[str, Any]], None]) -> train.Outcome:
        """Train to the end, or to Ctrl-C, with metrics and checkpoints in the folder of the run."""
        settings = self.settings
        return train.fit(
            state,
            self.step(),
            self.task.batch,
            settings.steps,
            validate=self.validate,
            every=settings.every,
            log=log,
            flow_every=settings.flow,
            patience=settings.patience or None,
            save=lambda state: run.save(state, int(state.step)),
        )

    def step(self) -> Callable[..., Any]:
        """The training step of the settings."""
        settings = self.settings
        vanishing = functools.partial(_fading, settings.vanishing, settings.vanishing_steps)
        return train.make_step(
            self.net,
            self.optimizer,
            gradient=settings.gradient,
            flow=settings.flow > 0,
            vanishing=vanishing if settings.vanishing else None,
            noise=settings.noise,
        )


def _fading(weight: float, steps: float, step: Array) -> Array:
    """A weight that falls as one over time (Pascanu, Mikolov & Bengio 2013, section 4)."""
    return weight / (1 + jnp.asarray(step, jnp.float32) / steps)


def network(settings: Settings, inputs: int, outputs: int, tokens: bool, last_step: bool, objective: str) -> Network:
    """Layers between the inputs and the outputs of a task."""
    H = settings.hidden
    if settings.cell == "elman":
        scale = settings.input_scale * (math.sqrt(inputs) if tokens else 1.0)
        elman = functools.partial(
            Elman,
            activation=settings.activation,
            recurrent_initializer=settings.initializer,
            recurrent_scale=settings.recurrent_scale,
        )
        layers: list[Any] = [elman(inputs, H, input_scale=scale)] + [elman(H, H)] * (settings.layers - 1)
    else:
        layers = [CELLS[settings.cell](D, H) for D in [inputs] + [H] * (settings.layers - 1)]
    between = settings.dropout if settings.layers > 1 else 0.0
    return Network(
        tuple(layers),
        Readout(H, outputs),
        getattr(losses, objective),
        dropout=between,
        recurrent_dropout=settings.dropout,
        last_step=last_step,
    )


def optimizer(settings: Settings) -> Any:
    """The optimizer of the settings."""
    steps = -(-settings.steps // settings.accumulate)
    chain = train.adam(
        settings.rate, steps, settings.warmup, settings.clip, decay=settings.decay, accumulate=settings.accumulate
    )
    return train.averaged(chain, settings.average) if settings.average else chain


def build(settings: Settings) -> Experiment:
    """The experiment of the settings; reads the data."""
    content = text.load(settings.data) if settings.task == "text" else None
    task = _task(settings, content)
    made = network(settings, task.inputs, task.outputs, task.tokens, task.last_step, _name_of(task.objective))
    return Experiment(settings, task, made, optimizer(settings), content)


def _task(settings: Settings, content: text.Text | None) -> Task:
    name, batch, seed = settings.task, settings.batch, settings.seed
    if content is not None:
        key = jax.random.fold_in(jax.random.split(jax.random.key(seed))[0], 0)
        return text.task(content, settings.chunk, batch, key)
    if name == "chorales":
        if settings.data is None:
            raise ValueError("data: chorales need a .mat or .npz file of piano rolls, see jaxrnn.tasks.chorales.load")
        return chorales.task(settings.data, settings.chunk, batch, seed)
    if settings.data is not None:
        raise ValueError(f"data: the task {name} makes its own, got {settings.data!r}")
    if name in ("digits", "permuted-digits"):
        return digits.task(batch, seed, permutation=0 if name == "permuted-digits" else None)
    if name == "reber":
        return reber.task(batch, seed)
    maker = {"adding": adding.task, "copy": copy_memory.task, "order": temporal_order.task}[name]
    return maker(settings.length, batch, seed)


def record(experiment: Experiment) -> dict[str, Any]:
    """What the folder of the run keeps besides its checkpoints."""
    settings, task = dataclasses.asdict(experiment.settings), experiment.task
    if settings["data"] is not None:
        settings["data"] = str(pathlib.Path(settings["data"]).expanduser().absolute())
    if math.isinf(settings["vanishing_steps"]):
        del settings["vanishing_steps"]  # JSON knows no infinity
    kept = {
        "settings": settings,
        "network": {
            "inputs": task.inputs,
            "outputs": task.outputs,
            "tokens": task.tokens,
            "last_step": task.last_step,
            "objective": _name_of(task.objective),
        },
        "digest": digest(experiment),
        "jax": jax.__version__,
    }
    return kept if experiment.text is None else kept | {"vocabulary": experiment.text.vocabulary}


def reopen(run: Run) -> Experiment:
    """The experiment of a run, to resume it.

    Raises:
        ValueError: the data are no longer what the run was trained on.
    """
    experiment = build(settings_of(run))
    if digest(experiment) != run.settings["digest"]:
        source = experiment.settings.data or "the text"
        raise ValueError(f"data: {source} has changed since the run began, and a run goes on with the same data")
    return experiment


def settings_of(run: Run) -> Settings:
    """The settings a run was made with."""
    try:
        return Settings(**run.settings["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(run.path)!r} was made by another version of jaxrnn: {error}") from error


def trained(run: Run) -> tuple[Network, NetworkParams]:
    """Network and parameters at the least validation loss of a run; needs no data."""
    settings = settings_of(run)
    net = network(settings, **run.settings["network"])
    like = jax.eval_shape(lambda: train.initial(net, optimizer(settings), settings.batch, jax.random.key(0)))
    return net, train.best_guess(run.restore(like, "best"))


def digest(experiment: Experiment) -> str:
    """A fingerprint of the data: of a text all tokens, of other tasks the first batch and the validation part."""
    if experiment.text is not None:
        content = experiment.text
        return hashlib.sha256(content.train.tobytes() + content.validation.tobytes()).hexdigest()
    found = hashlib.sha256()
    for leaf in jax.tree.leaves((experiment.task.batch(0), list(experiment.task.validation()))):
        found.update(jnp.asarray(leaf).tobytes())
    return found.hexdigest()


def _name_of(objective: Any) -> str:
    return str(objective.__name__)
