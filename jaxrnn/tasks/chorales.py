"""Polyphonic music as piano rolls: 88 notes at every step, and the task is to tell those of the next one."""

from __future__ import annotations

import functools
import hashlib
import io
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import numpy as np

from jaxrnn.arguments import check_positive
from jaxrnn.flow.plots import empty_figure
from jaxrnn.network.losses import sigmoid_cross_entropy
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks import file_sizes
from jaxrnn.tasks.base import Published, Sequences, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOTES = 88
LOWEST = 21  # the MIDI number of the lowest key of a piano
PARTS = ("train", "valid", "test")
NAMES = {  # of the arrays that a file has
    ".mat": [f"{part}data" for part in PARTS],
    ".npz": [name for part in PARTS for name in (part, f"{part}_lengths")],
}
FILES = (
    "a .mat file of piano rolls of Boulanger-Lewandowski et al. (2012), JSB_Chorales.mat or Nottingham.mat, or an .npz "
    "file with the arrays train, valid, test [all steps, 88] and train_lengths, valid_lengths, test_lengths"
)
# By the sequences of the three parts: JSB chorales, Nottingham.
PUBLISHED = {
    (229, 76, 77): (
        Published(8.71, "plain network, Boulanger-Lewandowski et al. 2012"),
        Published(8.91, "plain network, Bai et al. 2018"),
        Published(8.43, "GRU, Bai et al. 2018"),
    ),
    (694, 173, 170): (
        Published(4.46, "plain network, Boulanger-Lewandowski et al. 2012"),
        Published(4.05, "plain network, Bai et al. 2018"),
        Published(3.36, "plain network with a regulariser, Pascanu et al. 2013"),
        Published(3.29, "LSTM, Bai et al. 2018"),
    ),
}
SHOWN, GIVEN = 60, 8  # steps of a piece in a picture, and of them those that a network goes on from


class Rolls(NamedTuple):
    """Holds piano rolls, float32 [T, 88] each, zeros and ones; a note is a key of the piano, the lowest first."""

    train: list[np.ndarray]
    valid: list[np.ndarray]
    test: list[np.ndarray]


def load(path: str | pathlib.Path) -> Rolls:
    """Reads piano rolls from a file.

    A `.mat` file has the variables traindata, validdata and testdata, each an array of arrays [T, 88], as in the four
    collections of Boulanger-Lewandowski, Bengio & Vincent (2012), "Modeling temporal dependencies in high-dimensional
    sequences". An `.npz` file has train, valid and test, all sequences of a part end to end [sum of T, 88], beside
    train_lengths and so on. Nothing is ever unpickled, and nothing is made of a size that the file does not have.

    Raises:
        ValueError: no such file, neither of the two formats, a file cut short, variables that are missing or empty,
            rolls of another width, shorter than two steps, or of other values than 0 and 1.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"data must be a .mat or .npz file, and there is no file {str(path)!r}")
    if path.suffix not in NAMES:
        raise ValueError(f"data must be a .mat or .npz file of piano rolls, got {path.name!r}")
    try:
        arrays = _read(path)
    except Exception as error:  # a damaged file can fail in any way the parser did not think of
        kind = {".mat": "a .mat file", ".npz": "an .npz file"}[path.suffix]
        raise ValueError(
            f"{path.name!r} cannot be read as {kind}; is it cut short, or of another kind? {error}"
        ) from error
    names = NAMES[path.suffix]
    if lacking := [name for name in names if name not in arrays]:
        raise ValueError(f"{path.name!r} must have the arrays {', '.join(names)}, and lacks {', '.join(lacking)}")
    return Rolls(*(_rolls(path, arrays, part) for part in PARTS))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    names = NAMES[path.suffix]
    if path.stat().st_size > file_sizes.MOST:
        raise ValueError(f"it has more than {file_sizes.MOST:,} bytes")
    if path.suffix == ".mat":
        from scipy.io import loadmat

        content = path.read_bytes()
        file_sizes.check_mat(content, names)
        return loadmat(io.BytesIO(content), variable_names=names)
    with zipfile.ZipFile(path) as archive:
        file_sizes.check_npz(archive, names)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names if name in arrays}


def _rolls(path: pathlib.Path, arrays: dict[str, np.ndarray], part: str) -> list[np.ndarray]:
    """Returns the sequences of a part, checked."""
    if path.suffix == ".mat":
        rolls = [np.asarray(roll) for roll in np.ravel(arrays[f"{part}data"])]
    else:
        steps, lengths = arrays[part], arrays[f"{part}_lengths"]
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or steps.shape[:1] != (lengths.sum(),):
            raise ValueError(f"{part}_lengths in {path.name!r} must add up to the steps of {part}, {steps.shape[:1]}")
        rolls = np.split(steps, np.cumsum(lengths)[:-1])
    for index, roll in enumerate(rolls):
        where = f"sequence {index} of {part} in {path.name!r}"
        if roll.ndim != 2 or roll.shape[1] != NOTES or roll.shape[0] < 2:
            raise ValueError(f"{where} must be [T, 88] with two steps at least, got shape {roll.shape}")
        if not np.isin(roll, (0, 1)).all():
            raise ValueError(f"{where} must hold zeros and ones only")
    if not rolls:
        raise ValueError(f"{part} in {path.name!r} must hold at least one sequence, got none")
    return [roll.astype(np.float32) for roll in rolls]


def batches(rolls: list[np.ndarray], size: int, chunk: int, seed: int | None = None) -> list[Sequences]:
    """Packs all sequences, each once, end to end into B rows of about one length, and cuts them into chunks.

    x_t is the roll at step t, y_t that at t + 1. A reset begins every sequence, a mask ends the shorter rows, and the
    state is to be carried from chunk to chunk.

    Args:
        rolls: as `load` gives them.
        size: B.
        chunk: T of a batch.
        seed: of the order; as they come where None.

    Raises:
        ValueError: a size below 1, no sequences.
    """
    check_positive("size", size)
    check_positive("chunk", chunk)
    if not rolls:
        raise ValueError("rolls must hold at least one sequence, got none")
    order = np.arange(len(rolls)) if seed is None else np.random.default_rng(seed).permutation(len(rolls))
    rows: list[list[np.ndarray]] = [[] for _ in range(size)]
    for i in order:
        min(rows, key=_steps).append(rolls[i])
    T = -(-max(map(_steps, rows)) // chunk) * chunk
    inputs, targets = np.zeros((2, T, size, NOTES), np.float32)
    mask, reset = np.zeros((2, T, size), bool)
    for b, row in enumerate(rows):
        t = 0
        for roll in row:
            steps = slice(t, t + len(roll) - 1)
            inputs[steps, b], targets[steps, b], mask[steps, b], reset[t, b] = roll[:-1], roll[1:], True, True
            t = steps.stop
    cuts = [slice(t, t + chunk) for t in range(0, T, chunk)]
    return [Sequences(inputs[c], targets[c], mask[c], reset[c], fresh=c.start == 0) for c in cuts]


def _steps(row: list[np.ndarray]) -> int:
    return sum(len(roll) - 1 for roll in row)


def sample(net: Network, params: NetworkParams, beginning: np.ndarray, steps: int, seed: int = 0) -> np.ndarray:
    """Writes a piano roll [steps, 88] that begins as given [T, 88] and goes on with notes that the network draws.

    Notes of a step are drawn independently of one another, which is what the network was trained for; chords that need
    them to go together are beyond it.
    """
    random = np.random.default_rng(seed)
    roll = [np.asarray(step, np.float32) for step in beginning]
    state = None
    for t in range(steps - 1):
        chances, state = _chances(net, params, roll[t][None], state)
        if t + 1 >= len(roll):
            roll.append((random.random(NOTES) < np.asarray(chances)[0]).astype(np.float32))
    return np.stack(roll[:steps])


@functools.partial(jax.jit, static_argnums=0)
def _chances(net: Network, params: NetworkParams, inputs: Any, state: Any) -> tuple[Any, Any]:
    outputs, state = net.apply(params, inputs, state)
    return jax.nn.sigmoid(outputs), state


class Chorales(Task):
    """Takes the collection in a file: a new order in every epoch, errors in nats per step, summed over the 88 notes.

    The published figures are means over all real steps of all sequences; to average over padding as well makes them
    look far better than they are.
    """

    name = "chorales"
    objective = staticmethod(sigmoid_cross_entropy)
    unit = "nats per step"
    inputs = outputs = NOTES
    recipe: ClassVar = {
        "hidden": 300,
        "input_scale": 1.0,
        "batch": 16,
        "chunk": 100,
        "steps": 3000,
        "rate": 3e-3,
        "dropout": 0.3,
        "average": 0.99,
        "patience": 8,
        "every": 100,
    }
    data_is = FILES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            raise ValueError(f"data: chorales need {FILES}; nothing is downloaded")

    @functools.cached_property
    def _rolls(self) -> Rolls:
        return load(self.data or "")

    @property
    def baselines(self) -> dict[str, float]:
        """Returns the nats per step of the test part under each note's frequency in the training part."""
        train, test = (np.concatenate([roll[1:] for roll in part]) for part in (self._rolls.train, self._rolls.test))
        frequency = (train.sum(0) + 1) / (len(train) + 2)
        chances = test * np.log(frequency) + (1 - test) * np.log(1 - frequency)
        return {"frequency of each note": float(-chances.sum(1).mean())}

    @property
    def published(self) -> list[Published]:
        return list(PUBLISHED.get(tuple(map(len, self._rolls)), ()))  # type: ignore[arg-type]

    def batch(self, step: int) -> Sequences:
        # Orders differ in length by a chunk or so: every epoch is taken for as long as the first.
        epoch, index = divmod(step, len(_epoch(self, 0)))
        return _epoch(self, epoch)[index % len(_epoch(self, epoch))]

    def validation(self) -> list[Sequences]:
        return batches(self._rolls.valid, self.batch_size, self.chunk)

    def test(self) -> list[Sequences]:
        return batches(self._rolls.test, self.batch_size, self.chunk)

    def fingerprint(self) -> str:
        found = hashlib.sha256(super().fingerprint().encode())
        for part in (self._rolls.train, self._rolls.valid, self._rolls.test):
            for roll in part:
                found.update(np.int64(len(roll)).tobytes() + np.ascontiguousarray(roll).tobytes())
        return found.hexdigest()

    def picture(self, net: Network, params: NetworkParams) -> Figure:
        """Returns a piece of the validation part beside what the network makes of its first steps."""
        real = self.validation()[0].inputs[:SHOWN, 0]
        return piano_rolls(real, sample(net, params, real[:GIVEN], SHOWN, self.seed))


@functools.lru_cache(maxsize=2)
def _epoch(task: Chorales, epoch: int) -> list[Sequences]:
    return batches(task._rolls.train, task.batch_size, task.chunk, task.seed + epoch)


def piano_rolls(real: np.ndarray, sampled: np.ndarray) -> Figure:
    """Draws a real piece beside one that a network went on with by itself after its first steps, [T, 88] each."""
    figure = empty_figure(12, 4.6)
    notes = np.flatnonzero(np.concatenate([real, sampled]).any(0))
    low, high = (notes.min() - 2, notes.max() + 2) if notes.size else (0, NOTES - 1)
    for axes, roll, title in zip(figure.subplots(1, 2, sharey=True), (real, sampled), ("real", "sampled"), strict=True):
        axes.imshow(roll.T, origin="lower", aspect="auto", cmap="Greys", interpolation="nearest",
                    extent=(-0.5, len(roll) - 0.5, LOWEST - 0.5, LOWEST + roll.shape[1] - 0.5))  # fmt: skip
        axes.set(xlabel="step", ylabel="MIDI note", title=title, ylim=(LOWEST + low, LOWEST + high))
    return figure
