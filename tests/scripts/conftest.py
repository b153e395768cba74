"""Scripts as modules, called as from the command line."""

import importlib.util
import pathlib
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
sys.path.append(str(SCRIPTS))  # scripts import one another, as they find them when they are run


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def auto_segment():
    return script("auto_segment")


@pytest.fixture(scope="session")
def accelerator():
    pytest.importorskip("matplotlib")
    return script("accelerator")


@pytest.fixture(scope="session")
def bench_long():
    return script("bench_long")


@pytest.fixture(scope="session")
def bench_flax():
    pytest.importorskip("flax")
    return script("bench_flax")


@pytest.fixture(scope="session")
def truncation_bias():
    return script("truncation_bias")


@pytest.fixture(scope="session")
def speed_table():
    return script("speed_table")


@pytest.fixture(scope="session")
def onnx_errors():
    return script("onnx_errors")


@pytest.fixture(scope="session")
def bptt_by_hand():
    return script("bptt_by_hand")


@pytest.fixture(scope="session")
def recursion_picture():
    return script("recursion_picture")


@pytest.fixture
def flow_picture():
    return script("flow_picture")


@pytest.fixture
def call(monkeypatch):
    """Returns a function that calls a script with arguments."""

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()

    return call


@pytest.fixture(scope="session")
def rows_of():
    """Returns a function that finds the cells of the Markdown rows with so many columns, headers left out."""

    def rows_of(printed, columns):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
        return [row for row in rows if len(row) == columns and row[0].replace(",", "").isdigit()]

    return rows_of
