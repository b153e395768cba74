"""Evaluation: means over real steps, whatever the batches look like."""

import jax
import numpy as np
import pytest

import jaxrnn
from jaxrnn.tasks.base import Sequences
from jaxrnn.training.fit import evaluate

NET = jaxrnn.Network((jaxrnn.Elman(7, 12),), jaxrnn.Readout(12, 7), jaxrnn.softmax_cross_entropy)


def test_evaluation_counts_real_steps_only():
    random, params = np.random.default_rng(0), NET.init(jax.random.key(0))
    x, y = random.integers(0, 7, (2, 8, 1))
    mask, reset = np.ones((8, 1), bool), np.zeros((8, 1), bool)
    mask[6:], reset[3] = False, True
    batch = Sequences(x, y, mask, reset)
    apply = jax.jit(NET.apply)
    pieces = [(apply(params, x[steps])[0], y[steps]) for steps in (slice(0, 3), slice(3, 6))]
    errors = np.concatenate([NET.objective(outputs, targets) for outputs, targets in pieces])
    wrong = np.concatenate([outputs.argmax(-1) != targets for outputs, targets in pieces])
    found = evaluate(NET, params, [batch, batch], classes=True)
    assert found.loss == pytest.approx(errors.mean(), rel=1e-5)
    assert found.error_rate == pytest.approx(wrong.mean())
    assert evaluate(NET, params, [batch]).error_rate is None
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate(NET, params, [])
