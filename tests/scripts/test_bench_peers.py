"""The bench of other libraries: every contender computes the same, and what is kept is what was measured."""

import csv
import pathlib
import sys

import pytest
from oracles import relative_error


@pytest.fixture(scope="module")
def bench_peers():
    scripts = str(pathlib.Path(__file__).parents[2] / "scripts")
    sys.path.insert(0, scripts)
    import bench_peers

    yield bench_peers
    sys.path.remove(scripts)


@pytest.mark.parametrize("cell", ["elman", "gru", "lstm"])
def test_the_contenders_of_this_library_and_autodiff_agree(bench_peers, cell):
    shape = bench_peers.Shape(5, 4, 3, 6, 7)
    (E, grads), *others = (
        make(cell, shape)() for make in (bench_peers.by_autodiff, bench_peers.by_jaxrnn, bench_peers.by_all_devices)
    )
    for loss, found in others:
        assert relative_error((loss, found), (E, grads)) < 1e-4


def test_turns_of_processes_make_the_table(bench_peers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench_peers, "SHAPES", {"elman": (bench_peers.Shape(3, 2, 3, 4, 5),)})
    names = {name: bench_peers.CONTENDERS[name] for name in ("jaxrnn, 1 device", "jax.grad")}
    monkeypatch.setattr(bench_peers, "CONTENDERS", names)
    monkeypatch.setattr(bench_peers, "TURN", 0.01)
    monkeypatch.setattr(sys, "argv", ["bench_peers", "--cells", "elman", "--rounds", "1", "--out", str(tmp_path)])
    bench_peers.main()
    with open(tmp_path / "peers.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[column] for column in ("cell", "T", "B", "D", "H", "V")] == ["elman", "3", "2", "3", "4", "5"]
    assert 0 < float(row["jaxrnn, 1 device ms"]) < 1000
    assert row["jax.grad ms"] in capsys.readouterr().out


def test_drawn_shapes_are_those_of_their_seed_and_not_too_large(bench_peers):
    shapes = {cell: bench_peers.drawn(cell, 30, 1) for cell in ("elman", "lstm")}
    assert shapes["lstm"] == bench_peers.drawn("lstm", 30, 1) != bench_peers.drawn("lstm", 30, 2)
    for cell, found in shapes.items():
        gates = {"elman": 1, "lstm": 4}[cell]
        assert all(6 * s.T * s.B * s.H * (gates * (s.D + s.H) + s.V) <= bench_peers.LARGEST for s in found)
        assert min(s.T for s in found) < 60
        assert max(s.T for s in found) > 600
