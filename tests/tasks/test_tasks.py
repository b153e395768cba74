"""Tasks: what their sequences hold, and what an answer without a network is worth."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.tasks import TASKS, chorales, copy_memory, reber
from jaxrnn.tasks.adding import Adding
from jaxrnn.tasks.copy_memory import CopyMemory
from jaxrnn.tasks.temporal_order import TemporalOrder
from jaxrnn.training.fit import evaluate


def test_copy_memory():
    inputs, targets, *_ = CopyMemory(50, length=7).draw(jax.random.key(0), 50)
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    assert inputs.shape == targets.shape == (27, 50)
    assert np.all(inputs[:10] == targets[-10:])
    assert set(inputs[:10].ravel()) == set(range(8))
    assert np.all(targets[:-10] == copy_memory.BLANK)
    assert np.all(inputs[16] == copy_memory.DELIMITER)  # the answers begin with the step after it
    assert np.all(np.delete(inputs[10:], 6, 0) == copy_memory.BLANK)
    assert np.isclose(CopyMemory(2).baselines["without memory"], 10 * np.log(8) / 120)


def test_temporal_order():
    inputs, targets, *_ = TemporalOrder(1, length=50).draw(jax.random.key(0), 4000)
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


def test_the_adding_problem():
    inputs, targets, *_ = Adding(1, length=11).draw(jax.random.key(1), 2000)
    marked = np.asarray(inputs[..., 1])
    first, second = np.argsort(-marked, 0, kind="stable")[:2]
    assert np.all(marked.sum(0) == 2)
    assert first.max() == 4
    assert second.min() == 5
    assert second.max() == 10
    assert np.allclose(targets[:, 0], np.sum(np.asarray(inputs[..., 0]) * marked, 0))
    assert np.isclose(np.mean((np.asarray(targets) - 1) ** 2), Adding.baselines["always one"], rtol=0.1)


def untrained(task):
    net = jaxrnn.Network(
        (jaxrnn.Elman(task.inputs, 4),), jaxrnn.Readout(4, task.outputs), task.objective, last_step=task.last_step
    )
    return net, net.init(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("chorales", jaxrnn.sigmoid_cross_entropy),
        ("adding", jaxrnn.squared_error),
        ("copy", jaxrnn.softmax_cross_entropy),
        ("order", jaxrnn.softmax_cross_entropy),
        ("reber", jaxrnn.softmax_cross_entropy),
    ],
)
def test_a_task_is_what_a_network_takes(files, name, objective):
    """Batches are the same for the same step and others for others, of one shape, and a network learns from them."""
    data = str(files[0] / "rolls.npz") if name == "chorales" else None
    task = TASKS[name](batch_size=3, length=12, chunk=4, data=data)
    assert task.objective is objective
    first, again, other = task.batch(3), task.batch(3), task.batch(4)
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), first._replace(fresh=0), again._replace(fresh=0))
    assert all(jax.tree.leaves(same))
    assert not np.array_equal(first.inputs, other.inputs)
    assert first.inputs.shape == other.inputs.shape
    net, params = untrained(task)
    gradient = jax.jit(jaxrnn.value_and_grad(net))
    _, grads = gradient(params, first.inputs, first.targets, mask=first.mask, reset=first.reset)
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    metrics = evaluate(net, params, task.validation(), task.classes)
    assert 0.3 * min(task.baselines.values()) < metrics.loss < 70
    assert (metrics.error_rate is not None) == task.classes
    figure = task.picture(net, params)
    assert all(axes.get_xlabel() for axes in figure.axes[:2] if axes.images or axes.lines)
    assert len(task.describe()) == 2
    assert task.fingerprint() == TASKS[name](batch_size=3, length=12, chunk=4, data=data).fingerprint()
    assert task.fingerprint() != TASKS[name](batch_size=3, seed=1, length=12, chunk=4, data=data).fingerprint()
    assert task.sample(net, params) is None
    with pytest.raises(ValueError, match="has no pieces of any length"):
        task.excerpt(5, 2, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CopyMemory(3, length=0), "length"),
        (lambda: Adding(3, length=1), "length must be 2 at least"),
        (lambda: TemporalOrder(3, length=9), "length must be 10 at least"),
        (lambda: reber.batch(0, 0), "size"),
        (lambda: Adding(0), "batch_size"),
        (lambda: Adding(3, data="x.txt"), "the task adding makes its own"),
        (lambda: chorales.Chorales(3), "chorales need a .mat file of piano rolls"),
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

    (train, test), (permuted, _) = digits.load(), digits.load(0)
    assert train.inputs.shape == (64, 1437, 1)
    assert test.targets.shape == (360,)
    assert train.inputs.min() == 0
    assert train.inputs.max() == 1
    order = np.random.default_rng(0).permutation(64)
    assert np.array_equal(permuted.inputs, train.inputs[order])
    task = digits.PermutedDigits(100)
    epoch = [task.batch(step) for step in range(14)]
    seen = np.concatenate([batch.inputs[:, :, 0].T for batch in epoch])
    assert len(np.unique(seen, axis=0)) > 1390  # a few digits are the same
    assert not np.array_equal(task.batch(0).inputs, task.batch(14).inputs)
    assert len(task.picture(*untrained(task)).axes[0].texts) >= 10
    with pytest.raises(ValueError, match="batch must not be more"):
        digits.Digits(2000)
