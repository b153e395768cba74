"""The text experiment: its settings, and all that is built from them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxrnn import train
from jaxrnn.arguments import check_positive
from jaxrnn.cells.elman import Elman
from jaxrnn.losses import softmax_cross_entropy
from jaxrnn.network import Network, NetworkParams, Readout
from jaxrnn.runs import Run
from jaxrnn.tasks import text


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a run, and with the data and the machine, its every bit."""

    data: str | None = None  # a file or folder, or the embedded text
    hidden: int = 768
    layers: int = 1
    activation: str = "tanh"
    token_scale: float = 2.0  # standard deviation of the fresh columns of U
    recurrent_scale: float = 0.5
    batch: int = 32
    chunk: int = 64  # steps of BPTT; the state is carried further
    steps: int = 2000
    rate: float = 2e-3
    warmup: int = 100
    clip: float = 1.0
    gradient: str = "bptt"
    seed: int = 0
    every: int = 250  # steps between validations
    flow: int = 0  # steps between records of the gradient flow; 0 for none

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "batch", "chunk", "steps", "every"):
            check_positive(name, getattr(self, name))
        for name in ("rate", "clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("warmup", "flow"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class Experiment(NamedTuple):
    """What the settings and the data make."""

    settings: Settings
    text: text.Text
    net: Network
    optimizer: Any

    def initial(self) -> train.TrainState:
        """The train state before the first step."""
        return train.initial(self.net, self.optimizer, self.settings.batch, jax.random.key(self.settings.seed))

    def validate(self, params: NetworkParams) -> float:
        """Nats per character of the validation part."""
        batches = text.validation_batches(self.text.validation, self.settings.batch)
        return train.evaluate(self.net, params, batches)

    def fit(self, state: train.TrainState, run: Run, log: Callable[[dict[str, Any]], None]) -> train.Outcome:
        """Train to the end, or to Ctrl-C, with metrics and checkpoints in the folder of the run."""
        settings = self.settings
        key = jax.random.fold_in(state.key, 0)  # of its own: the buffers of the state are donated
        streams = text.Streams(self.text.train, settings.chunk, settings.batch, key)
        return train.fit(
            state,
            train.make_step(self.net, self.optimizer, gradient=settings.gradient, flow=settings.flow > 0),
            streams.batch,
            settings.steps,
            validate=self.validate,
            every=settings.every,
            log=log,
            flow_every=settings.flow,
            save=lambda state: run.save(state, int(state.step)),
        )


def network(vocabulary: str, settings: Settings) -> Network:
    """Elman layers between the tokens and the scores of a vocabulary."""
    V, H = len(vocabulary), settings.hidden
    first = Elman(V, H, settings.activation, input_scale=settings.token_scale * math.sqrt(V))
    layers = [first] + [Elman(H, H, settings.activation)] * (settings.layers - 1)
    layers = [dataclasses.replace(layer, recurrent_scale=settings.recurrent_scale) for layer in layers]
    return Network(tuple(layers), Readout(H, V), softmax_cross_entropy)


def build(settings: Settings) -> Experiment:
    """The experiment of the settings; reads the data."""
    content = text.load(settings.data)
    text.Streams(content.train, settings.chunk, settings.batch, jax.random.key(0))  # too little text is told now
    optimizer = train.adam(settings.rate, settings.steps, settings.warmup, settings.clip)
    return Experiment(settings, content, network(content.vocabulary, settings), optimizer)


def record(experiment: Experiment) -> dict[str, Any]:
    """What the folder of the run keeps besides its checkpoints."""
    settings = dataclasses.asdict(experiment.settings)
    if settings["data"] is not None:
        settings["data"] = str(pathlib.Path(settings["data"]).expanduser().absolute())
    return {
        "settings": settings,
        "vocabulary": experiment.text.vocabulary,
        "digest": digest(experiment.text),
        "jax": jax.__version__,
    }


def reopen(run: Run) -> Experiment:
    """The experiment of a run, to resume it.

    Raises:
        ValueError: the data are no longer what the run was trained on.
    """
    experiment = build(settings_of(run))
    if digest(experiment.text) != run.settings["digest"]:
        raise ValueError(
            f"data: {experiment.text.source} has changed since the run began, and a run goes on with the same text"
        )
    return experiment


def settings_of(run: Run) -> Settings:
    """The settings a run was made with."""
    try:
        return Settings(**run.settings["settings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{str(run.path)!r} was made by another version of jaxrnn: {error}") from error


def trained(run: Run) -> tuple[Network, NetworkParams, str]:
    """Network, parameters at the least validation loss, and vocabulary of a run; needs no data."""
    settings, vocabulary = settings_of(run), run.settings["vocabulary"]
    net = network(vocabulary, settings)
    optimizer = train.adam(settings.rate, settings.steps, settings.warmup, settings.clip)
    like = jax.eval_shape(lambda: train.initial(net, optimizer, settings.batch, jax.random.key(0)))
    return net, run.restore(like, "best").params, vocabulary


def digest(content: text.Text) -> str:
    """A fingerprint of the tokens."""
    return hashlib.sha256(content.train.tobytes() + content.validation.tobytes()).hexdigest()
