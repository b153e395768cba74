"""What a task is: sequences to learn from and to be judged by, what there is to beat, and the settings that suit it."""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import check_positive
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELD_OUT = (5, 200)  # batches of sequences that validate a task without a data set
# The settings that suit several tasks, where the defaults do not.
RECIPE: dict[str, Any] = {"input_scale": 1.0, "recurrent_scale": 1.0, "batch": 64, "rate": 1e-3, "steps": 4000}


class Sequences(NamedTuple):
    """Holds one batch of sequences, as tasks give them and training takes them."""

    inputs: Any  # [T, B, D], or tokens [T, B]
    targets: Any  # [T, B, ...]; of a task with one answer for a sequence [B, ...]
    mask: Any = None  # [T, B], False where a sequence has ended; None where all are of one length
    reset: Any = None  # [T, B], True where another sequence begins
    fresh: Any = True  # whether the state carried from the batch before is dropped


class Published(NamedTuple):
    """Holds a published error on the same data."""

    figure: float  # in the unit of the task, or the share of wrong answers
    source: str  # the network, and who reports it
    wrong: bool = False  # whether it is the share of wrong answers


@dataclasses.dataclass(frozen=True, eq=False)
class Task(abc.ABC):
    """Gives sequences to learn from; made from the settings that all tasks share, of which each reads what it needs.

    To add one, write a subclass in a file of its own and name it in `jaxrnn.tasks.TASKS`.

    Fields:
        batch_size: B.
        seed: decides everything random about the data.
        length: see `length_is`.
        chunk: the steps of a batch where sequences are longer.
        data: see `data_is`.
    """

    batch_size: int
    seed: int = 0
    length: int = 100
    chunk: int = 64
    data: str | None = None

    name: ClassVar[str]
    objective: ClassVar[Callable[..., Any]]
    unit: ClassVar[str]  # of the error, in words
    further_units: ClassVar[Mapping[str, float]] = {}  # to show the error in as well, and how many make one `unit`
    last_step: ClassVar[bool] = False  # whether a sequence has one answer, at its end
    tokens: ClassVar[bool] = False
    classes: ClassVar[bool] = False  # whether an answer is right or wrong
    recipe: ClassVar[Mapping[str, Any]] = {}  # the settings that suit the task, where the defaults do not
    data_is: ClassVar[str | None] = None  # what `data` may be, in words; None for a task that makes its own
    length_is: ClassVar[str | None] = None  # what `length` counts, in words; None for a task that ignores it
    least_length: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "length", "chunk"):
            check_positive(name, getattr(self, name))
        if self.length < self.least_length:
            raise ValueError(f"length must be {self.least_length} at least for the task {self.name}, got {self.length}")
        if self.data is not None and self.data_is is None:
            raise ValueError(f"data: the task {self.name} makes its own, got {self.data!r}")

    @property
    @abc.abstractmethod
    def inputs(self) -> int:
        """Returns D, the number of features, or of different tokens."""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Returns V, the number of outputs."""

    @property
    @abc.abstractmethod
    def baselines(self) -> dict[str, float]:
        """Returns errors by name that need no network."""

    @property
    def published(self) -> list[Published]:
        """Returns errors that are published for the same data, of the test part where there is one: none are known."""
        return []

    @abc.abstractmethod
    def batch(self, step: int) -> Sequences:
        """Returns the batch of a training step, counted from 0: a function of the position alone."""

    @abc.abstractmethod
    def validation(self) -> Iterable[Sequences]:
        """Returns the batches of the validation part."""

    def test(self) -> Iterable[Sequences] | None:
        """Returns the batches of the test part, which training never looks at, where there is one."""
        return None

    @property
    def vocabulary(self) -> str | None:
        """Returns the characters that the tokens stand for, where they stand for characters."""
        return None

    @property
    def folder(self) -> str:
        """Returns the name that the folder of a run gets where none is asked for."""
        return pathlib.Path(self.data).expanduser().resolve().stem if self.data else self.name

    def describe(self) -> list[str]:
        """Returns lines that say what there is to learn, and to beat."""
        to_beat = ", ".join(f"{name} {error:.4f}" for name, error in self.baselines.items())
        shape = list(self.batch(0).inputs.shape)
        return [f"Task: {self.name}, inputs {shape}", f"  in {self.unit}; to beat: {to_beat}"]

    def fingerprint(self) -> str:
        """Returns a digest that changes with the data: here of the first batch and the validation part."""
        found = hashlib.sha256()
        for leaf in jax.tree.leaves((self.batch(0), list(self.validation()))):
            found.update(jnp.asarray(leaf).tobytes())
        return found.hexdigest()

    def excerpt(self, steps: int, size: int, seed: int) -> Sequences:
        """Returns pieces of the validation part, `size` of them with so many steps, to look at their gradient flow."""
        raise ValueError(
            f"the run was trained on {self.name}, which has no pieces of any length: "
            f"call jaxrnn.flow.diagnosis.diagnose with a batch of it"
        )

    def picture(self, net: Network, params: NetworkParams) -> Figure | None:
        """Returns a picture of what the network has learnt: here the one that suits the kind of answers."""
        batch = next(iter(self.validation()))
        outputs = np.asarray(jax.jit(net.apply)(params, batch.inputs, None, batch.mask, batch.reset)[0])
        if not self.last_step:
            errors = np.asarray(net.objective(jnp.asarray(outputs), batch.targets))
            there = np.ones(errors.shape, bool) if batch.mask is None else np.asarray(batch.mask)
            rows = np.stack([batch.inputs[:, 0], batch.targets[:, 0], outputs[:, 0].argmax(-1)])
            return pictures.steps(errors, there, rows, self.unit)
        if self.classes:
            return pictures.confusion(np.asarray(batch.targets), outputs)
        return pictures.answers(np.asarray(batch.targets)[:, 0], outputs[:, 0])

    def sample(self, net: Network, params: NetworkParams) -> str | None:
        """Returns a text that the network has written, where the task is to write one."""
        return None


class EndlessTask(Task):
    """Draws its sequences: fresh ones at every step, and a thousand others that validate."""

    length_is = "the steps of a sequence"
    recipe: ClassVar = RECIPE | {"hidden": 100}

    @abc.abstractmethod
    def draw(self, key: chex.PRNGKey, size: int) -> Sequences:
        """Returns `size` sequences that depend on the key alone."""

    def batch(self, step: int) -> Sequences:
        return self._draw(0, step, self.batch_size)._replace(fresh=True)

    def validation(self) -> list[Sequences]:
        batches, size = HELD_OUT
        return [self._draw(1, i, size)._replace(fresh=True) for i in range(batches)]

    @functools.cached_property
    def _draw(self) -> Callable[[int, int, int], Sequences]:
        keys = jax.random.split(jax.random.key(self.seed))  # one to train, one to validate
        draw = lambda part, index, size: self.draw(jax.random.fold_in(keys[part], index), size)  # noqa: E731
        return jax.jit(draw, static_argnums=2)
