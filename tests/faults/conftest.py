"""What was tried, and what came of it: a table of all faults, printed at the end, and kept as it grows."""

import pathlib
import shutil
import tempfile

import fault_table
import injection
import pytest

_table = fault_table.Table()


def pytest_terminal_summary(terminalreporter):
    """Prints the table."""
    if _table.counts:
        terminalreporter.section("faults")
        for line in _table.lines():
            terminalreporter.write_line(line)
        terminalreporter.write_line(f"each of them: {_table.path}")


@pytest.fixture(scope="session")
def table():
    """Returns the table."""
    return _table


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
