"""`jaxrnn sample`: text from a saved run."""

import shutil


def test_sample(call, trained):
    written = [call("sample", trained[0], "--prompt", "peter", "--length", 30, "--seed", seed) for seed in (1, 1, 2)]
    assert [result.exit_code for result in written] == [0, 0, 0]
    assert written[0].output == written[1].output != written[2].output
    assert written[0].output.startswith("peter")
    assert len(written[0].output) == 5 + 30 + 1


def test_a_folder_without_a_run_is_told(call, tmp_path):
    result = call("sample", tmp_path)
    assert result.exit_code == 2
    assert "not the folder of a run" in result.output
    assert len(result.output.strip().splitlines()) <= 2


def test_a_damaged_checkpoint_is_told(call, trained, tmp_path, caplog):
    shutil.copytree(trained[0], tmp_path / "run")
    options = ("sample", "run", "--length", 30)
    assert call(*options).exit_code == 0
    assert not caplog.records
    for step, words in ((20, "going back to that of step 10"), (10, "there is none before it")):
        array = next(path for path in (tmp_path / f"run/checkpoints/{step}/state/d").iterdir() if path.stat().st_size)
        content = array.read_bytes()
        array.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        result = call(*options)
        told = [record.message for record in caplog.records] if result.exit_code == 0 else result.output.splitlines()
        assert len(told) == 1
        assert words in told[0]
        assert f"checkpoint {step}" in told[0] or step == 10
    assert result.exit_code == 2
