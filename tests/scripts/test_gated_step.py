"""Where the time of a gated step goes: every trial is exact, and the table and the file say what was measured."""

import gated_step
import pytest
import speed_table
from gated_trials import TRIALS


@pytest.mark.parametrize("name", [name for name, trial in TRIALS.items() if trial.unroll == 1])
def test_a_trial_computes_the_gradient(name):
    trial = TRIALS[name]
    error = gated_step.error(trial, trial.cell, gated_step.QUICK)
    assert error <= 1e-12 if trial.exact else 1e-12 < error < 0.1


def test_a_quick_run(call, tmp_path, capsys):
    call(gated_step, "--quick", "--cells", "gru", "--out", tmp_path)
    assert "GRU, T,B,D,H,V = 7,2,3,4,5" in capsys.readouterr().out
    rows = speed_table.read(tmp_path / "gated_step.csv")
    parts = {row["name"]: float(row["ms"]) for row in rows if row["kind"] == "part"}
    assert sum(parts.values()) == pytest.approx(2 * parts["sum"] + parts["whole"], rel=0.02)
    trials = [row["name"] for row in rows if row["kind"] == "trial"]
    assert trials == [name for name, trial in TRIALS.items() if trial.cell == "gru"]


def test_a_new_row_takes_the_place_of_the_old_one(tmp_path):
    sizes = dict.fromkeys(speed_table.SIZES, "2")
    row = {"cell": "gru", **sizes, "kind": "trial", "name": "one", "processor": "p", "instructions": "all", "ms": "1"}
    gated_step.save(tmp_path / "kept.csv", [row, row | {"name": "other"}])
    gated_step.save(tmp_path / "kept.csv", [row | {"ms": "2"}, row | {"instructions": "AVX2"}])
    found = [(row["name"], row["instructions"], row["ms"]) for row in speed_table.read(tmp_path / "kept.csv")]
    assert found == [("one", "all", "2"), ("other", "all", "1"), ("one", "AVX2", "1")]
