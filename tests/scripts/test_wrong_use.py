"""Wrong arguments are told, and help is given."""

import pathlib
import subprocess
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bench_long", ["--longest", 99], "--longest must be 100 at least, got 99"),
        ("bench_long", ["--seconds", 0], "--seconds must be positive"),
        ("bench_long", ["--only", "nothing"], "invalid choice"),
        ("truncation_bias", ["--steps", 1], "--steps must be 2 or more, got 1"),
        ("truncation_bias", ["--chunks", 0], "--chunks must be 1 or more, got 0"),
        ("truncation_bias", ["--cell", "rnn"], "invalid choice"),
        ("truncation_bias", ["--data", "missing.txt"], "no file or folder 'missing.txt'"),
    ],
)
def test_wrong_use_is_told_with_exit_code_2(request, call, capsys, name, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(request.getfixturevalue(name), *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench_long", "truncation_bias"])
def test_help(name):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--help"]
    assert "python scripts/" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
