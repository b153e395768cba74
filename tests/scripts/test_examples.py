"""The examples: each is run as it stands, for fewer updates, and does what it says."""

import importlib.util
import pathlib
import re

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "scripts" / "examples"


@pytest.fixture
def printed(capsys):
    def run(name, updates):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(updates)
        return capsys.readouterr().out

    return run


def numbers(pattern, text):
    return [float(number) for number in re.findall(pattern, text)]


def test_all_are_short_and_named_in_the_list_of_scripts():
    files = sorted(EXAMPLES.glob("*.py"))
    assert len(files) >= 6
    assert max(len(file.read_text(encoding="utf-8").splitlines()) for file in files) < 80
    readme = (EXAMPLES.parents[1] / "README.md").read_text(encoding="utf-8")
    assert [file.name for file in files if f"`{file.name}`" not in readme] == []


def test_the_flax_model_trains_alike_with_both_loops(printed):
    pytest.importorskip("flax")
    theirs, ours = printed("flax_model", 4).splitlines()
    assert numbers(r"(\d\.\d{4})", ours) == pytest.approx(numbers(r"(\d\.\d{4})", theirs), abs=2e-4)


def test_the_equinox_model_learns(printed):
    pytest.importorskip("equinox")
    losses = numbers(r"loss (\d\.\d+)", printed("equinox_model", 60))
    assert losses[-1] < losses[0]


def test_the_weights_from_torch_go_there_and_back(printed):
    pytest.importorskip("torch")
    text = printed("torch_weights", 6)
    assert all(0 < difference < 1e-5 for difference in numbers(r"by (\de-\d+)", text))
    assert len(numbers(r"by (\de-\d+)", text)) == 2


def test_a_training_within_a_scan_learns(printed):
    losses = numbers(r"updates: (\d\.\d+)", printed("train_in_scan", 60))
    assert losses[-1] < losses[0]


def test_of_many_networks_each_has_its_rate(printed):
    text = printed("many_networks", 30)
    assert len(set(numbers(r"first, (\d+\.\d+) at the end", text))) >= 5
    assert "the best rate is" in text


def test_the_turns_in_the_maze_become_right(printed):
    shares = numbers(r"(\d+)% of the turns", printed("recurrent_ppo", 24))
    assert shares[0] < 70
    assert shares[-1] > 85


def test_the_exported_network_is_the_same_elsewhere(printed):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (difference,) = numbers(r"by (\de-\d+) at most", printed("onnx_export", 4))
    assert 0 < difference < 1e-5
