"""Damage to every file of a run: what comes of it is as without it, or a line or an error says so."""

import logging
import random
import shutil

import injection
import pytest

from jaxrnn.training import disk
from jaxrnn.training.run_folder import Run

HOW = ("emptied", "halved", "a byte short", "a bit flipped", "a byte longer", "deleted")


def damage(path, how, random):
    """Damages a file; returns where, in words."""
    content = bytearray(path.read_bytes())
    if how == "deleted":
        path.unlink()
        return how
    at = random.randrange(len(content)) if content else 0
    if how == "a bit flipped":
        if content:
            content[at] ^= 1 << random.randrange(8)
    elif how == "a byte longer":
        content.append(random.randrange(256))
    else:
        content = content[: {"emptied": 0, "halved": len(content) // 2, "a byte short": max(len(content) - 1, 0)}[how]]
    path.write_bytes(content)
    return f"{how} at {at}" if how == "a bit flipped" else how


@pytest.fixture(scope="module")
def stopped(tiny, memory):
    """Returns a run, and a folder in which it was stopped between two checkpoints of its cadence."""
    run, folder = tiny("up and down"), memory / "stopped"
    with run.open(folder) as opened:
        count = iter(range(1, 100))
        run.now.train(opened, run.now.state_of(opened), stop=lambda: next(count) == 23)
    return run, folder


def try_damage(run, folder, copy, table, caplog, name, how, random, sampled):
    """Damages a file of a copy, goes on with it or reads its best; returns whether that was right, or told."""
    shutil.copytree(folder, copy)
    where = damage(copy / name, how, random)
    unchanged = how == "a bit flipped" and (copy / name).read_bytes() == (folder / name).read_bytes()
    caplog.clear()
    best = Run.open(folder).best_validation()[0]
    fault = f"{'best read' if sampled else 'gone on with'}, {kind_of(name)} damaged"
    try:
        if sampled:
            right = injection.digest(Run.open(copy).restore_best(run.like)) == run.expected[1][best]
        else:
            right = run.go_on(copy) == run.expected[0]
        told = " ".join(record.message for record in caplog.records)
    except ValueError as error:
        right, told = False, str(error)
    outcome = "survived" if right else "noticed" if told else "lost"
    table.add(fault, outcome, name=name, where=where, told=told)
    shutil.rmtree(copy)
    assert unchanged or outcome != "lost", f"{name} {where}"
    assert "\n" not in told
    return told


def kind_of(name):
    """Returns what kind of file it is, in words."""
    if "/state/" in name:
        return "array file" if "/d/" in name else "array index"
    return name.rsplit("/", 1)[-1]


def files_of(folder):
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if name != disk.LOCK]


def test_damage_here_and_there(stopped, place, table, caplog):
    """The quick part of the next test: one way for each file, in turn."""
    caplog.set_level(logging.WARNING, "jaxrnn")
    run, folder = stopped
    draw = random.Random(0)
    for i, name in enumerate(files_of(folder)):
        if i % 3 == 0:
            try_damage(run, folder, place, table, caplog, name, HOW[i // 3 % len(HOW)], draw, i % 2 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("sampled", [False, True], ids=["gone on with", "sampled"])
def test_every_file_damaged_in_every_way(stopped, place, table, caplog, sampled):
    caplog.set_level(logging.WARNING, "jaxrnn")
    run, folder = stopped
    draw = random.Random(1)
    for name in files_of(folder):
        for how in HOW:
            try_damage(run, folder, place, table, caplog, name, how, draw, sampled)


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_flipped_byte_of_an_array_is_noticed(stopped, place, table, flips):
    """Of the best and of the last checkpoint, by whoever reads them."""
    run, folder = stopped
    draw, copy = random.Random(flips), place
    shutil.copytree(folder, copy)
    steps = [Run.open(folder).best_validation()[0], 23]
    arrays = [p for step in steps for p in (copy / "checkpoints" / str(step)).rglob("d/*") if p.stat().st_size]
    for _ in range(flips):
        path = draw.choice(arrays)
        good = path.read_bytes()
        at = draw.randrange(len(good))
        path.write_bytes(good[:at] + bytes([good[at] ^ draw.randrange(1, 256)]) + good[at + 1 :])
        step = int(path.relative_to(copy / "checkpoints").parts[0])
        noticed = run.checkpoints(copy).damage(step) is not None
        table.add("a byte of an array flipped", "noticed" if noticed else "lost", name=str(path), at=at)
        path.write_bytes(good)
        assert noticed
    assert Run.open(copy).best_validation()[0] == steps[0]


def test_a_damaged_last_checkpoint_is_told_in_a_line_and_the_one_before_taken(stopped, place, caplog):
    run, folder = stopped
    shutil.copytree(folder, place)
    (place / "checkpoints/23/progress.json").write_text("{}")
    with run.open(place) as opened:
        assert int(run.now.state_of(opened).step) == 21
    (line,) = [record.message for record in caplog.records]
    assert "checkpoint 23" in line
    assert "damaged (progress.json has changed)" in line
    assert "that of step 21" in line
    assert run.go_on(place) == run.expected[0]


def test_a_damaged_best_is_told_and_not_read(stopped, place, caplog):
    run, folder = stopped
    shutil.copytree(folder, place)
    best, second = 14, 21
    shutil.rmtree(place / f"checkpoints/{best}/state/d")
    reader = Run.open(place)
    assert int(reader.restore_best(run.like).step) == second
    assert f"checkpoint {best} of" in caplog.text
    assert "the best, is damaged (state/d/" in caplog.text


def test_where_every_checkpoint_is_damaged_nothing_is_begun_again(stopped, place):
    run, folder = stopped
    shutil.copytree(folder, place)
    for sums in (place / "checkpoints").glob("*/SHA256SUMS"):
        sums.unlink()
    before = (place / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint 23 .* is damaged .* --overwrite begins again"):
        run.open(place)
    assert (place / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("tail", ['{"step": 25, "lo', '{"step": 25, "loss": 1.0, "seconds": 1.0}'])
def test_a_half_line_of_metrics_is_dropped_with_a_note(stopped, place, caplog, tail):
    run, folder = stopped
    shutil.copytree(folder, place)
    with open(place / "metrics.jsonl", "a") as file:
        file.write(tail)
    assert Run.open(place).metrics() == Run.open(folder).metrics()
    assert "is half written, and is dropped" in caplog.text
    assert run.go_on(place) == run.expected[0]
