"""Does exactness pay? Only the gradient differs between the runs that are compared; what is found is kept and drawn."""

import re

import exactness
import pytest

PNG = b"\x89PNG"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """Returns the results file, in a folder of this test."""
    monkeypatch.setattr(exactness, "RESULTS", tmp_path / "exactness.csv")
    monkeypatch.setattr(exactness, "PICTURE", tmp_path / "exactness.png")
    return tmp_path / "exactness.csv"


def test_a_lag_of_all_steps_is_the_whole_gradient():
    lesson = exactness.order_lesson(0)
    found = {name: exactness.train(lesson, name, 0, 40) for name in ("whole", "Tail(50)", "Window(50)", "Tail(5)")}
    assert found["whole"]["figure"] == found["Tail(50)"]["figure"] == found["Window(50)"]["figure"]
    assert float(found["Tail(5)"]["MB"]) < float(found["whole"]["MB"])


def test_a_text_is_read_on_by_every_kind_of_gradient(tmp_path):
    """The carried state is dropped where the text begins anew."""
    (tmp_path / "text.txt").write_text("peter piper picked a peck of pickled peppers\n" * 200)
    lesson = exactness.text_lesson(tmp_path / "text.txt", 0)
    for method in ("whole", "RFLO"):
        assert 0.1 < float(exactness.train(lesson, method, 0, 6)["figure"]) < 4


def test_what_is_found_is_kept_and_drawn(kept, call, capsys, monkeypatch):
    monkeypatch.setattr(exactness, "train", lambda lesson, method, seed, updates: FOUND | {"figure": f"0.{seed}"})
    call(exactness, "--tasks", "order", "--methods", "whole", "RFLO", "--seeds", 3)
    call(exactness, "--tasks", "order", "--methods", "RFLO", "--seeds", 2)  # in the place of those before
    assert len(kept.read_text().splitlines()) == 1 + 6
    assert "| whole | 10.0% (0.0% to 20.0%) | 1.5 ms | 2.5 MB |" in capsys.readouterr().out
    assert kept.with_suffix(".png").read_bytes().startswith(PNG)


def test_the_readme_has_the_table_of_the_kept_results(speed_table):
    text = speed_table.README.read_text(encoding="utf-8")
    made = speed_table.insert(text, "exactness", exactness.table(speed_table.read(exactness.RESULTS)))
    assert made == text, "run: python scripts/exactness.py --draw"


def test_quick_keeps_nothing(kept, call, monkeypatch):
    monkeypatch.setattr(exactness, "train", lambda *arguments: FOUND)
    call(exactness, "--quick", "--methods", "whole")
    assert not kept.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [(("--tasks", "text"), "needs --data"), (("--draw",), "nothing to draw"), (("--seeds", 0), "1 or more, got 0")],
)
def test_wrong_use(kept, call, capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        call(exactness, *words)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)


FOUND = {"figure": "0.5", "ms": "1.5", "MB": "2.5", "updates": "7"}
