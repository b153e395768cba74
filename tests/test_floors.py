"""The architecture: imports run downward between the floors, never sideways, and the library is light to import."""

import ast
import fnmatch
import pathlib
import subprocess
import sys

import pytest

import jaxrnn

PACKAGE = pathlib.Path(jaxrnn.__file__).parent

# Bottom first; a file stands on the first floor that names it. The ground floor has a cellar that it stands on itself.
FLOORS = [
    ("0, cellar", ["arguments"]),
    ("0", ["affine", "losses", "initializers", "cell", "dropout", "forward_mode", "truncation"]),
    ("1", ["cells.*", "cells", "readout", "breaks", "bidirectional"]),
    ("2", ["scan", "segments", "memory", "associative", "vanishing"]),
    ("3", ["bptt"]),
    ("3, a layer", ["layer"]),
    ("4, forward", ["network", "deer"]),
    ("4, a segment", ["plan", "stack"]),
    ("4, lags", ["window"]),
    ("4, backward", ["gradient"]),
    ("4, streams", ["streaming"]),
    ("5, a sequence", ["flow.sequence", "flow.products"]),
    ("5", ["flow.*", "online"]),
    ("5, above", ["flow"]),
    ("6, below", ["interop.layers", "tasks.sequences"]),
    ("6, data", ["tasks.*", "tasks"]),
    ("6", ["check", "diagnosis", "train", "shard", "runs", "interop.*"]),
    ("6, above", ["interop"]),
    ("7", ["plots", "experiment"]),
    ("7, above", ["task_plots"]),
    ("8, below", ["cli.group"]),
    ("8", ["cli.*"]),
    ("8, above", ["cli"]),
    ("9", ["__main__"]),
]
ROOT = ""  # jaxrnn/__init__.py: gathers the public names, from any floor


def modules():
    """The package as {name: source}, with names like "cells.elman"; an __init__ has the name of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports(source, name, known):
    """The modules of the package that a source imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{name}, line {node.lineno}: imports are absolute")
            # `from jaxrnn import scan` is the module, `from jaxrnn import unroll` is a name of the root.
            targets = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [target if within(target) in known else node.module for target in targets]
        else:
            continue
        found.update(within(target) for target in targets if target.split(".")[0] == "jaxrnn")
    return sorted(found)


def within(target):
    return target.partition(".")[2]


def floor(name):
    for level, (_, patterns) in enumerate(FLOORS):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return level
    return None


def violations(sources):
    """What is on no floor, and every import that does not run downward."""
    # To import a name from the root is to stand above all that the root gathers.
    root = max((floor(target) or 0 for target in imports(sources.get(ROOT, ""), ROOT, sources)), default=0)
    found = []
    for name, source in sources.items():
        if name == ROOT:
            continue
        level = floor(name)
        if level is None:
            found.append(f"{name} is on no floor")
            continue
        for target in imports(source, name, sources):
            below = root if target == ROOT else floor(target)
            if below is None or below >= level:
                found.append(f"{name} imports {target or 'jaxrnn'}")
    return found


def test_imports_run_downward_only():
    assert violations(modules()) == []


def test_the_files_are_found():
    assert {ROOT, "arguments", "cells", "cells.elman", "scan", "bptt", "network"} <= set(modules())


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("bptt", "from jaxrnn.network import Network", ["bptt imports network"]),
        ("scan", "from jaxrnn import segments", ["scan imports segments"]),
        ("scan", "def f():\n    import jaxrnn.segments", ["scan imports segments"]),
        ("losses", "from jaxrnn.affine import affine", ["losses imports affine"]),
        ("arguments", "from jaxrnn.cell import Cell", ["arguments imports cell"]),
        ("cells.elman", "from jaxrnn.cells import gru", ["cells.elman imports cells.gru"]),
        ("cells.elman", "from jaxrnn.cells import helper", ["cells.elman imports cells"]),
        ("bptt", "from jaxrnn import unroll", ["bptt imports jaxrnn"]),
        ("helpers", "", ["helpers is on no floor"]),
        ("network", "import jax\nfrom jaxrnn import scan\nfrom jaxrnn.cells.elman import Elman", []),
        ("cli", "from jaxrnn import unroll\nimport jaxrnn.plots", []),
    ],
)
def test_the_rule_tells_right_from_wrong(name, source, expected):
    files = ["arguments", "affine", "cell", "segments", "scan", "cells", "cells.gru", "cells.elman", "network", "plots"]
    building = dict.fromkeys(files, "") | {ROOT: "from jaxrnn.network import Network"}
    assert violations(building | {name: source}) == expected


def test_importing_the_library_imports_nothing_heavy():
    """What the command and the plots need is imported by them alone."""
    command = [sys.executable, "-c", "import sys, jaxrnn; print(*sys.modules)"]
    names = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=True).stdout.split()
    top_level = {name.split(".")[0] for name in names}
    assert "jaxrnn" in top_level
    assert top_level.isdisjoint({"matplotlib", "orbax", "click", "rich"})
