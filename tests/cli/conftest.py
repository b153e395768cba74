"""The command as a user calls it, and one run on a text that many tests look at."""

import os

import pytest
from click.testing import CliRunner

from jaxrnn import cli

SMALL = ["--hidden", 16, "--batch", 4, "--chunk", 16, "--steps", 20, "--every", 10]


def invoke(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Returns a function that calls the command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return invoke


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Returns the path of a text."""
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("peter piper picked a peck of pickled peppers\n" * 100)
    return path


@pytest.fixture(scope="session")
def small():
    """Returns options that make a run short."""
    return SMALL


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """Returns the folder of a run on the text, and what the command said."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("runs")
    os.chdir(folder)
    try:
        result = invoke("train", "--data", data, "--flow", 5, *SMALL)
    finally:
        os.chdir(before)
    return folder / "runs" / "data", result
