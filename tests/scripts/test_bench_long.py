"""Long sequences: every way that is compared is one gradient, and what is printed is what was found."""

import csv

import jax
import jax.numpy as jnp
import pytest
from oracles import relative_error
from programs import on_one_device

import jaxrnn

PNG = b"\x89PNG"


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


def test_the_table_of_lengths_is_what_was_measured(bench_long, call, rows_of, monkeypatch, capsys, tmp_path):
    """With a mode that fails at one length: it is told as such, in the table, the file and the picture."""

    def found_at_once(task, limit):
        T, index = task["sizes"]["T"], list(bench_long.MODES).index(task["mode"])
        if (T, index) == (300, 1):
            return {"failure": "more than 1 s"}
        return {"bytes": (index + 1) * T * 1000, "seconds": (index + 2) * T * 1e-6}

    monkeypatch.setattr(bench_long, "apart", found_at_once)
    call(bench_long, "--only", "lengths", "--longest", 400, "--out", tmp_path)
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
        needed[mode] = on_one_device(bench_long.gradient(net, mode), *arguments).memory_analysis().temp_size_in_bytes
    plain, checkpoints, kept, anew, _ = needed.values()
    # From jax 0.11 on the compiler keeps a tenth less of the plain scan than it does of ours.
    assert kept <= (1.05 if jax.__version_info__ < (0, 11) else 1.15) * plain
    assert 3 * checkpoints < plain
    assert 3 * anew < kept
