"""The folder of a run: what is kept, what is never overwritten."""

import json

import jax
import numpy as np
import pytest

from jaxrnn.training.run_folder import Run


def test_best_is_kept_when_later_steps_are_worse(tmp_path):
    run = Run.create(tmp_path / "run", {})
    like = {"value": jax.ShapeDtypeStruct((), np.float32)}
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.restore(like)
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        run.log({"step": step, "validation_loss": loss, "seconds": 0.5 * step})
        run.save({"value": np.float32(step)}, step)
    assert run.best_validation() == (2, 1.0)
    assert run.seconds() == 1.5
    assert float(run.restore(like, "best")["value"]) == 2
    assert float(run.restore(like)["value"]) == 3
    run.drop_metrics_after(1)
    assert [metrics["step"] for metrics in run.metrics()] == [1]


def test_folders_are_not_overwritten_unless_asked(tmp_path):
    run = Run.create(tmp_path / "run", {"one": 1})
    with pytest.raises(ValueError, match="--overwrite"):
        Run.create(tmp_path / "run", {})
    assert json.loads((run.path / "settings.json").read_text()) == {"one": 1}
    assert Run.create(tmp_path / "run", {"two": 2}, overwrite=True).record == {"two": 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="not the folder of a run"):
        Run.create(tmp_path / "other", {}, overwrite=True)
    assert (tmp_path / "other" / "precious").exists()
