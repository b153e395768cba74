"""Times a save of a run against Orbax alone: what sums, syncs and the rename that ends it cost.

    python scripts/save_cost.py                   # a small state, and one of 100 MB, in the folder for temporary files
    python scripts/save_cost.py --folder runs     # on another disk
    python scripts/save_cost.py --quick           # some seconds: few saves of small states

Four ways save the same train states in turns, each in a folder of its own that is deleted at the end:

    save         `jaxrnn.training.checkpoints`: arrays, metrics, progress, sums, all synced, then one rename
    deleted      the same, until the one before is off the disk, for which training does not wait
    Orbax        `orbax.checkpoint.Checkpointer.save` of the arrays, and the deletion of those before: no sums
    manager      `CheckpointManager.save` with `max_to_keep=1`, as saves of jaxrnn were before they had sums

The table has medians in ms, and medians of the ratios of save to the others, of the same turn.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import orbax.checkpoint

import jaxrnn
from jaxrnn.printing import in_bytes
from jaxrnn.training import step
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.fit import BEGINNING

Save = Callable[[step.TrainState, int], None]
WAYS = ("save", "deleted", "Orbax", "manager")
LINE = '{"step": 1, "validation_loss": 1.5, "seconds": 0.5}\n'
WARM = 3  # saves that are not counted
SIZES = {
    "small": (64, 128),
    "100 MB": (256, 1400),
}  # D and H of an LSTM
QUICK = {"small": (8, 8), "larger": (64, 64)}


def train_state(inputs: int, hidden: int) -> step.TrainState:
    """Returns a train state of noise, which nothing can make smaller."""
    net = jaxrnn.Network((jaxrnn.LSTM(inputs, hidden),), jaxrnn.Readout(hidden, 64), jaxrnn.softmax_cross_entropy)
    state = step.initial_train_state(net, step.adam(1e-3, 100), 32, jax.random.key(0))

    def noise(leaf: jax.Array) -> jax.Array:
        many = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim
        return jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype) if many else leaf

    return jax.tree.map(noise, state)


def orbax_alone(folder: pathlib.Path) -> Save:
    """Returns what writes arrays by Orbax, and deletes those before."""

    def save(state: step.TrainState, number: int) -> None:
        with orbax.checkpoint.Checkpointer(orbax.checkpoint.StandardCheckpointHandler()) as writer:
            writer.save(folder / str(number), args=orbax.checkpoint.args.StandardSave(state))
        shutil.rmtree(folder / str(number - 1), ignore_errors=True)

    return save


def manager(folder: pathlib.Path) -> Save:
    """Returns what saved `latest` before saves had sums."""
    options = orbax.checkpoint.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)

    def save(state: step.TrainState, number: int) -> None:
        with orbax.checkpoint.CheckpointManager(folder, options=options) as writer:
            writer.save(number, args=orbax.checkpoint.args.StandardSave(state))

    return save


def with_sums(checkpoints: Checkpoints) -> Save:
    """Returns what a run saves by."""

    def save(state: step.TrainState, number: int) -> None:
        checkpoints.save(number, state, BEGINNING, LINE * number)
        checkpoints.keep({number})

    return save


def turns(state: step.TrainState, folder: pathlib.Path, count: int) -> Iterator[dict[str, float]]:
    """Yields the seconds of each way, save by save, the first way another one every time."""
    checkpoints = Checkpoints(folder / "checkpoints")
    ways = [("save", with_sums(checkpoints)), ("Orbax", orbax_alone(folder / "orbax"))]
    ways.append(("manager", manager(folder / "manager")))
    for number in range(1, WARM + count + 1):
        seconds = {}
        for name, save in ways[number % 3 :] + ways[: number % 3]:
            start = time.perf_counter()
            save(state, number)
            seconds[name] = time.perf_counter() - start
            if name == "save":
                checkpoints.wait()
                seconds["deleted"] = time.perf_counter() - start
        if number > WARM:
            yield seconds


def row(name: str, state: step.TrainState, folder: pathlib.Path, count: int) -> str:
    """Returns the row of a state in the table."""
    found = list(turns(state, folder, count))
    size = in_bytes(sum(leaf.nbytes for leaf in jax.tree.leaves(state) if hasattr(leaf, "nbytes")))
    milliseconds = [f"{1e3 * statistics.median(each[way] for each in found):.0f}" for way in WAYS]
    ratios = [f"{statistics.median(each['save'] / each[way] for each in found):.2f}" for way in WAYS[2:]]
    return f"| {' | '.join([name, size, *milliseconds, *ratios])} |"


def head() -> str:
    """Returns the head of the table."""
    columns = ["state", "bytes", *(f"{way}, ms" for way in WAYS), *(f"save / {way}" for way in WAYS[2:])]
    return f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=30, help="saves of each way that are counted (default: 30)")
    parser.add_argument("--folder", type=pathlib.Path, help="where to save (default: where temporary files are)")
    parser.add_argument("--quick", action="store_true", help="3 saves of small states")
    options = parser.parse_args()
    sizes, count = (QUICK, 3) if options.quick else (SIZES, options.saves)
    print(head())
    for name, size in sizes.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(row(name, train_state(*size), pathlib.Path(folder).resolve(), count), flush=True)


if __name__ == "__main__":
    main()
