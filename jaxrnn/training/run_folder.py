"""The folder of a run: settings, metrics, checkpoints. Nothing in it is overwritten unless that is asked for.

No name and no file says which checkpoint is the latest or the best: the latest is the one with the most steps, and the
best the one whose validation loss its metrics say is least. So the two cannot be at odds with the metrics or with each
other, wherever a save is cut off. Each checkpoint has the metrics up to it; metrics.jsonl is to be looked at, and is
set right by them where it differs.

Where several processes train together, all of them call all of this, on one file system. The first one locks, judges
and writes; train states are written by all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import pathlib
import shutil
from types import TracebackType
from typing import Any

import chex
import jax

from jaxrnn.training import disk
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.fit import BEGINNING, Progress
from jaxrnn.training.processes import on_first

SETTINGS, METRICS, CHECKPOINTS = "settings.json", "metrics.jsonl", "checkpoints"
DIGEST = "sha256"  # in the settings, of all else there


class Run:
    """Reads and writes the folder of a run. Whoever writes holds its lock until `close()`, or the end of a `with`.

    Fields:
        path: the folder.
        record: what settings.json holds.
        progress: where the last checkpoint stands, besides its train state.
    """

    def __init__(self, path: pathlib.Path, record: dict[str, Any]) -> None:
        self.path, self.record, self.progress = path, record, BEGINNING
        self._checkpoints = Checkpoints(path / CHECKPOINTS)
        self._last: int | None = None  # the step of the last checkpoint that is whole
        self._rows: list[dict[str, Any]] = []
        self._lines: list[str] = []  # the same, as they are written
        self._written = 0  # how many of them metrics.jsonl has
        self._lock: Any = None

    @classmethod
    def create(cls, path: pathlib.Path, record: dict[str, Any], overwrite: bool = False) -> Run:
        """Makes a new folder, to write in.

        Raises:
            ValueError: it exists and `overwrite` is False; it exists and is not the folder of a run; another process
                writes there.
        """
        run = cls(path, record)
        with contextlib.ExitStack() as undo:
            undo.callback(run.close)
            on_first(lambda: run._make(overwrite))
            undo.pop_all()
        return run

    @classmethod
    def open(cls, path: pathlib.Path, writing: bool = False) -> Run:
        """Opens a folder that exists, to read it, or to go on with it.

        Of damaged checkpoints and damaged metrics one line of the log says so, and what is whole is taken.

        Raises:
            ValueError: there is no run; its settings cannot be read, or are not as they were written; all of its
                checkpoints are damaged; it is to be written, and another process does.
        """
        run = cls(path, _read_settings(path))
        with contextlib.ExitStack() as undo:
            undo.callback(run.close)
            if writing:
                on_first(run._take_lock)
            run._find_last()
            run._read_metrics()
            undo.pop_all()
        return run

    def close(self) -> None:
        """Lets others write."""
        try:
            self._checkpoints.wait()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def change_settings(self, settings: dict[str, Any]) -> None:
        """Writes other settings of the run in the place of those it has."""
        self._check_writing()
        self.record = {**self.record, "settings": settings}
        on_first(self._write_settings)

    def log(self, metrics: dict[str, Any]) -> None:
        """Adds a line of metrics; that of a validation is written when the checkpoint it speaks of is there."""
        self._rows.append(metrics)
        self._lines.append(json.dumps(metrics) + "\n")
        if "validation_loss" not in metrics:
            self._write_metrics()

    def metrics(self) -> list[dict[str, Any]]:
        """Returns all lines of metrics."""
        return list(self._rows)

    def seconds(self) -> float:
        """Returns how long the training has taken so far."""
        return max((metrics["seconds"] for metrics in self._rows), default=0.0)

    def best_validation(self) -> tuple[int, float]:
        """Returns the step with the least validation loss so far, and that loss; 0 and infinity before the first."""
        loss, step = min(self._ranked(), default=(math.inf, 0))
        return step, loss

    def save(self, train: chex.ArrayTree, step: int, progress: Progress = BEGINNING) -> None:
        """Saves a checkpoint. It, the one before and the best are kept, and the others deleted."""
        self._check_writing()
        self._checkpoints.save(step, train, progress, "".join(self._lines))
        self._write_metrics()
        if jax.process_index() == 0:
            self._checkpoints.keep({step, self._last or step, self.best_validation()[0]})
        self.progress, self._last = progress, step

    def restore_latest(self, like: Any) -> Any:
        """Goes back to the last checkpoint that is whole: its metrics, its progress, its train state.

        Args:
            like: arrays, or `jax.eval_shape` of them, whose structure, shapes and dtypes the train state has. Where
                they say how they are sharded, so is what is read; it may have been saved from other devices.

        Returns:
            The train state, or None where the run ended before its first checkpoint, and stands before its first step.
        """
        self._check_writing()
        step = on_first(lambda: -1 if self._last is None else self._last)
        self._last = None if step < 0 else step
        self.progress = BEGINNING if self._last is None else self._checkpoints.progress(step)
        text = "" if self._last is None else self._checkpoints.metrics(step)
        self._take_metrics(text)
        self._written = len(self._lines)
        if jax.process_index() == 0:
            disk.write_whole(self.path / METRICS, text)
        return None if self._last is None else self._checkpoints.state(step, like)

    def restore_best(self, like: Any) -> Any:
        """Reads the train state with the least validation loss; `like` is as for `restore_latest`.

        Where it is damaged, the next best is taken, and a line of the log says so.

        Raises:
            ValueError: there is none yet, or all are damaged.
        """
        return self._checkpoints.state(on_first(self._choose_best), like)

    def _make(self, overwrite: bool) -> int:
        self._check_free(overwrite)
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        self._check_free(overwrite)  # again, now that nobody else can make one
        for path in self.path.iterdir():
            # The settings stay until others take their place, so that after a kill it still is the folder of a run.
            if path.name not in (disk.LOCK, SETTINGS):
                shutil.rmtree(disk.set_aside(path)) if path.is_dir() else path.unlink()
        return self._write_settings()

    def _write_settings(self) -> int:
        kept = {**self.record, DIGEST: _digest(self.record)}
        disk.write_whole(self.path / SETTINGS, json.dumps(kept, indent=2) + "\n")
        return 0

    def _check_free(self, overwrite: bool) -> None:
        """Raises where there is something that must not be overwritten."""
        path, unfinished = self.path, {disk.LOCK, SETTINGS + disk.BESIDE}
        if not path.exists() or (path.is_dir() and {child.name for child in path.iterdir()} <= unfinished):
            return
        if not (path / SETTINGS).is_file():
            raise ValueError(f"{str(path)!r} exists and is not the folder of a run: choose another --out")
        if not overwrite:
            raise ValueError(f"{str(path)!r} holds a run: --resume it, --overwrite it, or choose another --out")

    def _ranked(self) -> list[tuple[float, int]]:
        """Returns the validation losses and their steps, the best first."""
        losses = [(m["validation_loss"], m["step"]) for m in self._rows if "validation_loss" in m]
        return sorted(pair for pair in losses if not math.isnan(pair[0]))

    def _take_lock(self) -> int:
        self._lock = disk.lock(self.path)
        return 0

    def _check_writing(self) -> None:
        if self._lock is None and jax.process_index() == 0:
            raise ValueError(f"{str(self.path)!r} was opened to read: Run.open(path, writing=True) goes on with it")

    def _find_last(self) -> None:
        """Finds the last checkpoint that is whole, and says of those after it what is wrong."""
        damaged = []
        for step in self._checkpoints.steps():
            damage = self._checkpoints.damage(step)
            if damage is None:
                self._last = step
                break
            damaged.append(f"checkpoint {step} of {str(self.path)!r} is damaged ({damage})")
        if damaged and self._last is None:
            raise ValueError(f"{damaged[0]}, and there is none before it: --overwrite begins again")
        for words in damaged:
            _note(f"{words}: going back to that of step {self._last}")

    def _choose_best(self) -> int:
        """Returns the step of the best checkpoint, or of the next best that is whole, and says what is wrong."""
        ranked, there = [step for _, step in self._ranked()], set(self._checkpoints.steps())
        if not ranked:
            raise ValueError(f"{str(self.path)!r} has no checkpoint yet: the run ended before its first one")
        # The last one need not have been validated: a stop saves as well.
        candidates = [*ranked[:1], *(step for step in ranked[1:] if step in there), *sorted(there, reverse=True)[:1]]
        words = ""
        for step in candidates:
            damage = self._checkpoints.damage(step)
            if damage is None:
                if words:
                    _note(f"{words}: taking that of step {step}")
                return step
            words = words or f"checkpoint {step} of {str(self.path)!r}, the best, is damaged ({damage})"
        raise ValueError(f"{words}, and there is no other")

    def _read_metrics(self) -> None:
        """Takes the metrics of the last checkpoint, and the lines of the file that come after them."""
        file, kept = self.path / METRICS, "" if self._last is None else self._checkpoints.metrics(self._last)
        text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            _note(f"the last line of {str(file)!r} is half written, and is dropped")
        try:
            self._take_metrics(kept + _after(kept, whole))
            self._rows = [row for row in self._rows if "validation_loss" not in row or row["step"] <= (self._last or 0)]
        except (ValueError, TypeError):
            _note(f"{str(file)!r} is damaged: taking the metrics that the last checkpoint has")
            self._take_metrics(kept)

    def _take_metrics(self, text: str) -> None:
        lines = text.splitlines(keepends=True)
        rows = [json.loads(line) for line in lines]
        if not all({"step", "seconds"} <= set(row) for row in rows):
            raise ValueError("a line of metrics has no step")
        self._rows, self._lines = rows, lines

    def _write_metrics(self) -> None:
        """Writes the lines that the file does not have yet."""
        self._check_writing()
        if jax.process_index() == 0:
            with open(self.path / METRICS, "a", encoding="utf-8", newline="\n") as file:
                file.write("".join(self._lines[self._written :]))
        self._written = len(self._lines)


def _after(kept: str, text: str) -> str:
    """Returns what a text has after the metrics of the last checkpoint, with which it must begin."""
    if text.startswith(kept):
        return text[len(kept) :]
    # The last line of a save is written when its checkpoint is there: a kill leaves the file without it.
    if kept.startswith(text) and kept.count("\n") - text.count("\n") == 1:
        return ""
    raise ValueError("the metrics differ")


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = dict(json.loads((path / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not the folder of a run: its {SETTINGS} cannot be read") from error
    if record.pop(DIGEST, None) != _digest(record):
        raise ValueError(
            f"{str(path / SETTINGS)!r} is not as it was written: it is damaged, or changed, or another version of "
            f"jaxrnn wrote it"
        )
    return record


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _note(words: str) -> None:
    """Says something on the standard error, where nobody has made the log go elsewhere; once for all processes."""
    if jax.process_index() == 0:
        logging.getLogger("jaxrnn").warning("jaxrnn: %s", words)
