"""The folder of a run: settings, metrics, checkpoints. Nothing in it is overwritten unless that is asked for.

Where several processes train together, all of them call all of this, on one file system. The first one writes settings
and metrics; checkpoints are written by all.
"""

from __future__ import annotations

import json
import math
import pathlib
import shutil
from typing import Any, Literal

import chex
import jax
from jax.experimental import multihost_utils

SETTINGS, METRICS = "settings.json", "metrics.jsonl"


class Run:
    """Reads and writes a folder with settings.json, metrics.jsonl, and the checkpoints `latest` and `best`."""

    def __init__(self, path: pathlib.Path, record: dict[str, Any]) -> None:
        self.path, self.record = path, record  # the record is what settings.json holds
        file = path / METRICS
        self._metrics = (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        )

    @classmethod
    def create(cls, path: pathlib.Path, record: dict[str, Any], overwrite: bool = False) -> Run:
        """Makes a new folder.

        Raises:
            ValueError: it exists and `overwrite` is False, or it exists and is not the folder of a run.
        """
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            if not (path / SETTINGS).is_file():
                raise ValueError(f"{str(path)!r} exists and is not the folder of a run: choose another --out")
            if not overwrite:
                raise ValueError(f"{str(path)!r} holds a run: --resume it, --overwrite it, or choose another --out")
        _wait_for_all("looked at the folder")
        if jax.process_index() == 0:
            if path.exists():
                shutil.rmtree(path)
            path.mkdir(parents=True)
            (path / SETTINGS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _wait_for_all("made the folder")
        return cls(path, record)

    @classmethod
    def open(cls, path: pathlib.Path) -> Run:
        """Opens a folder that exists.

        Raises:
            ValueError: there is no run, or its settings cannot be read.
        """
        try:
            record = json.loads((path / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{str(path)!r} is not the folder of a run: its {SETTINGS} cannot be read") from error
        return cls(path, record)

    def log(self, metrics: dict[str, Any]) -> None:
        """Appends a line of metrics."""
        self._metrics.append(metrics)
        if jax.process_index() == 0:
            with open(self.path / METRICS, "a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """Returns all lines of metrics."""
        return list(self._metrics)

    def seconds(self) -> float:
        """Returns how long the training has taken so far."""
        return max((metrics["seconds"] for metrics in self.metrics()), default=0.0)

    def drop_metrics_after(self, step: int) -> None:
        """Drops the metrics of the steps after the last checkpoint, which are about to be taken again."""
        _wait_for_all("read the metrics")
        self._metrics = [metrics for metrics in self._metrics if metrics["step"] <= step]
        if jax.process_index() == 0:
            lines = [json.dumps(metrics) + "\n" for metrics in self._metrics]
            (self.path / METRICS).write_text("".join(lines), encoding="utf-8")

    def best_validation(self) -> tuple[int, float]:
        """Returns the step with the least validation loss so far, and that loss."""
        losses = [(m["validation_loss"], m["step"]) for m in self.metrics() if "validation_loss" in m]
        loss, step = min(losses, default=(math.inf, 0))
        return step, loss

    def save(self, tree: chex.ArrayTree, step: int) -> None:
        """Saves as `latest`, and as `best` where this step has the least validation loss; then deletes the old one."""
        for name in ["latest"] + ["best"] * (self.best_validation()[0] == step):
            with self._checkpoints(name) as manager:
                if step not in manager.all_steps():
                    manager.save(step, args=_orbax().args.StandardSave(tree))

    def restore(self, like: Any, name: Literal["latest", "best"] = "latest") -> Any:
        """Reads a checkpoint in the structure, shapes and dtypes of `like` (arrays, or `jax.eval_shape` of them).

        Where these say how they are sharded, so is what is read; it may have been saved from other devices.

        Raises:
            ValueError: there is none.
        """
        with self._checkpoints(name) as manager:
            step = manager.latest_step()
            if step is None:
                raise ValueError(f"{str(self.path)!r} has no checkpoint yet: the run ended before its first one")
            place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            abstract = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or place), like
            )
            return manager.restore(step, args=_orbax().args.StandardRestore(abstract))

    def _checkpoints(self, name: str) -> Any:
        orbax = _orbax()
        options = orbax.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return orbax.CheckpointManager((self.path / name).absolute(), options=options)


def _wait_for_all(what: str) -> None:
    """Waits until all processes have done it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint
