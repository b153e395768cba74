"""The scripts that measure: every way they compare is one gradient, and what they print is what was found."""

import csv
import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error

import jaxrnn

SCRIPTS = pathlib.Path(__file__).parent.parent / "scripts"
PNG = b"\x89PNG"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench_long():
    return script("bench_long")


@pytest.fixture(scope="module")
def truncation_bias():
    return script("truncation_bias")


class Chunk:
    """What a chunk of a text is to the script: [T + 1, B] tokens as inputs and targets."""

    def __init__(self, tokens):
        self.inputs, self.targets = tokens[:-1], tokens[1:]


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def rows_of(printed, columns):
    """The cells of the Markdown rows with so many columns, headers left out."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if "|" in line]
    return [row for row in rows if len(row) == columns and row[0].replace(",", "").isdigit()]


@pytest.mark.parametrize("tokens", [False, True], ids=["floats", "tokens"])
def test_every_mode_is_the_same_gradient(bench_long, tokens):
    """Rivals that computed something else would be no rivals."""
    with jax.enable_x64(True):
        net, (params, inputs, targets) = bench_long.problem(12, 2, 3, 4, 5, tokens)
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        inputs = inputs.astype(jnp.int32) if tokens else inputs
        truth = jax.jit(jax.value_and_grad(net.loss))(params, inputs, targets)
        for mode in bench_long.MODES:
            for hoisted in (True, False) if mode.startswith("jax.grad") else (True,):
                found = jax.jit(bench_long.gradient(net, mode, hoisted))(params, inputs, targets)
                assert relative_error(found, truth) <= 1e-12, mode


def test_a_process_of_its_own_finds_what_this_one_does(bench_long):
    sizes = {"T": 64, "B": 1, "D": 5, "H": 8, "V": 5}
    task = {"mode": "recompute=True", "sizes": sizes, "tokens": True, "seconds": 0.01}
    found = bench_long.apart(task, 60)
    net, arguments = bench_long.problem(**sizes, tokens=True)
    compiled = jax.jit(jaxrnn.value_and_grad(net, recompute=True)).lower(*arguments).compile()
    assert found["bytes"] == compiled.memory_analysis().temp_size_in_bytes
    assert 0 < found["seconds"] < 1
    assert bench_long.apart(task, 0.01) == {"failure": "more than 0.01 s"}
    assert "TypeError" in bench_long.apart(task | {"sizes": {}}, 60)["failure"]


def test_the_table_of_lengths_is_what_was_measured(bench_long, monkeypatch, capsys, tmp_path):
    """With a mode that fails at one length: it is told as such, in the table, the file and the picture."""

    def found_at_once(task, limit):
        T, index = task["sizes"]["T"], list(bench_long.MODES).index(task["mode"])
        if (T, index) == (300, 1):
            return {"failure": "more than 1 s"}
        return {"bytes": (index + 1) * T * 1000, "seconds": (index + 2) * T * 1e-6}

    monkeypatch.setattr(bench_long, "apart", found_at_once)
    call(bench_long, monkeypatch, "--only", "lengths", "--longest", 400, "--out", tmp_path)
    printed = capsys.readouterr().out
    hundred, three_hundred = rows_of(printed, 6)
    assert hundred == ["100", *(f"{0.1 * i:.2f} MB, {i + 1:.2f} us/step" for i in range(1, 6))]
    assert three_hundred[2] == "more than 1 s"
    assert three_hundred[1] == "0.30 MB, 2.00 us/step"
    with open(tmp_path / "long.csv", newline="") as file:
        kept = list(csv.DictReader(file))
    assert [(row["T"], row["mode"]) for row in kept] == [(T, m) for T in ("100", "300") for m in bench_long.MODES]
    assert [row["bytes"] for row in kept[:5]] == ["100000", "200000", "300000", "400000", "500000"]
    assert kept[6]["bytes"] == kept[6]["seconds"] == ""
    assert (tmp_path / "long.png").read_bytes().startswith(PNG)


def test_memory_is_ordered_as_the_modes_promise(bench_long):
    """At T = 400: the plain scan keeps most, and what is made anew needs less than what is kept."""
    needed = {}
    for mode in bench_long.MODES:
        net, arguments = bench_long.problem(400, 1, 16, 16, 16, tokens=True)
        program = jax.jit(bench_long.gradient(net, mode)).lower(*arguments).compile()
        needed[mode] = program.memory_analysis().temp_size_in_bytes
    plain, checkpoints, kept, anew, _ = needed.values()
    assert kept <= 1.05 * plain
    assert 3 * checkpoints < plain
    assert 3 * anew < kept


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
def test_wrong_use_is_told_with_exit_code_2(request, monkeypatch, capsys, name, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(request.getfixturevalue(name), monkeypatch, *arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["bench_long", "truncation_bias"])
def test_help(name):
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--help"]
    assert "python scripts/" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_compare_by_hand(truncation_bias):
    truth = np.array([[3.0, 4.0], [4.0, 3.0]])  # mean (3.5, 3.5)
    half, turned = np.array([0.5]) * truth, np.array([[-4.0, 3.0], [3.0, -4.0]])
    assert np.allclose(truncation_bias.compare(truth, truth), (1, 1, 0), atol=1e-12)
    assert np.allclose(truncation_bias.compare(half, truth), (1, 0.5, 0.5), atol=1e-12)
    assert np.allclose(truncation_bias.compare(turned, truth), (0, 1, 8 / 7), atol=1e-12)
    assert np.allclose(truncation_bias.compare(np.zeros((2, 2)), truth), (0, 0, 1), atol=1e-12)


def test_the_gradients_compared_are_those_of_a_text_read_on(truncation_bias):
    """Against jax.grad, the state of one chunk handed to the next: the whole gradient, and a tail of it."""
    net = jaxrnn.Network((jaxrnn.Elman(6, 5),), jaxrnn.Readout(5, 6), jaxrnn.softmax_cross_entropy)
    params, state = net.init(jax.random.key(0)), (jnp.full((2, 5), 0.3),)
    text = np.random.default_rng(0).integers(0, 6, (13, 2))
    chunks = [Chunk(text[first : first + 5]) for first in (0, 4, 8)]
    everything, W = truncation_bias.gradients(net, params, state, chunks, None)
    tail = truncation_bias.gradients(net, params, state, chunks, jaxrnn.Tail(2))[1]
    grad, apply = jax.jit(jax.grad(net.loss)), jax.jit(net.apply)
    for i, chunk in enumerate(chunks):
        whole = grad(params, chunk.inputs, chunk.targets, None, state)
        middle = apply(params, chunk.inputs[:2], state)[1]
        last = grad(params, chunk.inputs[2:], chunk.targets[2:], None, middle)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(whole)])
        assert relative_error(everything[i], flat) <= 1e-5
        assert relative_error(W[i], np.ravel(whole.layers[0].W)) <= 1e-5
        assert relative_error(tail[i], np.ravel(last.layers[0].W) / 2) <= 1e-5  # two of the four steps' mean
        state = apply(params, chunk.inputs, state)[1]


def test_the_bias_table(truncation_bias, monkeypatch, capsys, tmp_path):
    """At k = T every truncation is the whole gradient; below it, none is."""
    (tmp_path / "text.txt").write_text("peter piper picked a peck of pickled peppers\n" * 20)
    options = {"--data": tmp_path / "text.txt", "--hidden": 8, "--steps": 4, "--updates": 3, "--chunks": 2}
    call(truncation_bias, monkeypatch, *(word for pair in options.items() for word in pair), "--out", tmp_path)
    printed = capsys.readouterr().out
    rows = rows_of(printed, 4)
    assert [row[0] for row in rows] == ["1", "2", "4"]
    figures = [[[list(map(float, part.split(","))) for part in cell.split(";")] for cell in row[1:]] for row in rows]
    for everything, W in figures[-1]:
        assert np.allclose([everything, W], [1, 1, 0], atol=1e-3)
    for row in figures[:-1]:
        for everything, W in row:
            assert W[0] < 0.9999
            assert W[2] > 1e-3
            assert everything[0] >= W[0] - 1e-3  # the readout's part is exact
    by_truncation = np.array([[cell[1][2] for cell in row] for row in figures])  # [k, truncation], the bias of W
    assert np.all(np.diff(by_truncation, axis=0) < 0)
    assert printed.count("dE/dW has a cosine of 0.99 with the whole one from k = ") == 3
    assert (tmp_path / "truncation_bias.png").read_bytes().startswith(PNG)
