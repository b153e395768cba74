"""The README: its example runs, and the lines of code it quotes exist."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "jaxrnn" / "README.md").read_text()


def test_the_example_runs_and_learns(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 16
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert float(capsys.readouterr().out.split()[0]) < 0.2


QUOTED = re.findall(r"^\| [^|`]*=[^|`]* \| `([^|`]+)` \| `([^|`]+)` \|$", MAP, re.MULTILINE)


def test_the_table_of_equations_is_found():
    assert len(QUOTED) >= 12


@pytest.mark.parametrize(("code", "file"), QUOTED)
def test_quoted_code_is_in_its_file(code, file):
    assert code in (ROOT / "jaxrnn" / file).read_text()


def test_ci_runs_the_command_of_the_readme():
    assert "grep '^python3 .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
    assert len(re.findall(r"^python3 .*pytest.*$", README, re.MULTILINE)) == 1
