"""Gradients by other means, slow and plain: what the library is held against. NumPy only."""

import jax
import numpy as np


def relative_error(value, truth):
    """The largest max |a - b| / max |b| over the leaves of two pytrees; shapes must agree, and NaN stays NaN."""
    jax.tree.map(lambda a, b: np.testing.assert_equal(np.shape(a), np.shape(b)), value, truth)
    errors = jax.tree.map(_leaf_error, value, truth)
    return float(np.max(jax.tree.leaves(errors)))


def _leaf_error(value, truth):
    value, truth = np.asarray(value, np.float64), np.asarray(truth, np.float64)
    scale = np.max(np.abs(truth))
    return np.max(np.abs(value - truth)) / (scale if scale > 0 else 1.0)  # where all is zero, the error is absolute


def softmax(outputs):
    exponentials = np.exp(outputs - outputs.max())
    return exponentials / exponentials.sum()


def textbook(params, inputs, labels):
    """E and its gradients (U, W, b, V, c) for one tanh layer and softmax cross-entropy, a loop per sequence and step.

    Args:
        params: U, W, b, V, c.
        inputs: [T, B, D].
        labels: integers [T, B].
    """
    U, W, b, V, c = params
    T, B = labels.shape
    E, (dU, dW, db, dV, dc) = 0.0, (np.zeros_like(p) for p in params)
    for n in range(B):
        s, yhat = [np.zeros(W.shape[0])], []  # s[t] follows step t, counted from 1; s[0] is s_0
        for t in range(T):
            s.append(np.tanh(W @ s[t] + U @ inputs[t, n] + b))
            yhat.append(softmax(V @ s[t + 1] + c))
            E -= np.log(yhat[t][labels[t, n]])
        blame = np.zeros(W.shape[0])  # W^T delta_{t+1}
        for t in reversed(range(T)):
            e = yhat[t] - np.eye(V.shape[0])[labels[t, n]]
            delta = (1 - s[t + 1] ** 2) * (V.T @ e + blame)
            dV += np.outer(e, s[t + 1])
            dc += e
            dW += np.outer(delta, s[t])
            dU += np.outer(delta, inputs[t, n])
            db += delta
            blame = W.T @ delta
    return E / (T * B), tuple(grad / (T * B) for grad in (dU, dW, db, dV, dc))


def double_sum(params, inputs, labels):
    """dE/dW [H, H] of one sequence, by the double sum over the step t that errs and the step k that is blamed.

        dE/dW = 1/T sum_t sum_{k<=t} (dE_t/ds_t) (ds_t/ds_k) (d+ s_k/dW)
        ds_t/ds_k = prod_{j=k+1..t} diag(1 - s_j^2) W

    Args:
        params: U, W, b, V, c.
        inputs: [T, D].
        labels: integers [T].
    """
    U, W, b, V, c = params
    T, H = len(labels), W.shape[0]
    s = [np.zeros(H)]
    for x in inputs:
        s.append(np.tanh(W @ s[-1] + U @ x + b))
    total = np.zeros_like(W)
    for t in range(1, T + 1):
        yhat = softmax(V @ s[t] + c)
        dE_ds = V.T @ (yhat - np.eye(len(yhat))[labels[t - 1]])
        for k in range(1, t + 1):
            ds_ds = np.eye(H)
            for j in range(k + 1, t + 1):
                ds_ds = np.diag(1 - s[j] ** 2) @ W @ ds_ds
            # d+ s_k[i] / dW[i, j] = (1 - s_k[i]^2) s_{k-1}[j], with s_{k-1} held constant.
            total += np.outer((dE_ds @ ds_ds) * (1 - s[k] ** 2), s[k - 1])
    return total / T


def central_difference(function, point, direction, h=1e-5):
    """(f(p + h d) - f(p - h d)) / 2h for pytrees p and d: the derivative along d, but for an error of order h^2."""
    ahead, behind = (jax.tree.map(lambda p, d, h=h: p + h * d, point, direction) for h in (h, -h))
    return (float(function(ahead)) - float(function(behind))) / (2 * h)


def inner(a, b):
    """The inner product of two pytrees."""
    return float(sum(np.sum(np.asarray(x) * np.asarray(y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)))
