"""The bench of flax: all contenders compute the same, and a quick run makes the table."""

import csv

import jax
import numpy as np
import pytest


@pytest.mark.parametrize(("cell", "time_major"), [("GRUCell", False), ("LSTMCell", True)])
def test_the_contenders_compute_the_same_loss(bench_flax, cell, time_major):
    found = bench_flax.contenders(cell, bench_flax.QUICK, time_major).values()
    first, *others = [jax.jit(function)(*arguments)[0] for function, arguments in found]
    np.testing.assert_allclose(others, first, rtol=1e-5)


def test_a_quick_run_makes_the_table(bench_flax, call, tmp_path, capsys):
    call(bench_flax, "--quick", "--cells", "SimpleCell", "--out", tmp_path)
    printed = capsys.readouterr().out
    with open(tmp_path / "flax.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == ["SimpleCell, batch", "SimpleCell, time"]
    for row in rows:
        assert [row[column] for column in ("T", "B", "D", "H", "V")] == ["5", "2", "3", "4", "6"]
        assert 0 < float(row["flax.RNN ms"]) < 1000
        assert f"memory {row['memory']}" in printed
