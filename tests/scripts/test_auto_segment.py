"""The check of "auto" against the best K: it tries what "auto" chooses, and saves what it measured."""

import csv

import pytest

from jaxrnn.layer.machine import Limits


@pytest.mark.parametrize(("steps", "chosen"), [(100, [25, 10]), (64, [64, 64]), (101, [101, 4]), (1, [1, 1])])
def test_what_is_chosen_is_tried_and_what_is_around_it(auto_segment, steps, chosen):
    found = auto_segment.tried(steps, chosen)
    assert {steps, *chosen} <= set(found)
    assert max(found) == steps
    assert min(found) <= max(1, min(chosen) // 2)


def test_the_table_has_what_was_measured(auto_segment, call, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(auto_segment.machine, "limits", lambda: Limits(0, 1, 4))
    call(auto_segment, "--quick", "--out", tmp_path)
    with open(tmp_path / "auto_segment.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("cell", "T", "B", "D", "H", "V", "layers")] == ["elman", *"823451"]
    assert (row["K by caches"], row["K tuned"], row["tuned"]) == ("8", "2", "no")
    ratios = [float(row[f"{name} / best"]) for name in ("by caches", "tuned")]
    assert min(ratios) >= 1
    printed = capsys.readouterr().out
    assert all(f"most {ratio:.2f}" in printed for ratio in ratios)


def test_drawn_shapes_come_besides_the_usual_ones(auto_segment):
    assert len(auto_segment.shapes("elman", 3, 1)) == len(auto_segment.shapes("elman", 0, 1)) + 3
    assert auto_segment.shapes("gru", 2, 1) != auto_segment.shapes("gru", 2, 2)
