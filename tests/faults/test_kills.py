"""Kills: at every operation of a run on files, at random moments, and real ones; then on to the same end."""

import gc
import itertools
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import signal
import sys
import time

import injection
import pytest

KINDS = list(injection.KINDS)
# What Orbax had begun when it was killed has nobody left to wait for it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_expected_comes_of_an_undisturbed_run(tiny, place, kind):
    """Also where it is interrupted, and goes on: each of the settings decides something."""
    run = tiny(kind)
    result, digests = run.expected
    assert run.go_on(place) == result
    assert run.go_on(place) == result  # a finished run stays as it is
    last, best = result["latest"][0], result["best"][0]
    assert last == (28 if kind == "out of patience" else 30)
    assert best == (30 if kind == "falling" else 14)
    assert list(digests) == [step for step in (30, 28, 21, 14, 7) if step <= last]


def kill(run, killer, folder, table, fault, at, torn, again=None):
    """Kills a run at an operation, perhaps once more as it goes on; returns whether it was killed at all."""
    try:
        with killer.armed(at, torn):
            result = run.go_on(folder)
    except injection.Killed:
        pass
    else:
        assert result == run.expected[0]
        return False
    try:
        if again is not None:
            try:
                with killer.armed(again):
                    run.go_on(folder)
            except injection.Killed:
                pass
        run.check_as_it_lies(folder)
        survived = run.go_on(folder) == run.expected[0]
        words = "" if survived else "another end"
    except (AssertionError, ValueError) as error:
        survived, words = False, str(error)
    table.add(fault, "survived" if survived else "lost", kind=run.kind, at=at, torn=torn, again=again, words=words)
    shutil.rmtree(folder)
    return True


def kill_everywhere(run, killer, folder, table, fault, ats, torn=False, again=None):
    """Kills a run at each of some operations, until it is through before the next one."""
    lost = table.lost(fault)
    for at in ats:
        if not kill(run, killer, folder, table, fault, at, torn, again):
            assert at > 60, "so few operations are no run"
            break
    gc.collect()
    assert table.lost(fault) == lost


def test_kills_here_and_there(tiny, killer, place, table):
    """The quick part of the next test."""
    kill_everywhere(tiny("up and down"), killer, place, table, "killed here and there", itertools.count(3, 23))


@pytest.mark.slow
@pytest.mark.parametrize("torn", [False, True], ids=["before it", "file torn"])
@pytest.mark.parametrize("kind", KINDS)
def test_kills_at_every_operation_on_files(tiny, killer, place, table, kind, torn):
    kill_everywhere(tiny(kind), killer, place, table, "killed at every operation", itertools.count(1), torn)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["up and down"])
def test_kills_while_going_on_after_a_kill(tiny, killer, place, table, kind):
    for again in (3, 12, 25):
        kill_everywhere(tiny(kind), killer, place, table, "killed twice", itertools.count(2, 17), again=again)


def children():
    """Returns what starts processes by a fork of one that has imported everything and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["injection"])
    with pytest.MonkeyPatch.context() as patch:  # by itself that process looks for modules elsewhere
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return context


def start(folder, data, run, at=None):
    """Starts a process that goes on with a run, and waits until it is about to."""
    ready = children().Event()
    child = children().Process(target=injection.train_in_a_child, args=(str(folder), str(data), run.kind, ready, at))
    child.start()
    ready.wait(120)
    return child


def check_after_a_kill(run, folder, table, fault, **details):
    try:
        run.check_as_it_lies(folder)
        table.add(fault, "survived", kind=run.kind, **details)
    except (AssertionError, ValueError) as error:
        table.add(fault, "lost", kind=run.kind, words=str(error), **details)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["up and down"])
def test_real_kills_at_operations_on_files(tiny, data, place, table, kind):
    """A sample of the kills above by the end of the process, to see that these are as good."""
    run, fault = tiny(kind), "process ended at an operation"
    for at in range(5, 500, 9):
        child = start(place, data, run, at)
        child.join(120)
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        check_after_a_kill(run, place, table, fault, at=at)
        assert run.go_on(place) == run.expected[0]
        shutil.rmtree(place, ignore_errors=True)
    assert table.lost(fault) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_at_random_moments(tiny, data, place, table, kind):
    """Of processes that go on with one run after another, each from where the one before was killed."""
    run, fault, draw, killed = tiny(kind), "kill -9 at a random moment", random.Random(KINDS.index(kind)), 0
    end = time.monotonic() + 110
    while killed < 50 and time.monotonic() < end:
        child = start(place, data, run)
        child.join(draw.uniform(0, 0.4))
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
            cut_off = [path.name for path in (place / "checkpoints").glob("*.*")]
            check_after_a_kill(run, place, table, fault, cut_off=cut_off)
        else:
            assert child.exitcode == 0
            assert run.result(place) == run.expected[0]
            shutil.rmtree(place)
    assert run.go_on(place) == run.expected[0]
    assert killed
    assert table.lost(fault) == 0
