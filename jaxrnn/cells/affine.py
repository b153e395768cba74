"""The affine map of a whole segment, and its adjoint: cells apply it to inputs, the readout to states.

    z_t = U x_t + b          dE/dU = sum_t delta_t x_t^T     dE/db = sum_t delta_t     dE/dx_t = U^T delta_t

dE/dU is a sum of outer products, and a sum of outer products over a segment is one matrix product: nothing of it
belongs inside a loop over time. Rows are examples, so z = x @ U.T + b.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from chex import Array
from jax import lax
from jax.typing import DTypeLike

from jaxrnn.arguments import accumulation_dtype, is_integer, may_be_spread

# dE/dU from tokens: up to here one product with the one-hot matrix, beyond it a scatter-add of the rows of delta.
# Measured with B = 32, H = 256, K = 16 on 2 cores.
ONE_HOT_TOKENS = 512


def affine(U_T: Array, b: Array | None, inputs: Array, dtype: DTypeLike | None = None) -> Array:
    """Computes z = U x + b for every step at once. A token x is the column U[:, x]; one out of range gives NaN.

    Args:
        U_T: `U.T`, [D, H], laid out once outside the loops: a token is then a row to copy.
        b: [H], or None.
        inputs: floats [..., D] or integer tokens [...].
        dtype: of z, by default that of U.

    Returns:
        z, [..., H].
    """
    z = _product(U_T, inputs, dtype)  # [..., H]
    return z if b is None else z + like_rows(b, z)


def like_rows(vector: Array, rows: Array) -> Array:
    """Gives a vector [H] the axes and the dtype of rows [..., H], as JAX's strict modes of promotion ask for."""
    return jnp.expand_dims(vector.astype(rows.dtype), range(rows.ndim - 1))


def _product(U_T: Array, inputs: Array, dtype: DTypeLike | None) -> Array:
    if not is_integer(inputs):
        return jnp.matmul(inputs, U_T, preferred_element_type=dtype)
    # jax counts negative indices from the end; a negative token is an error, and must be as loud as one too large.
    tokens = jnp.where(inputs < 0, U_T.shape[0], inputs)
    return jnp.take(U_T, tokens, axis=0, mode="fill")


def columns(delta: Array) -> Array:
    """Lays every delta_t of a segment out as a column, [H, K, *batch], for the products that sum over t."""
    # Laid out anew once, and kept from being folded back into the products: XLA's on a CPU take up to twice as long
    # where they read a factor against the grain (K B = 3200, 4H = 512, H = 128, D = 64: dW and dU take 4.2 ms, and
    # with the copy 1.9 ms).
    return lax.optimization_barrier(jnp.moveaxis(delta, -1, 0))


def as_columns(e: Array) -> Array:
    """Returns every e_t as a column without laying it out anew, [V, K * B], or [V, K, *batch] with several devices."""
    # What is merged into one axis must be gathered first from all devices that a batch is spread over, and what is not
    # costs one device a copy (`JAX_NUM_CPU_DEVICES=2 python scripts/bench.py --shapes 3`: 1.0 MB in the place of 0.9).
    return jnp.moveaxis(e, -1, 0) if may_be_spread() else e.reshape(-1, e.shape[-1]).T


def sum_of_outer_products(delta_T: Array, inputs: Array, size: int) -> Array:
    """Computes sum_t delta_t x_t^T, [H, D], from columns [H, K, *batch], in float32 at least; `size` is D."""
    dtype = accumulation_dtype(delta_T.dtype)
    if is_integer(inputs) and size > ONE_HOT_TOKENS:
        return jnp.zeros((size, delta_T.shape[0]), dtype).at[inputs].add(jnp.moveaxis(delta_T, 0, -1).astype(dtype)).T
    if is_integer(inputs):
        inputs = jax.nn.one_hot(inputs, size, dtype=delta_T.dtype)
    inputs = inputs.reshape(*delta_T.shape[1:], size)
    steps = range(inputs.ndim - 1)
    contracted = ([1 + axis for axis in steps], list(steps))
    return lax.dot_general(delta_T, inputs, (contracted, ((), ())), preferred_element_type=dtype)


def sum_of(delta: Array) -> Array:
    """Computes sum_t delta_t, [H], from deltas [K, *batch, H], in float32 at least."""
    return delta.sum(range(delta.ndim - 1), dtype=accumulation_dtype(delta.dtype))


def affine_input_grads(U: Array, delta: Array) -> Array:
    """Computes dE/dx_t = U^T delta_t for every step at once: [..., D]."""
    return delta @ U


def diagonal_blocks(W: Array) -> Array:
    """Keeps the diagonal of each of the m blocks of W [m H, H] only, zero elsewhere."""
    H = W.shape[1]
    return jnp.where(jnp.tile(jnp.eye(H, dtype=bool), (W.shape[0] // H, 1)), W, 0)
