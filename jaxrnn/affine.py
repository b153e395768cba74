"""The affine map of a whole segment, and its adjoint: what cells do with inputs, and the readout with states.

    z_t = U x_t + b          dE/dU = sum_t delta_t x_t^T     dE/db = sum_t delta_t     dE/dx_t = U^T delta_t

dE/dU is a sum of outer products, and a sum of outer products over a segment is one matrix product: nothing of it
belongs inside a loop over time. Rows are examples, so z = x @ U.T + b.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn.arguments import Array, accumulation_dtype, is_integer

# dE/dU from tokens: up to here one GEMM with the one-hot matrix, beyond it a scatter-add of the rows of delta.
# Measured with B = 32, H = 256, K = 16 on 2 cores.
ONE_HOT_TOKENS = 512


def affine(U_T: Array, b: Array | None, inputs: Array, dtype: Any = None) -> Array:
    """z = U x + b for every step at once. A token x is the column U[:, x]; one out of range gives NaN.

    Args:
        U_T: `U.T`, [D, H], laid out once outside the loops: a token is then a row to copy.
        b: [H], or None.
        inputs: floats [..., D] or integer tokens [...].
        dtype: of z, by default that of U.

    Returns:
        z, [..., H].
    """
    z = (
        _columns(U_T, inputs) if is_integer(inputs) else jnp.matmul(inputs, U_T, preferred_element_type=dtype)
    )  # [..., H]
    return z if b is None else z + b


def _columns(U_T: Array, tokens: Array) -> Array:
    # jax counts negative indices from the end; a negative token is an error, and must be as loud as one too large.
    tokens = jnp.where(tokens < 0, U_T.shape[0], tokens)
    return jnp.take(U_T, tokens, axis=0, mode="fill")  # [..., H]


def affine_weight_grads(size: int, bias: bool, inputs: Array, delta: Array) -> tuple[Array, Array | None]:
    """dE/dU [H, D] and dE/db [H], summed over every axis but the last of delta [..., H]; `size` is D.

    The sums are taken, and given, in float32 at least.
    """
    H, dtype = delta.shape[-1], accumulation_dtype(delta.dtype)
    rows = delta.reshape(-1, H)  # [K * B, H]
    db = rows.sum(0, dtype=dtype) if bias else None
    if is_integer(inputs) and size > ONE_HOT_TOKENS:
        return jnp.zeros((size, H), dtype).at[inputs.reshape(-1)].add(rows.astype(dtype)).T, db
    if is_integer(inputs):
        inputs = jax.nn.one_hot(inputs, size, dtype=delta.dtype)
    return jnp.matmul(rows.T, inputs.reshape(-1, size), preferred_element_type=dtype), db


def affine_input_grads(U: Array, delta: Array) -> Array:
    """dE/dx_t = U^T delta_t for every step at once: [..., D]."""
    return delta @ U
