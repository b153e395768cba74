"""The checkpoints of a run: folders named after their step, each with all that a training goes on from.

A checkpoint holds the train state, the progress of `fit`, the metrics so far, and the sums of all of these. It comes to
be by one rename, so that a kill leaves it whole or leaves none.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import chex
import jax
from jax.sharding import SingleDeviceSharding

from jaxrnn.training import disk
from jaxrnn.training.fit import Progress
from jaxrnn.training.processes import on_first

STATE, PROGRESS, METRICS = "state", "progress.json", "metrics.jsonl"


class Checkpoints:
    """Reads and writes a folder of checkpoints; several processes save and read together."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._deletion: concurrent.futures.Future | None = None

    def path(self, step: int) -> pathlib.Path:
        """Returns the folder of the checkpoint of a step."""
        return self.folder / str(step)

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, whole or damaged, the last one first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, in words; None where it is as it was saved."""
        return disk.find_damage(self.path(step))

    def metrics(self, step: int) -> str:
        """Returns the lines of metrics up to a checkpoint."""
        return (self.path(step) / METRICS).read_text(encoding="utf-8")

    def progress(self, step: int) -> Progress:
        """Returns the progress of a checkpoint."""
        kept = json.loads((self.path(step) / PROGRESS).read_text(encoding="utf-8"))
        return Progress(**{**kept, "pending": tuple(kept["pending"])})

    def state(self, step: int, like: Any) -> Any:
        """Reads the train state of a checkpoint in the structure, shapes, dtypes and shardings of `like`.

        Raises:
            ValueError: it has another structure.
        """
        place = SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or place), like
        )
        orbax = _orbax()
        try:
            with orbax.Checkpointer(orbax.StandardCheckpointHandler()) as reader:
                return reader.restore(self._state_of(self.path(step)), args=orbax.args.StandardRestore(abstract))
        except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
            where = f"checkpoint {step} in {str(self.folder)!r}"
            raise ValueError(f"{where} does not fit its settings: another version of jaxrnn made it") from error

    def save(self, step: int, train: chex.ArrayTree, progress: Progress, metrics: str) -> None:
        """Saves a checkpoint, in the place of a damaged one of this step.

        Of one that fails nothing is left, but for what Orbax writes after it has told of its error: until the next one.
        """
        beside = self.path(step).with_name(str(step) + disk.BESIDE)
        on_first(lambda: self._make_room(beside))
        try:
            self._write_state(beside, train)
            on_first(lambda: self._commit(step, beside, progress, metrics))
        except Exception:
            if jax.process_index() == 0:
                _delete([beside])  # of a full disk, it would keep what little there is until the next save
            raise

    def _write_state(self, beside: pathlib.Path, train: chex.ArrayTree) -> None:
        orbax = _orbax()
        # Weights are noise: zstd hardly makes them smaller, and takes longer than all sums and syncs ("Orbax" in
        # `scripts/save_cost.py` compresses).
        with orbax.Checkpointer(orbax.PyTreeCheckpointHandler(use_compression=False)) as writer:
            writer.save(self._state_of(beside), args=orbax.args.PyTreeSave(train))

    def _commit(self, step: int, beside: pathlib.Path, progress: Progress, metrics: str) -> int:
        """Makes what lies beside the checkpoint of a step."""
        target = self.path(step)
        (beside / PROGRESS).write_text(json.dumps(progress._asdict()), encoding="utf-8")
        (beside / METRICS).write_text(metrics, encoding="utf-8", newline="\n")
        disk.seal(beside)
        if target.exists():
            _delete([disk.set_aside(target)])
        os.replace(beside, target)
        disk.sync(self.folder)
        return step

    def keep(self, steps: set[int]) -> None:
        """Removes all other checkpoints: at once for whoever looks, and from the disk by and by."""
        gone = [disk.set_aside(self.path(step)) for step in self.steps() if step not in steps]
        # Training need not wait for this (`scripts/save_cost.py`, "deleted" less "save").
        deleter = concurrent.futures.ThreadPoolExecutor(1)
        self._deletion = deleter.submit(_delete, gone)
        deleter.shutdown(wait=False)

    def wait(self) -> None:
        """Waits until what was removed is off the disk."""
        if self._deletion is not None:
            self._deletion.result()

    def _make_room(self, beside: pathlib.Path) -> int:
        self.wait()
        self.folder.mkdir(exist_ok=True)
        left = (disk.BESIDE, disk.REMOVED)  # by a kill
        _delete(path for path in self.folder.iterdir() if path.name.endswith(left))
        beside.mkdir()
        return 0

    @staticmethod
    def _state_of(checkpoint: pathlib.Path) -> pathlib.Path:
        return (checkpoint / STATE).absolute()  # as Orbax wants it


def _delete(folders: Iterable[pathlib.Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint
