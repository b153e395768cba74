"""The table of `scripts/onnx_errors.py`: every operator beside onnxruntime, within 1e-5."""

import pytest
from pairwise import label, pairwise

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

OPTIONS = {
    "form": ("RNN tanh", "RNN relu", "GRU linear_before_reset=0", "GRU linear_before_reset=1", "LSTM"),
    "direction": ("forward", "reverse", "bidirectional"),
    "lengths": (True, False),
    "layout": (0, 1),
}
ROWS = pairwise(OPTIONS)


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_an_operator_is_as_onnxruntime_has_it(onnx_errors, row):
    assert onnx_errors.error_of(onnx_errors.Case(**row)) <= 1e-5


def test_other_weights_are_seen(onnx_errors):
    assert onnx_errors.error_of(onnx_errors.Case("LSTM", "bidirectional", True, 1), seed=1) > 0.1


def test_the_table_is_printed(onnx_errors, call, capsys, monkeypatch):
    monkeypatch.setattr(onnx_errors, "FORMS", {"RNN tanh": onnx_errors.FORMS["RNN tanh"]})
    monkeypatch.setattr(onnx_errors, "DIRECTIONS", {"reverse": 1})
    call(onnx_errors)
    *_, row = capsys.readouterr().out.splitlines()
    _, form, direction, *errors, _ = row.split("|")
    assert (form.strip(), direction.strip(), len(errors)) == ("RNN tanh", "reverse", 4)
    assert all(float(error) <= 1e-5 for error in errors)
