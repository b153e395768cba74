"""Piano rolls: read, packed, sampled, drawn, and files that hold none."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import savemat

import jaxrnn
from jaxrnn.tasks import chorales

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize("name", ["rolls.mat", "rolls.npz"])
def test_chorales_are_read(files, name):
    path, parts = files
    loaded = chorales.load(path / name)
    for part, found in zip(chorales.PARTS, loaded, strict=True):
        assert len(found) == len(parts[part])
        assert all(np.array_equal(a, b) for a, b in zip(found, parts[part], strict=True))


def test_chorales_are_packed_without_loss(rolls):
    """Every step of every sequence once, with a reset where it begins and the next roll as its target."""
    found = [roll.astype(np.float32) for roll in rolls(1, (5, 9, 2, 12, 30, 3, 3))]
    for seed in (None, 4):
        chunks = chorales.batches(found, 3, 8, seed)
        assert [chunk.fresh for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
        inputs, targets, mask, reset = (np.concatenate([c[i] for c in chunks]) for i in range(4))
        assert mask.sum() == sum(len(roll) - 1 for roll in found)
        pieces = []
        for b in range(3):
            starts = np.flatnonzero(reset[:, b])
            for start, end in zip(starts, [*starts[1:], mask[:, b].sum()], strict=True):
                pieces.append(np.concatenate([inputs[start:end, b], targets[end - 1 : end, b]]))
                assert np.array_equal(pieces[-1][1:], targets[start:end, b])
        assert sorted(piece.tobytes() for piece in pieces) == sorted(roll.tobytes() for roll in found)


def test_the_fingerprint_is_that_of_every_step(files):
    path, _ = files
    with np.load(path / "rolls.npz") as arrays:
        named = dict(arrays)
    prints = []
    for part in chorales.PARTS:
        changed = {**named, part: named[part].copy()}
        prints.append(chorales.Chorales(2, 0, 10, 4, str(path / "rolls.npz")).fingerprint())
        changed[part][-1, 0] = 1 - changed[part][-1, 0]
        np.savez(path / "changed.npz", **changed)
        prints.append(chorales.Chorales(2, 0, 10, 4, str(path / "changed.npz")).fingerprint())
    assert len(set(prints)) == 1 + len(chorales.PARTS)


def damaged(path, **changes):
    with np.load(path / "rolls.npz") as arrays:
        named = dict(arrays)
    for name, value in changes.items():
        named[name] = value
    np.savez(path / "bad.npz", **{name: value for name, value in named.items() if value is not None})
    return path / "bad.npz"


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "none.mat", "there is no file"),
        (lambda p: p, "there is no file"),
        (lambda p: written(p / "rolls.txt", b"text"), "must be a .mat or .npz file of piano rolls"),
        (lambda p: written(p / "text.mat", b"only text " * 30), "cannot be read as a .mat file"),
        (lambda p: written(p / "empty.mat", b""), "cannot be read as a .mat file"),
        (lambda p: written(p / "cut.mat", (p / "rolls.mat").read_bytes()[:400]), "cannot be read as a .mat file"),
        (lambda p: written(p / "text.npz", b"only text " * 30), "cannot be read"),
        (lambda p: written(p / "cut.npz", (p / "rolls.npz").read_bytes()[:300]), "cannot be read as an .npz file"),
        (
            lambda p: savemat(p / "other.mat", {"traindata": np.zeros((1, 1), object)}) or p / "other.mat",
            "lacks validdata",
        ),
        (lambda p: damaged(p, valid=None), "must have the arrays train, train_lengths"),
        (lambda p: damaged(p, train=np.zeros((16, 80), np.uint8)), r"sequence 0 of train .* must be \[T, 88\]"),
        (lambda p: damaged(p, train=np.full((16, 88), 2)), "zeros and ones only"),
        (lambda p: damaged(p, train_lengths=np.array([1, 15])), "two steps at least"),
        (lambda p: damaged(p, train_lengths=np.array([4, 4])), "must add up"),
        (lambda p: damaged(p, train=np.array([object()], object)), "cannot be read"),
    ],
)
def test_files_that_are_not_chorales(files, make, message):
    with pytest.raises(ValueError, match=message):
        chorales.load(make(files[0]))


def test_no_pickle_is_loaded(files):
    """Not even to find out that it is none: unpickling is running what the file says."""

    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = damaged(files[0], valid=np.array([Bomb()], object))
    with pytest.raises(ValueError, match="cannot be read"):
        chorales.load(path)


COLLECTIONS = [
    ("JSB_Chorales.mat", (229, 76, 77), 11.09, (8.71, 8.91, 8.43)),
    ("Nottingham.mat", (694, 173, 170), 10.26, (4.46, 4.05, 3.36, 3.29)),
]


@pytest.mark.parametrize(
    ("name", "counts", "unigram", "published"), [case for case in COLLECTIONS if (DATA / case[0]).exists()]
)
def test_the_collections(name, counts, unigram, published):
    """As many sequences as published, and the figure of one who knows frequencies only. Skipped without the files."""
    loaded = chorales.load(DATA / name)
    assert tuple(map(len, loaded)) == counts
    task = chorales.Chorales(2, data=str(DATA / name))
    assert round(task.baselines["frequency of each note"], 2) == unigram
    assert [each.figure for each in task.published] == list(published)


def test_of_other_rolls_no_figure_is_published(files):
    assert chorales.Chorales(2, data=str(files[0] / "rolls.npz")).published == []


def test_a_sampled_roll_begins_as_asked_and_goes_on_by_itself(rolls):
    net = jaxrnn.Network((jaxrnn.Elman(88, 4),), jaxrnn.Readout(4, 88), jaxrnn.sigmoid_cross_entropy)
    params = net.init(jax.random.key(0))
    always = params.readout._replace(V=0 * params.readout.V, c=jnp.where(jnp.arange(88) == 40, 30.0, -30.0))
    params = params._replace(readout=always)
    beginning = rolls(0, (3,))[0]
    roll = chorales.sample(net, params, beginning, 10)
    assert np.array_equal(roll[:3], beginning)
    assert np.all(roll[3:].sum(1) == 1)
    assert np.all(roll[3:, 40] == 1)


def test_a_picture_shows_the_notes():
    real = np.zeros((5, 88))
    real[2, 39] = 1
    shown = chorales.piano_rolls(real, real).axes[0].images[0]
    assert shown.get_array()[39, 2] == 1
    assert shown.get_extent()[2] == 20.5  # the lowest key is number 21
