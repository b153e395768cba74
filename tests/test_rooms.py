"""The architecture: imports run from a room to the rooms before it, without a circle, and importing jaxrnn is light."""

import ast
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

import jaxrnn

PACKAGE = pathlib.Path(jaxrnn.__file__).parent
MAP = (PACKAGE / "README.md").read_text()
ROOT = ["printing", "arguments"]
ROOMS = [*ROOT, "cells", "layer", "network", "gradients", "flow", "interop", "tasks", "training", "cli"]


def read_modules():
    """Returns the source of every module by its name within the package, such as "cells.elman"; not the root's own."""
    paths = {
        path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE
    }
    paths |= {pathlib.Path(name): PACKAGE / f"{name}.py" for name in ROOT}
    return {".".join(name.parts).removesuffix(".__init__"): path.read_text() for name, path in sorted(paths.items())}


def imported(source, known):
    """Yields the modules of the package that a source imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("jaxrnn.") in known else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("jaxrnn").lstrip(".") for name in names if name.split(".")[0] == "jaxrnn")


def room(name):
    return ROOMS.index(name.split(".")[0]) if name else ROOMS.index("cli") - 0.5  # the root stands below the command


def violations(modules):
    """Returns every import that runs to a later room, and the circle of imports within a room, where there is one."""
    graph = {name: set(imported(source, modules)) for name, source in modules.items()}
    found = [f"{name} imports {target}" for name in graph for target in graph[name] if room(target) > room(name)]
    inside = {name: {target for target in graph[name] if room(target) == room(name)} for name in graph}
    try:
        list(graphlib.TopologicalSorter(inside).static_order())
    except graphlib.CycleError as error:
        found.append(" imports ".join(reversed(error.args[1])))
    return found


def test_imports_run_from_a_room_to_the_rooms_before_it():
    assert violations(read_modules()) == []


def test_the_root_holds_the_rooms_and_little_else():
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    files = {f"{name}.py" for name in (*ROOT, "__init__", "__main__")}
    assert names == {*ROOMS[len(ROOT) :], *files, "py.typed", "README.md"}


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("layer.bptt", "from jaxrnn.network.passes import f", ["layer.bptt imports network.passes"]),
        ("arguments", "def f():\n    import jaxrnn.cells.base", ["arguments imports cells.base"]),
        ("gradients.plan", "from jaxrnn import unroll", ["gradients.plan imports "]),
        ("cells.base", "from jaxrnn.cells import elman", ["cells.base imports cells.elman imports cells.base"]),
        ("network.passes", "import jax\nfrom jaxrnn.layer import bptt\nfrom jaxrnn.arguments import check_rate", []),
        ("cli.train", "from jaxrnn import unroll\nimport jaxrnn.flow.plots", []),
    ],
)
def test_the_rule_tells_right_from_wrong(name, source, expected):
    modules = dict.fromkeys(["arguments", "cells.base", "layer.bptt", "network.passes", "flow.plots"], "")
    modules |= {"cells.elman": "from jaxrnn.cells.base import Cell"}
    assert violations(modules | {name: source}) == expected


def test_the_map_names_every_file():
    by_room, room = {}, None
    for name, files in re.findall(r"^\| (?:`(\w+)/`|the root|) ?\| ((?:`\w+\.py`(?:, )?)+) \|", MAP, re.MULTILINE):
        room = name or room
        by_room.setdefault(room, []).extend(re.findall(r"`(\w+\.py)`", files))
    by_room.pop(None)
    assert by_room == {name: sorted_like(by_room[name], PACKAGE / name) for name in ROOMS[len(ROOT) :]}


def sorted_like(named, folder):
    """Returns the files of a folder, those that are named in the order in which they are."""
    there = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    return [name for name in named if name in there] + sorted(there - set(named))


def test_importing_the_library_imports_nothing_heavy():
    command = [sys.executable, "-c", "import sys, jaxrnn; print(*sys.modules)"]
    names = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    top_level = {name.split(".")[0] for name in names}
    assert "jaxrnn" in top_level
    assert top_level.isdisjoint({"matplotlib", "orbax", "click", "rich"})
