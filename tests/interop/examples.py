"""Layers to convert, with random parameters, and the rows of options that the tests of conversions run through."""

from typing import Any

import jax
import numpy as np
import pytest

import jaxrnn

Layer = jaxrnn.Cell | jaxrnn.Bidirectional

D, H = 3, 5
CELLS: dict[str, Any] = {"tanh": jaxrnn.Elman, "relu": jaxrnn.Elman, "GRU": jaxrnn.GRU, "LSTM": jaxrnn.LSTM}
KINDS = tuple(CELLS)  # the first two are activations of one kind of layer

# kind, depth, bidirectional, bias, dtype: every value of each option meets every value of every other one.
COVERING_ROWS = [
    ("tanh", 2, True, False, "float64"),
    ("tanh", 1, False, True, "float32"),
    ("relu", 1, False, False, "float64"),
    ("relu", 3, True, True, "float32"),
    ("GRU", 1, True, True, "float64"),
    ("GRU", 2, False, False, "float32"),
    ("LSTM", 2, False, True, "float64"),
    ("LSTM", 1, True, False, "float32"),
]


def activation_of(kind: str) -> Any:
    return kind if kind in ("tanh", "relu") else "tanh"


def stack(kind: str, depth: int = 1, bidirectional: bool = False, bias: bool = True) -> tuple[Layer, ...]:
    """Returns layers of one kind, each on the outputs of the one below."""
    layers: list[Layer] = []
    for _ in range(depth):
        options = {"activation": kind} if kind in ("tanh", "relu") else {}
        cell = CELLS[kind](layers[-1].outputs if layers else D, H, bias=bias, **options)
        layers.append(jaxrnn.Bidirectional(cell, cell) if bidirectional else cell)
    return tuple(layers)


def fill(tree: Any, dtype: Any = np.float32) -> Any:
    """Returns random numbers in the shapes of a pytree, some zeros of either sign among them."""
    random = np.random.default_rng(7)

    def numbers(leaf: Any) -> np.ndarray:
        array = random.normal(size=leaf.shape).astype(dtype)
        array.flat[:2] = 0.0, -0.0
        return array

    return jax.tree.map(numbers, tree)


def params_of(layers: tuple[Layer, ...], dtype: Any = np.float32) -> Any:
    """Returns random parameters of every layer."""
    return fill(tuple(jax.eval_shape(layer.init, jax.random.key(0)) for layer in layers), dtype)


def assert_same(came: Any, expected: Any) -> None:
    """Raises unless two pytrees are equal in structure, shapes, dtypes, and in every bit."""
    assert jax.tree.structure(came) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, np.asarray(b).tobytes())


def cases(*tables: tuple) -> list:
    """Returns a case for every mistake in tables of (function, {name: (arguments, error, message)})."""
    return [
        pytest.param(function, *mistake, id=f"{function.__name__}: {name}")
        for function, mistakes in tables
        for name, mistake in mistakes.items()
    ]
