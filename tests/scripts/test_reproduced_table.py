"""The published figures in the README are those of the kept records, and these are of the settings in the script."""

import pathlib

import published
import pytest
import reproduce
import reproduced_table
import speed_table

from jaxrnn.training import experiment

README = pathlib.Path(reproduced_table.README).read_text(encoding="utf-8")
RECORDS = reproduce.read(reproduce.RECORDS)
LARGEST_PICTURE = 80_000  # bytes
TEN_MINUTES = 1200  # seconds of two cores
THREE_HOURS = 6 * 3600


def record(row="order-50", setting=0, seed=0, **found):
    plain = {"row": row, "setting": setting, "seed": seed, "loss": 0.25, "error_rate": 0.004, "test": None}
    where = {"processor": "two cores", "jax": "0.10.2", "date": "2026-11-27", "steps": 1000, "disagreement": 2e-6}
    return plain | where | {"processor_seconds": 90.0, "settings": {"task": "order", "hidden": 9}} | found


def test_the_readme_and_the_page_have_the_kept_records():
    assert speed_table.insert(README, "reproduced", reproduced_table.table(RECORDS)) == README, "reproduced_table.py"
    assert reproduced_table.PAGE.read_text(encoding="utf-8") == reproduced_table.page(RECORDS)


def test_the_picture_is_there_and_small():
    assert "scripts/pictures/reproduced.png" in README
    picture = reproduced_table.PICTURE.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < LARGEST_PICTURE


def test_every_record_is_of_a_setting_of_its_row_and_within_the_budget():
    places = [(found["row"], *reproduce.place(found)) for found in RECORDS]
    assert len(set(places)) == len(places)
    for found in RECORDS:
        tried = published.ROWS[found["row"]].tried
        assert found["settings"] == reproduce.changed(tried[found["setting"]]), places
        assert found["processor_seconds"] <= TEN_MINUTES
        assert found["date"]
        assert found["jax"]
        assert found["processor"]
    assert sum(found["processor_seconds"] for found in RECORDS) <= THREE_HOURS


def test_the_two_gradients_agree_in_all_that_the_table_shows():
    for name, of_row in reproduced_table.by_row(RECORDS).items():
        assert all(map(reproduce.agrees, reproduced_table.chosen(name, of_row))), name


@pytest.mark.parametrize("name", published.ROWS)
def test_every_row_can_be_set_up(name):
    """Its settings are valid and few, and its goal is one that chance does not reach."""
    about = published.ROWS[name]
    assert 1 <= len(about.tried) <= published.MOST_TRIED
    assert len(set(about.tried)) == len(about.tried)
    assert about.figure in ("test", "loss", "error_rate")
    for settings in about.tried:
        assert (about.file is not None) == (settings.task in ("text", "chorales"))
    if about.file is None and about.goal is not None:
        task = experiment.build(about.tried[0]).task
        chance = 0.5 if about.figure == "error_rate" else max(task.baselines.values())
        assert about.goal < chance * 1.0001


def test_a_table_by_hand():
    records = [
        record(seed=0),
        record(seed=1, error_rate=0.002, processor_seconds=30.0),
        record("jsb-elman", 0, loss=9.0, test=8.4),
        record("jsb-elman", 1, loss=8.9, test=8.6, flow=["The gradient VANISHES"]),
        record("order-50-plain", error_rate=0.5, disagreement=3e-5),
    ]
    lines = reproduced_table.table(records).splitlines()
    assert lines[0] == (
        "5 runs, 0.1 hours of one core in all. In their first 200 steps the losses by hand and by autodiff differ by "
        "3e-05 at most. Measured on: two cores, jax 0.10.2, 2026-11-27."
    )
    music, order, plain, _, waiting = lines[4:]
    assert waiting.startswith("Not run yet: JSB chorales, GRU; temporal order, T = 50, GRU; ")
    assert music.endswith("| 8.50 | 8.60, not reached | 1.5 min |")
    assert order.endswith("| 1.0% | 0.3% (0.2% to 0.4%), reached (2 of 2 seeds) | 1.0 min |")
    assert plain.endswith("| 1.0% | 50.0%, not reached | 1.5 min |")
    page = reproduced_table.page(records)
    line = "8.40 | 1,000 | 1.5 min | 2e-06 |\n| **hidden 9** | 8.90 | 8.60 | 1,000 | 1.5 min | 2e-06 |"
    assert f"| hidden 9 | 9.00 | {line}" in page
    assert "To reach: 8.50." in page
    assert "```text\nThe gradient VANISHES\n```" in page


def test_of_a_training_that_amplifies_rounding_what_was_measured_last_counts():
    wild = {"disagreement": 0.5, "disagreement_float64": 3e-9}
    chaotic = wild | {"disagreement_float64": 0.1, "disagreement_together": 4e-12}
    records = [record(), record("order-50-gru", **wild), record("adding-200", **chaotic)]
    assert "differ by 2e-06 at most, those of networks that amplify what rounding leaves by 3e-09 in float64; of " in (
        sentence := reproduced_table.sentence(records)
    )
    assert "; of chaotic ones two steps from the same parameters, by 4e-12. Measured" in sentence
    page = reproduced_table.page(records)
    assert "| 5e-01; float64: 3e-09 |" in page
    assert "| 5e-01; float64: 1e-01; together: 4e-12 |" in page
    assert "| `adding-200`, setting |" in page


def test_all_is_written_by_one_command(monkeypatch, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- reproduced -->\nold\n<!-- /reproduced -->\nb\n")
    places = {"README": readme, "PAGE": tmp_path / "page.md", "PICTURE": tmp_path / "picture.png"}
    for name, path in places.items():
        monkeypatch.setattr(reproduced_table, name, path)
    monkeypatch.setattr(reproduce, "RECORDS", tmp_path / "reproduced.json")
    monkeypatch.setattr("sys.argv", ["reproduced_table.py"])
    with pytest.raises(SystemExit):
        reproduced_table.main()
    assert "reproduced.json has no runs yet" in capsys.readouterr().err
    reproduce.add(reproduce.RECORDS, record(seed=1))
    reproduce.add(reproduce.RECORDS, record(seed=0))
    assert [found["seed"] for found in reproduce.read(reproduce.RECORDS)] == [0, 1]
    reproduced_table.main()
    assert "reached (2 of 2 seeds)" in readme.read_text()
    assert all(path.stat().st_size for path in places.values())
