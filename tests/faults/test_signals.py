"""Signals to the command: it saves after the step under way, ends with the code of the signal, and goes on exactly."""

import contextlib
import fcntl
import json
import os
import pathlib
import pty
import random
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from jaxrnn.training.run_folder import Run

SETTINGS = {"hidden": 8, "batch": 2, "chunk": 8, "every": 500, "warmup": 4}
LONG = 1_000_000


def command(data, out, *options, steps=LONG):
    settings = [part for name, value in (SETTINGS | {"steps": steps}).items() for part in (f"--{name}", str(value))]
    return [sys.executable, "-m", "jaxrnn", "train", "--data", str(data), "--out", str(out), *settings, *options]


def start(arguments, **options):
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def size(folder):
    file = folder / "metrics.jsonl"
    return file.stat().st_size if file.exists() else 0


def start_and_wait_for_steps(arguments, folder, **options):
    """Starts the command, and returns it when it has written a line of metrics."""
    before, process = size(folder), start(arguments, **options)
    while size(folder) <= before:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def check_stopped(process, folder, number, table):
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert time.monotonic() - began < 10
    assert "Interrupted after step" in out
    assert err == ""
    last = max(int(path.name) for path in (folder / "checkpoints").iterdir())
    assert f"Interrupted after step {last};" in out
    logged = Run.open(folder).metrics()[-1]["step"]
    assert 0 <= last - logged < 25
    table.add(f"signal {signal.Signals(number).name}", "survived", step=last)
    return last


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGHUP, signal.SIGINT))],
    ids=lambda number: number.name,
)
def test_a_signal_ends_a_run_saved_with_its_code(data, tmp_path, table, number):
    folder = tmp_path / "run"
    process = start_and_wait_for_steps(command(data, folder, "--resume=auto"), folder)
    check_stopped(process, folder, number, table)


@pytest.mark.slow
def test_a_run_that_was_stopped_twice_ends_as_one_that_was_not(data, tmp_path, table):
    folder, steps = tmp_path / "run", 12_000
    straight = start(command(data, tmp_path / "straight", steps=steps))
    for number in (signal.SIGTERM, signal.SIGHUP):
        process = start_and_wait_for_steps(command(data, folder, "--resume=auto", steps=steps), folder)
        check_stopped(process, folder, number, table)
    process = start(command(data, folder, "--resume=auto", steps=steps))
    for each in (process, straight):
        err = each.communicate(timeout=200)[1]
        assert each.returncode == 0, err
    texts = []
    for path in (folder, tmp_path / "straight"):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        texts.append([{name: value for name, value in row.items() if name != "seconds"} for row in rows])
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_what_is_ignored_stays_so(data, tmp_path):
    """`nohup` ignores SIGHUP, and a shell Ctrl-C for what runs in the background."""
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    process = start_and_wait_for_steps(command(data, tmp_path / "run"), tmp_path / "run", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_the_grace_time_ends_what_takes_longer():
    """Also where the main thread is in a long call of C, and hears of no signal."""
    code = """
import hashlib, os, signal, threading, time
from jaxrnn.training.signals import stop_on_signals
with stop_on_signals(grace=0.3) as stop:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # half a minute without a look at signals
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 143
    assert time.monotonic() - began < 15
    assert done.stderr == "jaxrnn: not saved within 0.3 s of the signal; the checkpoint before it stands\n"


def take_terminal():
    """Makes the standard input the terminal of this process, whose end it hears of."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_signal_outside_of_training_ends_at_once_with_a_line():
    """Also where the main thread is in a long call of C, such as a compilation."""
    code = """
import hashlib, os, signal, sys, threading
from jaxrnn.training.signals import end_on_signals, stop_on_signals
with end_on_signals():
    with stop_on_signals() as stop:  # takes them over
        signal.raise_signal(signal.SIGINT)
    assert stop.signal == signal.SIGINT
    threading.Timer(0.2, os.kill, (os.getpid(), int(sys.argv[1]))).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
"""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, str(int(number))], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 128 + number
        assert time.monotonic() - began < 15
        assert done.stderr == f"jaxrnn: ended by {number.name}; what was saved stands\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_at_any_moment_ends_with_its_code_and_no_traceback(data, tmp_path, table, number):
    """From the import of the command to the pictures at the end, at moments that are drawn."""
    draw = random.Random(int(number))
    process = start_and_import(command(data, tmp_path / "whole", "--every", "20", steps=40))
    began = time.monotonic()
    assert process.wait(timeout=200) == 0
    seconds = time.monotonic() - began
    for i in range(20):
        process = start_and_import(command(data, tmp_path / str(i), "--every", "20", steps=40))
        time.sleep(draw.uniform(0, seconds))
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
        told = f"{i}: {process.returncode} {out} {err}"
        finished = process.returncode in (0, -number) and "jaxrnn sample" in out and err == ""
        right = finished or (process.returncode == 128 + number and "Traceback" not in err)
        right = right and (finished or f"ended by {number.name}" in err or ("Interrupted" in out and err == ""))
        right = right and len(err.splitlines()) <= 1
        table.add(f"signal {number.name} at any moment", "survived" if right else "lost", words=told)
        assert right, told


def start_and_import(arguments):
    """Starts the command, and returns it when it handles signals; before that, while it imports JAX, Python does."""
    process = start(arguments)
    status = pathlib.Path(f"/proc/{process.pid}/status")
    caught = lambda: int(next(line for line in status.read_text().splitlines() if "SigCgt" in line).split()[1], 16)
    while not caught() >> (signal.SIGTERM - 1) & 1:
        assert process.poll() is None
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_terminal_that_closes_ends_a_run_saved(data, tmp_path, table):
    folder, (master, slave) = tmp_path / "run", pty.openpty()
    ends = {"stdin": slave, "stdout": slave, "stderr": slave}
    process = subprocess.Popen(command(data, folder), start_new_session=True, preexec_fn=take_terminal, **ends)
    os.close(slave)
    thread = threading.Thread(target=drain, args=(master,), daemon=True)  # as a full terminal would stop the writer
    thread.start()
    while not size(folder):
        assert process.poll() is None
        time.sleep(0.05)
    os.close(master)
    assert process.wait(timeout=60) == 129
    assert len(list((folder / "checkpoints").iterdir())) >= 1
    table.add("a terminal closed", "survived")


def drain(master):
    with contextlib.suppress(OSError):
        while os.read(master, 1000):
            pass
