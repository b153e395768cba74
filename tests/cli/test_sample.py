"""`jaxrnn sample`: text from a saved run."""


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
