"""What was tried, and what came of it: a table of all faults, printed at the end, and kept as it grows."""

import collections
import json
import pathlib
import shutil
import tempfile
import time

import injection
import pytest

KEPT = pathlib.Path(tempfile.gettempdir()) / "jaxrnn-faults.jsonl"  # one line for each fault, as it is tried
COLUMNS = ("tried", "survived", "noticed", "lost")
# survived: in the end all is as without the fault. noticed: an error or a line says so. lost: neither.
_table = collections.defaultdict(collections.Counter)


class Table:
    """Counts what came of faults."""

    def add(self, fault, outcome, **details):
        """Adds a fault that was tried: it was survived, noticed, or something was lost."""
        _table[fault].update(["tried", outcome])
        with open(KEPT, "a") as file:
            file.write(json.dumps({"fault": fault, "outcome": outcome, "time": time.time(), **details}) + "\n")

    def lost(self, fault):
        """Returns how often something was lost."""
        return _table[fault]["lost"]


def pytest_terminal_summary(terminalreporter):
    """Prints the table."""
    if _table:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'':44}" + "".join(f"{name:>10}" for name in COLUMNS))
        for fault, counts in _table.items():
            terminalreporter.write_line(f"{fault:44}" + "".join(f"{counts[name]:>10}" for name in COLUMNS))
        terminalreporter.write_line(f"each of them: {KEPT}")


@pytest.fixture(scope="session")
def table():
    """Returns the table."""
    return Table()


@pytest.fixture(scope="session")
def killer():
    """Returns what kills this process, as far as a process can do that to itself."""
    return injection.Killer()


@pytest.fixture(scope="session")
def memory():
    """Returns a folder in memory, where there is one: kills by the hundred would wait for the disk most of the time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None) as folder:
        yield pathlib.Path(folder)


@pytest.fixture
def place(memory):
    """Returns a folder in memory that is not there yet, and is gone after the test."""
    yield memory / "run"
    shutil.rmtree(memory / "run", ignore_errors=True)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Returns the path of a text."""
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text(injection.TEXT)
    return path


@pytest.fixture(scope="session")
def tiny(data, memory):
    """Returns a function that makes tiny runs of a kind, which know what must come of them."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = injection.TinyRun(data, kind)
            made[kind].learn(memory / "learn")
        return made[kind]

    return make
