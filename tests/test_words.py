"""The words: every docstring of a function or class says in its first word what it does."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# The docstring of a command is what `--help` prints, which speaks to the user: "Train a network".
FILES = [
    path for room in ("jaxrnn", "scripts") for path in sorted((ROOT / room).rglob("*.py")) if path.parent.name != "cli"
]


def without_a_verb(source):
    """Yields name and first line of the docstrings that do not begin as "Computes ..." does."""
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else None
        if text and not re.match(r"[A-Z][a-z]+s\b", text):
            yield node.name, text.splitlines()[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_begin_with_a_verb(path):
    assert list(without_a_verb(path.read_text())) == []


def test_a_noun_is_told_from_a_verb():
    source = 'def f():\n    """What of the step is left."""\n\n\ndef g():\n    """Computes the rest."""'
    assert list(without_a_verb(source)) == [("f", "What of the step is left.")]
