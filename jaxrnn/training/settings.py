"""The settings of an experiment: defaults, help, choices and checks, of which the command makes its options."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from jaxrnn.arguments import check_above_zero, check_choice, check_positive, check_rate, check_scale
from jaxrnn.cells.elman import Elman
from jaxrnn.cells.gru import GRU
from jaxrnn.cells.initializers import RECURRENT
from jaxrnn.cells.lstm import LSTM
from jaxrnn.tasks import TASKS

CELLS: dict[str, Any] = {
    "elman": Elman,
    "gru": GRU,
    "gru-before": functools.partial(GRU, reset="before"),
    "lstm": LSTM,
}
OF_ELMAN = ("activation", "initializer", "input_scale", "recurrent_scale")
LARGEST = 2**31 - 1  # what the integers of JAX hold, without its 64 bits


def _setting(
    default: Any, help: str, check: Callable[[str, Any], None] | None = None, choices: Iterable[str] | None = None
) -> Any:
    """Returns a field whose value passes a check, or is one of the choices."""
    if choices is not None:
        choices = tuple(choices)
        check = functools.partial(check_choice, choices=choices)
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "check": check})


def _check_some(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be greater than 0, got {value}")


def _by_task(attribute: Literal["data_is", "length_is"]) -> str:
    words: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        if meaning := getattr(task, attribute):
            words.setdefault(meaning, []).append(name)
    return "; ".join(f"for {' and '.join(names)}, {meaning}" for meaning, names in words.items())


@dataclasses.dataclass(frozen=True)
class Settings:
    """Decides a run, and with the data and the machine, its every bit."""

    task: str = _setting("text", "Choose what to learn.", choices=TASKS)
    data: str | None = _setting(None, f"Read the data from here: {_by_task('data_is')}.")
    length: int = _setting(100, f"Set the length: {_by_task('length_is')}.", check_positive)
    cell: str = _setting(
        "elman", "Choose the recurrence; gru-before is the GRU that resets before its product.", choices=CELLS
    )
    hidden: int = _setting(768, "Set the number of hidden units of a layer.", check_positive)
    layers: int = _setting(1, "Set the number of layers of cells.", check_positive)
    activation: str = _setting("tanh", "Choose the activation of an Elman cell.", choices=("tanh", "relu"))
    initializer: str = _setting("orthogonal", "Choose how to draw W of an Elman cell.", choices=RECURRENT)
    input_scale: float = _setting(2.0, "Set the standard deviation of the first U x_t of an Elman cell.", check_scale)
    recurrent_scale: float = _setting(0.5, "Set the largest eigenvalue of the first W of an Elman cell.", check_scale)
    batch: int = _setting(32, "Set the number of sequences side by side.", check_positive)
    chunk: int = _setting(
        64, "Cut sequences that are longer into so many steps of BPTT; the state is carried on.", check_positive
    )
    steps: int = _setting(2000, "Train for so many steps.", check_positive)
    rate: float = _setting(2e-3, "Set the highest learning rate of Adam.", check_above_zero)
    warmup: int = _setting(100, "Raise the rate over so many steps, before it falls as a cosine.", check_scale)
    clip: float = _setting(1.0, "Clip gradients to this global norm.", check_above_zero)
    decay: float = _setting(0.0, "Shrink all parameters by this times the rate at every step.", check_scale)
    noise: float = _setting(0.0, "Add normal noise of this standard deviation to the weights.", check_scale)
    dropout: float = _setting(0.0, "Drop this share of units between layers and on the recurrent path.", check_rate)
    vanishing: float = _setting(0.0, "Weight the vanishing-gradient regulariser of Elman cells by this.", check_scale)
    vanishing_steps: float = _setting(
        math.inf, "Halve that weight after so many steps: it falls as 1 / (1 + step / this).", _check_some
    )
    average: float = _setting(
        0.0, "Use an exponential average of the parameters that decays by this, for example 0.999.", check_rate
    )
    accumulate: int = _setting(1, "Average the gradients of so many batches for one step.", check_positive)
    patience: int = _setting(0, "Stop after so many validations without an improvement.", check_scale)
    gradient: Literal["bptt", "autodiff"] = _setting(
        "bptt", "Choose how to compute the gradient.", choices=("bptt", "autodiff")
    )
    on_nan: Literal["stop", "skip"] = _setting(
        "stop",
        "Choose what becomes of a step whose gradient is not finite: stop, and say where it began; or skip it.",
        choices=("stop", "skip"),
    )
    seed: int = _setting(0, "Set the seed of everything random.")
    every: int = _setting(250, "Validate and save every so many steps.", check_positive)
    flow: int = _setting(0, "Record the gradient flow every so many steps.", check_scale)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["check"] is not None:
                field.metadata["check"](field.name, value)
            if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
                raise ValueError(f"{field.name} must be below 2^31 = {LARGEST + 1:,}, got {value}")


def recipe(task: str, **changes: Any) -> Settings:
    """Returns the settings of a task's recipe, some of them changed; what nothing can carry then is left out of it.

    Raises:
        ValueError: a setting that another cell or another task has.
    """
    check_choice("task", task, tuple(TASKS))
    if "length" in changes and not TASKS[task].length_is:
        raise ValueError(f"--length is {_by_task('length_is')}; --task {task} has none: leave it out")
    suited = dict(TASKS[task].recipe)
    cell, leave_out = changes.get("cell", suited.get("cell", "elman")), []
    if cell != "elman":
        if given := [f"--{name.replace('_', '-')}" for name in OF_ELMAN if name in changes]:
            raise ValueError(f"{', '.join(given)} is for Elman cells, and --cell is {cell}: leave it out")
        leave_out = [*OF_ELMAN, "vanishing"]
    elif changes.get("gradient") == "autodiff":
        leave_out = ["vanishing"]
    suited = {name: value for name, value in suited.items() if name not in leave_out}
    return Settings(**{"task": task, **suited, **changes})
