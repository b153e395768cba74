"""The speed in the README is the speed in the kept results, and new results take the place of old ones."""

import pathlib
import re
import sys

import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
README = (SCRIPTS.parent / "README.md").read_text(encoding="utf-8")
LARGEST_PICTURE = 80_000  # bytes
FLAX = {"nnx.RNN ms": "3.2", "flax.RNN ms": "2.1", "nnx.RNN / flax.RNN": "1.52", "memory": "0.64"}
FLAX["flax.RNN / value_and_grad"] = "1.18"
TIMES = {"jaxrnn, all cores ms": "2", "jaxrnn, 1 device ms": "4", "jax.grad ms": "8", "flax nnx ms": "9"}
AUTO = {"by caches / best": "1.02", "tuned / best": "1.01", "tuned": "yes"}
TIMES |= {"haiku ms": "12", "torch ms": "6"}
PNG = b"\x89PNG"


def row(cell="elman", T="100", **columns):
    known = {"cell": cell, "T": T, "B": "2", "D": "3", "H": "4", "V": "5", "layers": "1"}
    times = {"by hand ms": "0.417", "autodiff ms": "38.25", "ratio": "1.5"}
    memory = {"by hand MB": "1.25", "autodiff MB": "96.4"}
    return known | times | memory | {"processor": "one core", "jax": "0.10.2", "date": "2026-11-24"} | columns


def test_the_readme_has_the_figures_of_the_kept_results(speed_table):
    made = speed_table.insert(README, "speed", speed_table.speed_table(speed_table.read(speed_table.SPEED)))
    made = speed_table.insert(made, "peers", speed_table.peers_table(speed_table.read(speed_table.PEERS)))
    made = speed_table.insert(made, "random", speed_table.random_sentence(speed_table.read(speed_table.RANDOM)))
    made = speed_table.insert(made, "flax", speed_table.flax_table(speed_table.read(speed_table.FLAX)))
    made = speed_table.insert(made, "auto", speed_table.auto_sentence(speed_table.read(speed_table.AUTO)))
    assert made == README, "run: python scripts/speed_table.py"


def test_every_kept_row_says_where_and_when(speed_table):
    kept, peers, flax = map(speed_table.read, (speed_table.SPEED, speed_table.PEERS, speed_table.FLAX))
    assert len(kept) >= 14
    assert {speed_table.label(each)[:4] for each in kept} == {"Elma", "GRU ", "LSTM"}
    assert all(each["processor"] and each["date"] for each in kept + peers + flax)
    assert all(each["jax"] for each in kept + flax)


def test_the_readme_quotes_the_kept_results_of_long_sequences(speed_table):
    text = " ".join(README.split())
    quoted = {"jax.grad": "by `jax.grad`", "jax.grad, nested checkpoints": "with nested", "recompute=True": "with `rec"}
    for each in speed_table.read(SCRIPTS / "results" / "long.csv"):
        if each["T"] == "1000000" and each["mode"] in quoted:
            megabytes, microseconds = float(each["bytes"]) / 1e6, float(each["seconds"])
            assert re.search(rf"{megabytes:,g} MB and {microseconds:g} us (per step )?{quoted[each['mode']]}", text)


def test_the_pictures_of_the_readme_are_there_and_small():
    for name in ("flow.png", "speed.png"):
        assert f"scripts/pictures/{name}" in README
        picture = (SCRIPTS / "pictures" / name).read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) < LARGEST_PICTURE


def test_a_table_by_hand(speed_table):
    made = speed_table.speed_table([row(), row("gru", layers="2", ratio="2", date="2026-11-25")])
    assert made.splitlines() == [
        "Measured on: one core, jax 0.10.2, 2026-11-24; one core, jax 0.10.2, 2026-11-25.",
        "",
        "| cell and T, B, D, H, V | by hand | autodiff | ratio | memory | autodiff |",
        "| --- | --- | --- | --- | --- | --- |",
        "| Elman 100, 2, 3, 4, 5 | 0.42 ms | 38 ms | 1.50 | 1.2 MB | 96 MB |",
        "| GRU 100, 2, 3, 4, 5, 2 layers | 0.42 ms | 38 ms | 2.00 | 1.2 MB | 96 MB |",
    ]
    peers = row(processor="one core") | {"torch ms": "3-4", "flax nnx ms": ""}
    last = speed_table.peers_table([peers]).splitlines()[-1]
    assert last == "| Elman 100, 2, 3, 4, 5 | 0.417 ms | 38.25 ms | 3-4 ms | - |"
    said = speed_table.random_sentence([row() | TIMES, row() | TIMES | {"torch ms": "24", "jax.grad ms": "36"}])
    assert "2 drawn shapes, all cores against the best of all others: 3.00 to 4.50 times as fast, geometric" in said
    assert "those in JAX: 2.00 to 2.25 times as fast, geometric mean 2.12." in said
    drawn = [row(H=H) | TIMES | {"floor ms": floor} for H, floor in (("300", "1.6"), ("256", "1"), ("255", "0.1"))]
    assert "256 or more, all cores take 1.25 to 2.00 times the floor. Measured" in speed_table.random_sentence(drawn)
    said = speed_table.auto_sentence([row() | AUTO, row() | AUTO | {"by caches / best": "1.2", "tuned": "no"}])
    assert "takes 1.11 times the best one's time at the median, 1.20 at most; after `jaxrnn tune` 1.01 at" in said
    assert "1.01 at most, at 1 of them: `python" in said
    said = speed_table.auto_sentence([row() | AUTO | {"by caches / best": "1.071", "tuned / best": "1.075"}])
    assert "1.08 at most; after `jaxrnn tune` 1.08 at most" in said  # rounded up, by whatever it is more
    last = speed_table.flax_table([row("GRUCell, time") | FLAX]).splitlines()[-1]
    assert last == "| GRUCell, time first: 100, 2, 3, 4, 5 | 3.2 ms | 2.1 ms | 1.52 | 0.64 | 1.18 |"


def test_new_rows_take_the_place_of_old_ones(speed_table, tmp_path, monkeypatch, capsys):
    names = ("speed.csv", "new.csv", "README.md", "peers.csv", "random.csv", "flax.csv", "auto.csv")
    kept, new, readme, peers, drawn, flax, auto = (tmp_path / name for name in names)
    speed_table.write(kept, [row(T="7"), row(T="8"), row("lstm", T="7")])
    speed_table.write(new, [row(T="8", ratio="3.14") | {"torch ms": "2.5"}, row(T="9")])
    speed_table.write(peers, [row()])
    speed_table.write(flax, [row() | FLAX])
    speed_table.write(drawn, [row() | TIMES])
    speed_table.write(auto, [row() | AUTO])
    comments = (f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in ("speed", "peers", "random", "auto", "flax"))
    readme.write_text("a\n" + "b\n".join(comments) + "c\n")
    places = {
        "SPEED": kept,
        "PEERS": peers,
        "FLAX": flax,
        "RANDOM": drawn,
        "AUTO": auto,
        "README": readme,
        "PICTURE": tmp_path / "pictures" / "speed.png",
    }
    for name, path in places.items():
        monkeypatch.setattr(speed_table, name, path)
    monkeypatch.setattr(sys, "argv", ["speed_table", str(new)])
    speed_table.main()
    rows = speed_table.read(kept)
    assert [(each["cell"], each["T"], each["ratio"]) for each in rows] == [
        ("elman", "7", "1.5"),
        ("elman", "8", "3.14"),
        ("lstm", "7", "1.5"),
        ("elman", "9", "1.5"),
    ]
    assert [each["torch ms"] for each in rows] == ["", "2.5", "", ""]
    text = readme.read_text()
    assert text.startswith("a\n<!-- speed -->\nMeasured on: one core")
    assert "| Elman 8, 2, 3, 4, 5 | 0.42 ms | 38 ms | 3.14 |" in text
    assert text.endswith("| 0.64 | 1.18 |\n<!-- /flax -->\nc\n")
    assert places["PICTURE"].read_bytes().startswith(PNG)
    assert "Drawn in" in capsys.readouterr().out


def test_wrong_use(speed_table, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed_table", "missing.csv"])
    with pytest.raises(SystemExit):
        speed_table.main()
    assert "no file 'missing.csv'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="must have the comments <!-- speed -->"):
        speed_table.insert("no place", "speed", "content")


def test_the_picture_of_a_flow(flow_picture, monkeypatch, tmp_path):
    """An LSTM reaches further back than an Elman network, and nothing blames a step that is yet to come."""
    found = {name: flow_picture.reach(cell, 12) for name, cell in flow_picture.CELLS.items()}
    left = {name: flow_picture.lag_means(relative) for name, relative in found.items()}
    for name, relative in found.items():
        assert ((relative != relative) == (flow_picture.np.tri(12) == 0)).all()
        assert left[name][0] == 1
    assert left["LSTM"][-1] > 3 * left["Elman"][-1]
    flow_picture.picture(found).savefig(tmp_path / "flow.png")
    assert (tmp_path / "flow.png").read_bytes().startswith(PNG)
    monkeypatch.setattr(sys, "argv", ["flow_picture", "--steps", "1"])
    with pytest.raises(SystemExit):
        flow_picture.main()
