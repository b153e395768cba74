"""Tasks: what their sequences hold, and what an answer without a network is worth."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import savemat

import jaxrnn
from jaxrnn.tasks import adding, chorales, copy_memory, reber, temporal_order
from jaxrnn.tasks import pictures as task_plots
from jaxrnn.training import train

DATA = pathlib.Path(__file__).parent.parent.parent / "shared" / "data"


def test_copy_memory():
    inputs, targets, *_ = copy_memory.batch(jax.random.key(0), 7, 50)
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    assert inputs.shape == targets.shape == (27, 50)
    assert np.all(inputs[:10] == targets[-10:])
    assert set(inputs[:10].ravel()) == set(range(8))
    assert np.all(targets[:-10] == copy_memory.BLANK)
    assert np.all(inputs[16] == copy_memory.DELIMITER)  # the answers begin with the step after it
    assert np.all(np.delete(inputs[10:], 6, 0) == copy_memory.BLANK)
    assert np.isclose(copy_memory.baseline(100), 10 * np.log(8) / 120)


def test_temporal_order():
    inputs, targets, *_ = temporal_order.batch(jax.random.key(0), 50, 4000)
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    where = np.argsort(inputs < 4, 0, kind="stable")[:2]
    assert np.all((inputs >= 4).sum(0) == 2)
    assert (where[0].min(), where[0].max()) == (5, 9)
    assert (where[1].min(), where[1].max()) == (20, 24)
    first, second = np.take_along_axis(inputs, where, 0).astype(int) - 4
    assert np.all(targets == 2 * first + second)
    assert np.all(np.bincount(targets) > 900)


def test_reber_strings_are_of_the_grammar():
    found = reber.batch(3, 500)
    inputs, targets, mask, *_ = found.sequences
    for b in range(500):
        steps = np.flatnonzero(mask[:, b])
        string = "".join(reber.SYMBOLS[token] for token in inputs[steps, b]) + reber.SYMBOLS[targets[steps[-1], b]]
        assert string[:1] + string[2] + string[-3] + string[-1] == "BBEE"
        assert string[1] == string[-2]
        state = 1
        for symbol in string[3:-3]:
            state = dict(reber.GRAMMAR[state])[symbol]
        assert state == reber.LAST
        assert found.decision[b] == len(string) - 3
        assert all(found.allowed[t, b, targets[t, b]] for t in steps)
        assert found.allowed[found.decision[b], b].sum() == 1
    assert 0.4 < reber.baseline(found) < 0.6
    again = reber.batch(3, 500)
    assert np.all(again.sequences.inputs == inputs)


def rolls(random, lengths):
    return [(random.random((T, 88)) < 0.1).astype(np.uint8) for T in lengths]


@pytest.fixture
def files(tmp_path):
    """The same rolls in both formats."""
    random = np.random.default_rng(0)
    parts = {
        part: rolls(random, lengths) for part, lengths in (("train", (5, 9, 2)), ("valid", (4,)), ("test", (7, 3)))
    }
    cells = {f"{part}data": np.empty((1, len(found)), object) for part, found in parts.items()}
    for part, found in parts.items():
        cells[f"{part}data"][0, :] = found
    savemat(tmp_path / "rolls.mat", cells)
    arrays = {part: np.concatenate(found) for part, found in parts.items()}
    lengths = {f"{part}_lengths": np.array([len(roll) for roll in found]) for part, found in parts.items()}
    np.savez(tmp_path / "rolls.npz", **arrays, **lengths)
    return tmp_path, parts


@pytest.mark.parametrize("name", ["rolls.mat", "rolls.npz"])
def test_chorales_are_read(files, name):
    path, parts = files
    loaded = chorales.load(path / name)
    for part, found in zip(chorales.PARTS, loaded, strict=True):
        assert len(found) == len(parts[part])
        assert all(np.array_equal(a, b) for a, b in zip(found, parts[part], strict=True))


def test_chorales_are_packed_without_loss():
    """Every step of every sequence once, with a reset where it begins and the next roll as its target."""
    random = np.random.default_rng(1)
    found = [roll.astype(np.float32) for roll in rolls(random, (5, 9, 2, 12, 30, 3, 3))]
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


COLLECTIONS = [("JSB_Chorales.mat", (229, 76, 77), 11.09), ("Nottingham.mat", (694, 173, 170), 10.26)]


@pytest.mark.parametrize(("name", "counts", "unigram"), [case for case in COLLECTIONS if (DATA / case[0]).exists()])
def test_the_collections(name, counts, unigram):
    """As many sequences as published, and the figure of one who knows frequencies only. Skipped without the files."""
    loaded = chorales.load(DATA / name)
    assert tuple(map(len, loaded)) == counts
    assert round(chorales.unigram(loaded), 2) == unigram


def test_a_sampled_roll_begins_as_asked_and_goes_on_by_itself():
    net = jaxrnn.Network((jaxrnn.Elman(88, 4),), jaxrnn.Readout(4, 88), jaxrnn.sigmoid_cross_entropy)
    params = net.init(jax.random.key(0))
    always = params.readout._replace(V=0 * params.readout.V, c=jnp.where(jnp.arange(88) == 40, 30.0, -30.0))
    params = params._replace(readout=always)
    beginning = rolls(np.random.default_rng(0), (3,))[0]
    roll = chorales.sample(net, params, beginning, 10)
    assert np.array_equal(roll[:3], beginning)
    assert np.all(roll[3:].sum(1) == 1)
    assert np.all(roll[3:, 40] == 1)


def tasks(path):
    return {
        "chorales": (chorales.task(path / "rolls.npz", 4, 2), jaxrnn.sigmoid_cross_entropy),
        "adding": (adding.task(12, 4), jaxrnn.squared_error),
        "copy": (copy_memory.task(5, 4), jaxrnn.softmax_cross_entropy),
        "order": (temporal_order.task(20, 4), jaxrnn.softmax_cross_entropy),
        "reber": (reber.task(4), jaxrnn.softmax_cross_entropy),
    }


@pytest.mark.parametrize("name", ["chorales", "adding", "copy", "order", "reber"])
def test_a_task_is_what_a_network_takes(files, name):
    """Batches are the same for the same step and others for others, of one shape, and a network learns from them."""
    task, objective = tasks(files[0])[name]
    assert task.objective is objective
    cell = jaxrnn.GRU(task.inputs, 6)
    net = jaxrnn.Network((cell,), jaxrnn.Readout(6, task.outputs), objective, last_step=task.last_step)
    params = net.init(jax.random.key(0))
    first, again, other = task.batch(3), task.batch(3), task.batch(4)
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), first._replace(fresh=0), again._replace(fresh=0))
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(first.inputs, other.inputs)
    assert first.inputs.shape == other.inputs.shape
    _, grads = jaxrnn.value_and_grad(net)(params, first.inputs, first.targets, mask=first.mask, reset=first.reset)
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    figures = train.evaluate(net, params, task.validation(), task.classes)
    assert 0.3 * min(task.baselines.values()) < figures.loss < 70
    figure = task_plots.examples(task, net, params)
    assert all(axes.get_xlabel() for axes in figure.axes[:2] if axes.images or axes.lines)


def test_the_pictures_of_answers():
    counts = task_plots.confusion(np.array([0, 0, 1]), np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]))
    assert np.allclose(counts.axes[0].images[0].get_array(), [[0.5, 0.5], [0, 1]])
    points = task_plots.answers(np.array([0.0, 1.0]), np.array([0.2, 0.9])).axes[0].lines[1].get_xydata()
    assert np.allclose(points, [[0.0, 0.2], [1.0, 0.9]])
    real = np.zeros((5, 88))
    real[2, 39] = 1
    shown = task_plots.piano_rolls(real, real).axes[0].images[0]
    assert shown.get_array()[39, 2] == 1
    assert shown.get_extent()[2] == 20.5  # the lowest key is number 21


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: copy_memory.batch(jax.random.key(0), 0, 3), "pause"),
        (lambda: temporal_order.batch(jax.random.key(0), 9, 3), "steps must be 10 at least"),
        (lambda: reber.batch(0, 0), "size"),
        (lambda: chorales.batches([], 2, 8), "rolls must hold"),
        (lambda: chorales.batches([np.zeros((3, 88))], 2, 0), "chunk"),
    ],
)
def test_wrong_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_digits():
    """In order and permuted the same pixels, the same permutation for all; epochs take every digit once."""
    pytest.importorskip("sklearn")
    from jaxrnn.tasks import digits

    plain, permuted = digits.load(), digits.load(0)
    assert plain.train.inputs.shape == (64, 1437, 1)
    assert plain.test.targets.shape == (360,)
    assert plain.train.inputs.min() == 0
    assert plain.train.inputs.max() == 1
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(permuted.train.inputs, plain.train.inputs[order])
    task = digits.task(size=100, permutation=0)
    epoch = [task.batch(step) for step in range(14)]
    seen = np.concatenate([batch.inputs[:, :, 0].T for batch in epoch])
    assert len(np.unique(seen, axis=0)) > 1390  # a few digits are the same
    assert not np.array_equal(task.batch(0).inputs, task.batch(14).inputs)
    assert len(task_plots.examples(task, *untrained(task)).axes[0].texts) >= 10
    with pytest.raises(ValueError, match="size must not be more"):
        digits.task(2000)


def untrained(task):
    net = jaxrnn.Network(
        (jaxrnn.GRU(task.inputs, 4),), jaxrnn.Readout(4, task.outputs), task.objective, last_step=task.last_step
    )
    return net, net.init(jax.random.key(0))
