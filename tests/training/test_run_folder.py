"""The folder of a run: what is kept, what is never overwritten, and what a kill may leave."""

import json
import logging
import math

import jax
import numpy as np
import pytest

from jaxrnn.training import disk
from jaxrnn.training.fit import BEGINNING, Progress
from jaxrnn.training.run_folder import Run

LIKE = {"value": jax.ShapeDtypeStruct((), np.float32)}


def save(run, step, loss, progress=BEGINNING):
    run.log({"step": step, "validation_loss": loss, "seconds": 0.5 * step})
    run.save({"value": np.float32(step)}, step, progress)


def kept(path):
    return sorted(int(child.name) for child in (path / "checkpoints").iterdir() if child.name.isdecimal())


def test_best_is_kept_when_later_steps_are_worse(tmp_path):
    run = Run.create(tmp_path / "run", {})
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        run.restore_best(LIKE)
    assert run.restore_latest(LIKE) is None
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, math.nan), (5, 1.0)]:
        save(run, step, loss, Progress(({"loss": 0.1},), 1.0, step))
    assert run.best_validation() == (2, 1.0)
    assert run.seconds() == 2.5
    assert kept(run.path) == [2, 4, 5]
    assert float(run.restore_best(LIKE)["value"]) == 2
    run.log({"step": 6, "loss": 1.0, "seconds": 3.0})
    run.close()
    with Run.open(tmp_path / "run", writing=True) as again:
        assert [row["step"] for row in again.metrics()] == [1, 2, 3, 4, 5, 6]
        assert float(again.restore_latest(LIKE)["value"]) == 5
        assert again.progress == Progress(({"loss": 0.1},), 1.0, 5)
        assert [row["step"] for row in again.metrics()] == [1, 2, 3, 4, 5]
    assert [json.loads(line)["step"] for line in (run.path / "metrics.jsonl").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_the_line_of_a_validation_waits_for_its_checkpoint(tmp_path):
    run, file = Run.create(tmp_path / "run", {}), tmp_path / "run" / "metrics.jsonl"
    run.log({"step": 1, "loss": 2.0, "seconds": 0.1})
    run.log({"step": 1, "validation_loss": 3.0, "seconds": 0.1})
    assert len(run.metrics()) == 2
    assert len(file.read_text().splitlines()) == 1
    run.save({"value": np.float32(1)}, 1)
    assert [json.loads(line) for line in file.read_text().splitlines()] == run.metrics()


def test_what_a_kill_leaves_is_cleared_away(tmp_path):
    run = Run.create(tmp_path / "run", {})
    for name in ("3.tmp", "1.old"):
        (run.path / "checkpoints" / name / "state").mkdir(parents=True)
    save(run, 3, 1.0)
    assert [child.name for child in (run.path / "checkpoints").iterdir()] == ["3"]


def test_the_sums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "folder" / "b").write_bytes(b"")
    disk.seal(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text().splitlines() == [
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  folder/b",
    ]
    assert disk.find_damage(tmp_path) is None
    (tmp_path / ".nfs0001").touch()  # as file systems leave it
    assert disk.find_damage(tmp_path) is None
    (tmp_path / "c").touch()
    assert disk.find_damage(tmp_path) == "c is not in SHA256SUMS"


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    disk.write_whole(tmp_path / "file", "before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.write_whole(tmp_path / "file", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_folders_are_not_overwritten_unless_asked(tmp_path):
    run = Run.create(tmp_path / "run", {"one": 1})
    save(run, 1, 1.0)
    for overwrite, words in ((False, "--overwrite"), (True, "is being written by process")):
        with pytest.raises(ValueError, match=words):
            Run.create(tmp_path / "run", {}, overwrite)
    assert Run.open(run.path).record == {"one": 1}
    assert kept(run.path) == [1]
    run.close()
    with Run.create(tmp_path / "run", {"two": 2}, overwrite=True) as other:
        assert other.record == Run.open(run.path).record == {"two": 2}
        assert {child.name for child in run.path.iterdir()} == {"settings.json", ".lock"}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").write_text("mine")
    with pytest.raises(ValueError, match="not the folder of a run"):
        Run.create(tmp_path / "other", {}, overwrite=True)
    assert [child.name for child in (tmp_path / "other").iterdir()] == ["precious"]


@pytest.mark.parametrize("change", [('"one": 1', '"one": 2'), ('"sha256"', '"sha255"')])
def test_settings_that_were_changed_are_told(tmp_path, change):
    Run.create(tmp_path / "run", {"one": 1}).close()
    file = tmp_path / "run" / "settings.json"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(ValueError, match="is not as it was written"):
        Run.open(tmp_path / "run")


def test_metrics_that_were_changed_are_told_and_set_right(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "jaxrnn")
    run = Run.create(tmp_path / "run", {})
    for step in (1, 2, 3):
        save(run, step, 4.0 - step)
    run.close()
    file = run.path / "metrics.jsonl"
    good = file.read_text()
    for bad in (good.replace("3.0", "0.5"), good[:100], "", good + "[]\n", good.replace("{", "[")):
        caplog.clear()
        file.write_text(bad)
        with Run.open(run.path, writing=True) as again:
            assert again.best_validation() == (3, 1.0)
            assert "is damaged: taking the metrics that the last checkpoint has" in caplog.text
            again.restore_latest(LIKE)
        assert file.read_text() == good
