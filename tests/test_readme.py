"""The README: its example runs, and the lines of code it quotes exist."""

import ast
import importlib
import pathlib
import re

import chex
import pytest

import jaxrnn

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
MAP = (ROOT / "jaxrnn" / "README.md").read_text()


def test_the_examples_run_and_learn(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    example, after = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 16
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert float(printed.split()[0]) < 0.2
    assert f"It prints {printed.strip()}." in README
    trained = names["params"]
    exec(compile(after, "README.md", "exec"), names)
    assert re.fullmatch(r"(\d) comes next, and was \1\n", capsys.readouterr().out)
    chex.assert_trees_all_equal(names["params"], trained)


def names_in(text):
    """Finds the dotted names of jaxrnn in Markdown or in a docstring, without those of files and of commands."""
    return set(re.findall(r"(?<![\w/.-])jaxrnn(?:\.[A-Za-z_]\w*)+(?![\w/]|\.\w)", text))


def docstrings(path):
    """Joins the docstrings of a file of Python."""
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def resolve(name):
    """Follows a dotted name from module to module, and then from attribute to attribute."""
    found, path = jaxrnn, "jaxrnn"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        try:
            found = importlib.import_module(path)
        except ModuleNotFoundError as error:
            if not error.name.startswith("jaxrnn"):
                return  # a module whose own library is not installed
            found = getattr(found, part)


PAGES = {
    path.relative_to(ROOT).as_posix(): names_in(path.read_text() if path.suffix == ".md" else docstrings(path))
    for folder, pattern in ((".", "*.md"), (".github", "*.md"), ("jaxrnn", "*.md"), ("jaxrnn", "**/*.py"))
    for path in sorted((ROOT / folder).glob(pattern))
}


@pytest.mark.parametrize("page", [page for page, names in PAGES.items() if names])
def test_names_resolve(page):
    for name in PAGES[page] - {"jaxrnn.NAME"}:
        resolve(name)


def test_a_name_that_is_not_there_is_found():
    with pytest.raises(AttributeError, match="vanishing"):
        resolve("jaxrnn.vanishing")


def test_names_are_told_from_files():
    text = "`jaxrnn.flow.terms`, jaxrnn.tune. See jaxrnn.sha256/x, a.jaxrnn.b and jaxrnn/flow.py"
    assert names_in(text) == {"jaxrnn.flow.terms", "jaxrnn.tune"}


QUOTED = re.findall(r"^\| [^|`]*=[^|`]* \| `([^|`]+)` \| `([^|`]+)` \|$", MAP, re.MULTILINE)


def test_the_table_of_equations_is_found():
    assert len(QUOTED) >= 12


@pytest.mark.parametrize(("code", "file"), QUOTED)
def test_quoted_code_is_in_its_file(code, file):
    assert code in (ROOT / "jaxrnn" / file).read_text()


def test_ci_runs_the_command_of_the_readme():
    assert "grep '^python3 .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()
    assert len(re.findall(r"^python3 .*pytest.*$", README, re.MULTILINE)) == 1
