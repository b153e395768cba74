"""Random command lines: exit codes 0, 1 and 2 only, no traceback, no hang. `-s` prints what was tried."""

import collections
import faulthandler
import itertools
import os
import random
import shutil
import time

import click
import jax
import pytest
from click.testing import CliRunner

from jaxrnn import cli

LIMIT = 60  # seconds that a command may take; after twice as many the whole process ends, with a traceback
STRANGE = ["", "0", "-1", "1.5", "nan", "inf", "-inf", "1e999", "x", "\u00fc", "None", "-2147483648", "9" * 20]
TEXTS = ["text.txt", "folder", "missing", "binary", "empty", "pipe", "/dev/zero", "text.txt/below", "n" * 300, "nul\0"]
FOLDERS = ["out", "out/below", "text.txt", "text.txt/below", "/proc/jaxrnn", "n" * 300, "nul\0", "folder", "run"]
SANE = {  # values that make a run short
    "task": ["text", "text", "adding", "copy", "order", "reber", "digits", "chorales"],
    "data": TEXTS,
    "out": FOLDERS,
    "run": ["kept", "kept", "kept", "kept", "run", "folder", "missing", "text.txt", "text.txt/below"],
    "length": ["10", "12"],
    "chunk": ["1", "4", "8"],
    "inputs": ["1", "3"],
    "hidden": ["1", "3", "16"],
    "outputs": ["1", "4"],
    "layers": ["1", "2"],
    "batch": ["1", "2", "4"],
    "steps": ["1", "2", "20", "23"],
    "rate": ["1e-3", "1e30"],
    "clip": ["1", "1e30"],
    "prompt": ["she", "sea shells", "?", "\n"],
    "every": ["1", "2"],
    "segment": ["1", "3", "50"],
    "devices": ["1", "2", "4", "9"],
    "layer": ["0", "-1", "3"],
    "temperature": ["0", "1"],
}
# Of these even small values would be long: a mistake of mine must not look like a hang.
SHORT = {"train": ["--hidden", "3", "--batch", "2", "--chunk", "8", "--steps", "2", "--every", "2"]}
SHORT |= {"check": ["--hidden", "3", "--steps", "3", "--batch", "2"], "flow": ["--hidden", "3", "--steps", "20"]}
SHORT |= {"sample": ["--length", "3"], "tune": ["--forget"]}
# Processes that wait for one another would wait for minutes, as they should.
LEFT_OUT = {"distributed", "coordinator", "processes", "process", "help"}


def command_line(draw):
    """Draws a command with some of its options, and for each a value that is sane, or strange."""
    name = draw.choice(["train", "train", "train", "train", "sample", "check", "flow", "tune"])
    options = [option for option in cli.main.commands[name].params if option.name not in LEFT_OUT]
    chosen = [option for option in options if draw.random() < 3 / len(options) or option.name == "run"]
    line, odd = [name, *SHORT[name]], draw.choice([0.0, 0.2, 0.6])
    for option in chosen:
        endless = name == "sample" and option.name == "length"
        values = [value_of(draw, option, odd, endless) for _ in range(option.nargs)]
        if isinstance(option, click.Argument):
            line += values * draw.choice([0, 1, 1, 1, 2])
        else:
            line += [option.opts[0]] if option.is_flag else [option.opts[0], *values]
    if name == "train" and {"adding", "copy", "order"} & set(line):  # what has a length, which is refused elsewhere
        line[1:1] = ["--length", "10"]
    return line


def value_of(draw, option, odd, endless):
    if draw.random() < odd:
        return draw.choice(STRANGE[:-1] if endless else STRANGE)
    if isinstance(option.type, click.Choice):
        return draw.choice(SANE.get(option.name, list(option.type.choices)))
    return draw.choice(SANE.get(option.name, ["0", "1", "2", "0.5"]))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Makes a cache folder of a user, of which `tune` keeps and deletes a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory, home):
    """Makes a folder with things to be named on a command line, a run among them."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "text.txt").write_text("she sells sea shells by the sea shore; " * 20)
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "binary").write_bytes(bytes(range(256)))
    os.mkfifo(folder / "pipe")
    before = os.getcwd()
    os.chdir(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))  # most of the time goes there
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    end_of(["train", *SHORT["train"], "--data", "text.txt", "--out", "kept"])
    shutil.copytree("kept", "run")  # which commands may overwrite
    yield
    os.chdir(before)
    jax.config.update("jax_compilation_cache_dir", None)


def end_of(line):
    """Runs a command line; returns its exit code and seconds, and fails where it was no way to end."""
    start = time.monotonic()
    faulthandler.dump_traceback_later(2 * LIMIT, exit=True)
    result = CliRunner().invoke(cli.main, line)
    faulthandler.cancel_dump_traceback_later()
    seconds = time.monotonic() - start
    if "Aborted!" in result.output:
        raise KeyboardInterrupt  # it was meant for the tests
    told = f"{line} ended with {result.exit_code} after {seconds:.1f} s:\n{result.output[-2000:]}"
    assert result.exception is None or isinstance(result.exception, SystemExit), told + repr(result.exception)
    assert result.exit_code in (0, 1, 2), told
    assert "Traceback" not in result.output, told
    assert seconds < LIMIT, told
    if result.exit_code:
        said = result.output.rstrip()
        assert said, told
        if "jaxrnn: " in said:
            assert len(said[said.rindex("jaxrnn: ") :].splitlines()) <= 2, told
        else:
            assert "Usage: " in said or "FAILED" in said or said.startswith("Error: "), told
    return result.exit_code, seconds


def tried(line, table, fault):
    """Runs a command line, and adds how it ended to the table; returns exit code and seconds."""
    try:
        code, seconds = end_of(line)
    except Exception as error:
        table.add(fault, "lost", line=line, words=str(error))
        raise
    table.add(fault, "noticed" if code else "survived", line=line, code=code, seconds=seconds)
    return code, seconds


def fuzz(seed, count, table):
    draw, ends, slowest = random.Random(seed), collections.Counter(), 0.0
    for _ in range(count):
        line = command_line(draw)
        code, seconds = tried(line, table, "a random command line")
        ends[line[0], code] += 1
        slowest = max(slowest, seconds)
    jax.clear_caches()
    found = ", ".join(f"{name} {code}: {times}" for (name, code), times in sorted(ends.items()))
    print(f"\n{count} command lines (seed {seed}), 0 tracebacks, the slowest {slowest:.1f} s; by exit code: {found}")
    return ends


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("seed", [101, 102])
def test_some_command_lines(seed, table):
    assert fuzz(seed, 6, table).total() == 6


@pytest.mark.slow
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("seed", range(1, 21))
def test_many_command_lines(seed, table):
    """2,000 in all, with those of the other seeds."""
    fuzz(seed, 100, table)


HUGE = str(2**31 - 1)
SIZES = [
    ["check", "--hidden", HUGE],
    ["check", "--hidden", "2147483648"],
    ["check", "--layers", "9" * 20],
    ["flow", "--init", "--steps", "2147483648"],
    ["flow", "--init", "--hidden", HUGE],
    ["flow", "--init", "--layers", HUGE],
    *(["train", "--task", "adding", f"--{name}", HUGE] for name in ("hidden", "layers", "length", "batch")),
    *(["train", "--task", "adding", f"--{name}", "9" * 20] for name in ("steps", "warmup", "seed", "accumulate")),
]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("line", SIZES, ids=" ".join)
def test_what_no_machine_holds_is_refused_at_once(line, table):
    line = [*line, "--out", "out"] if line[0] == "train" else line
    code, seconds = tried(line, table, "a command for sizes that no machine has")
    assert code == 2
    assert seconds < 10


def test_the_strange_values_reach_every_option():
    """A fuzzer that never gets past the first check would find nothing."""
    draw, seen = random.Random(3), set()
    for line in (command_line(draw) for _ in range(2000)):
        seen |= {(line[0], before, value) for before, value in itertools.pairwise(line) if value in STRANGE}
    for name, command in cli.main.commands.items():
        for option in command.params:
            if option.name not in LEFT_OUT and not getattr(option, "is_flag", False) and option.opts[0][:2] == "--":
                assert any(line[:2] == (name, option.opts[0]) for line in seen), (name, option.opts[0])
