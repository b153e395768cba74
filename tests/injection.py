"""A tiny training run, and faults put into it: kills at every operation on files, or at any moment."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  # for processes that are forked from one that has imported this file

from jaxrnn.training import experiment, run_folder
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.fit import Metrics
from jaxrnn.training.run_folder import Run
from jaxrnn.training.settings import Settings

SMALL = {"hidden": 8, "batch": 2, "chunk": 8, "steps": 30, "every": 7, "warmup": 4}
TEXT = "she sells sea shells by the sea shore\n" * 20
LOSSES = {7: 3.0, 14: 1.0, 21: 2.0, 28: 2.5, 30: 1.5}  # where validation goes up and down
# What a run may be like: its settings, whether validation goes up and down, and where it is asked to stop.
KINDS = {
    "falling": ({}, False, ()),
    "up and down": ({}, True, ()),
    "out of patience": ({"patience": 2}, True, ()),
    "interrupted": ({}, True, (10, 23)),
}


class Killed(BaseException):
    """Stands for the end of the process."""


class Killer:
    """Kills a process at one of its operations on files: by its end, or by an exception after which it writes nothing.

    The operations are those that Python tells an audit hook of and that change something on the disk, and `os.fsync`.
    """

    CHANGES = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"})

    def __init__(self):
        self.active, self.dead, self.done, self.at, self.torn, self.really = False, False, 0, None, False, False
        sys.addaudithook(self._see)
        self._fsync, os.fsync = os.fsync, self._sync

    @contextlib.contextmanager
    def armed(self, at, torn=False, really=False):
        """Kills at the operation `at`, counted from 1, while the block runs.

        Args:
            torn: a file that is opened to be written is there and empty when the kill comes, not still missing.
            really: the process ends, as of SIGKILL.
        """
        self.active, self.dead, self.done, self.at, self.torn, self.really = True, False, 0, at, torn, really
        try:
            yield
        finally:
            self.active = False

    def _see(self, event, arguments):
        if not self.active:
            return
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self._count(arguments[0] if self.torn else None)
        elif event in self.CHANGES:
            self._count(None)

    def _sync(self, descriptor):
        if self.active:
            self._count(None)
        self._fsync(descriptor)

    def _count(self, path):
        self.done += 1
        if self.done == self.at:
            self.dead = True
            if path is not None and isinstance(path, str | os.PathLike):
                self.active = False
                with contextlib.suppress(OSError):
                    open(path, "a").close()
                self.active = True
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
        if self.dead:
            raise Killed


class Compiled(experiment.Experiment):
    """An experiment that compiles its step once, and whose validation may go up and down."""

    def make_step(self):
        """Returns the step, the same one for all equal settings."""
        return _step(self.net, dataclasses.replace(self.settings, patience=0), super().make_step)


_steps = {}


def _step(net, settings, make):
    key = (net, settings)
    return _steps.setdefault(key, _steps.get(key) or make())


class Position:
    """Gives the batches of a task, and remembers of which step the last one was."""

    def __init__(self, task):
        self._task, self.step = task, 0

    def __getattr__(self, name):
        return getattr(self._task, name)

    def batch(self, step):
        """Returns the batch of a step, counted from 0."""
        self.step = step + 1
        return self._task.batch(step)


class UpAndDown(Compiled):
    """One whose validation goes up and down, and depends on every bit of the parameters."""

    def validate(self, params):
        """Returns what is written down for the step, and a little that the parameters decide."""
        return Metrics(LOSSES[self.task.step] + int(digest(params)[:8], 16) / 16**10, None)


def digest(tree):
    """Returns a digest of the bytes of all arrays of a tree."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


class TinyRun:
    """Trains a tiny network on a text, in any folder, and knows what must come of it."""

    def __init__(self, data, kind):
        changes, up_and_down, self.stops = KINDS[kind]
        made = experiment.build(Settings(data=str(data), **SMALL | changes))
        self.now = UpAndDown(*made._replace(task=Position(made.task))) if up_and_down else Compiled(*made)
        self.like = jax.eval_shape(self.now.initial_state)
        self.kind = kind
        self.expected = None  # the result of a run that nothing happened to, and the digests of its checkpoints by step

    def open(self, folder):
        """Begins a run, or opens it to go on, as `--resume=auto` does."""
        if (folder / run_folder.SETTINGS).is_file():
            return Run.open(folder, writing=True)
        return Run.create(folder, experiment.record(self.now))

    def go_on(self, folder):
        """Trains to the end, through all stops; returns what came of it."""
        outcome = None
        while outcome is None or outcome.interrupted:
            with self.open(folder) as run:
                state = self.now.state_of(run)
                asked = iter(range(int(state.step) + 1, self.now.settings.steps + 1))
                outcome = self.now.train(run, state, stop=lambda asked=asked: next(asked) in self.stops)
        return self.result(folder)

    def result(self, folder):
        """Returns what a run has come to, as a reader sees it; equal runs have equal results."""
        run = Run.open(folder)
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in run.metrics()]
        step, checkpoints = run.best_validation()[0], self.checkpoints(folder)
        last = checkpoints.steps()[0]
        text = (folder / run_folder.METRICS).read_text()
        assert text == checkpoints.metrics(last), "metrics.jsonl is not what the last checkpoint says"
        return {
            "metrics": json.dumps(rows),
            "latest": (last, digest(checkpoints.state(last, self.like))),
            "best": (step, digest(run.restore_best(self.like))),
            "progress": checkpoints.progress(last),
        }

    @staticmethod
    def checkpoints(folder):
        """Returns the checkpoints of the run in a folder."""
        return Checkpoints(folder / run_folder.CHECKPOINTS)

    def learn(self, folder):
        """Trains undisturbed, and keeps what comes of it as what is expected."""
        keep, stops = Checkpoints.keep, self.stops
        Checkpoints.keep, self.stops = lambda self, steps: None, ()
        try:
            result = self.go_on(folder)
        finally:
            Checkpoints.keep, self.stops = keep, stops
        found = self.checkpoints(folder)
        self.expected = result, {step: digest(found.state(step, self.like)) for step in found.steps()}
        shutil.rmtree(folder)

    def check_as_it_lies(self, folder):
        """Looks at the folder of a run after a kill: raises where `best` or `latest` are not what the metrics say."""
        if not (folder / run_folder.SETTINGS).is_file():
            return
        _, digests = self.expected
        checkpoints = self.checkpoints(folder)
        best = _best_of(folder / run_folder.METRICS)
        if best:
            assert checkpoints.damage(best) is None, f"metrics.jsonl says that {best} is best, which is not there"
        run = Run.open(folder)
        if run.best_validation()[0]:
            found = digest(run.restore_best(self.like))
            assert found == digests[run.best_validation()[0]], "another best than the metrics say"
        for step in checkpoints.steps()[:1]:
            assert checkpoints.damage(step) is None, f"a kill has left half of checkpoint {step}"
            if step in digests:  # those of stops are in no undisturbed run
                assert digest(checkpoints.state(step, self.like)) == digests[step]


def _best_of(metrics):
    """Returns the step that the whole lines of a file of metrics call best, as anybody would read it; 0 for none."""
    text = metrics.read_text() if metrics.exists() else ""
    rows = [json.loads(line) for line in text.split("\n")[:-1]]
    losses = [(row["validation_loss"], row["step"]) for row in rows if "validation_loss" in row]
    return min(losses, default=(0, 0))[1]


def train_in_a_child(folder, data, kind, ready, at=None):
    """Goes on with a run, in a process of its own that is killed at an operation, or from outside once it is ready.

    It has compiled everything by then, so that what is killed is the training and its saves.
    """
    jax.config.update("jax_num_cpu_devices", 4)  # as in the tests: bits depend on it
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(folder).parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run = TinyRun(data, kind)
    with tempfile.TemporaryDirectory(dir=pathlib.Path(folder).parent) as elsewhere:
        run.learn(pathlib.Path(elsewhere) / "run")
    ready.set()
    with Killer().armed(at, really=True):
        run.go_on(pathlib.Path(folder))
