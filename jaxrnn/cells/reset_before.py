"""The GRU with the reset before the product, and its adjoint by hand: what `jaxrnn.GRU(..., reset="before")` computes.

    r_t = sigmoid(W_r s_{t-1} + U_r x_t + b_r)           u_t = r_t * s_{t-1}
    z_t = sigmoid(W_z s_{t-1} + U_z x_t + b_z)           n_t = tanh(U_n x_t + b_n + W_n u_t)
    s_t = (1 - z_t) * n_t + z_t * s_{t-1}

With a_t = dE/ds_t, and deltas before each gate's function:

    delta^n_t  = a_t * (1 - z_t) * (1 - n_t^2)           v_t = W_n^T delta^n_t, which is dE/du_t
    delta^r_t  = v_t * s_{t-1} * r_t * (1 - r_t)         delta^z_t = a_t * (s_{t-1} - n_t) * z_t * (1 - z_t)
    dE/ds_{t-1} = a_t * z_t + v_t * r_t + W_r^T delta^r_t + W_z^T delta^z_t
    dE/dW_n = sum_t delta^n_t u_t^T                      dE/dW_r = sum_t delta^r_t s_{t-1}^T, and so dE/dW_z
    dE/dU = sum_t (delta^r, delta^z, delta^n)_t x_t^T    dE/db = sum_t (delta^r, delta^z, delta^n)_t

Each way has two products, and the second waits for the first. Recurrent dropout puts a mask times s_{t-1} into the
three products, and into u_t with them; the s_{t-1} that z_t holds is whole.

Source: Cho et al. (2014), "Learning phrase representations using RNN encoder-decoder", equations 5 to 8.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from chex import Array

from jaxrnn.cells.affine import diagonal_blocks
from jaxrnn.cells.base import Local, StepResiduals
from jaxrnn.cells.dropout import scale


class Operands(NamedTuple):
    """Holds the parameters as the loops multiply by them, those of the two products of a step apart."""

    # Measured, alternating, on 2 cores with AVX-512 (T,B,D,H,V = 100,32,64,128,65 and 128,64,128,256,128): one W
    # [3H, H], of which every step takes its parts, makes loss and gradient 1.07 and 1.15 times as long. No faster: to
    # take delta^r and delta^z back by a product each, that of z beside W_n^T delta^n (1.01 and 1.00), r and z apart
    # (1.02 and 1.01), `projected` in two arrays (1.03 and 1.02). `scripts/bench.py --cell gru-before`: 8.0 and 83 ms;
    # jax.grad of the best plain scan 12.0 and 102; with the reset after the product, `--cell gru`, 9.2 and 84 ms.
    U_T: Array  # [D, 3H]
    W_rz_T: Array  # [H, 2H]
    W_rz: Array  # [2H, H]
    W_n_T: Array  # [H, H]
    W_n: Array  # [H, H]
    b: Array | None  # [3H]
    dropout_mask: Array | None = None  # [*batch, H], 0 or 1/(1 - rate), times s_{t-1}


def prepare(U: Array, W: Array, b: Array | None) -> Operands:
    """Lays U^T and the parts of W out once, either way round."""
    W_rz, W_n = jnp.split(W, [2 * W.shape[1]])
    return Operands(U.T, W_rz.T, W_rz, W_n.T, W_n, b)


def own_operands(operands: Operands, weight: float) -> Operands:
    """Keeps of W_r, W_z and W_n the diagonals only, times a number.

    What is left of ds_t/ds_{t-1} is a unit's way to itself through its own gates and n_t; a way from it through r_t of
    another unit and back by W_n, of which the whole has some, is no longer there.
    """
    W_rz, W_n = (weight * diagonal_blocks(W) for W in (operands.W_rz, operands.W_n))
    return operands._replace(W_rz_T=W_rz.T, W_rz=W_rz, W_n_T=W_n.T, W_n=W_n)


def step(operands: Operands, state: Array, projected: Array) -> tuple[Array, StepResiduals]:
    """Computes s_t, and hands on the gates (r_t, z_t) and n_t."""
    H = state.shape[-1]
    seen = scale(state, operands.dropout_mask)
    # sigmoid(z) = (1 + tanh(z/2)) / 2, as in `jaxrnn.cells.gru`
    gates = 0.5 * jnp.tanh(0.5 * (seen @ operands.W_rz_T + projected[..., : 2 * H])) + 0.5
    r, z = gates[..., :H], gates[..., H:]
    n = jnp.tanh((r * seen) @ operands.W_n_T + projected[..., 2 * H :])
    return n + z * (state - n), (gates, n)


def linearize(operands: Operands, previous: Array, residuals: StepResiduals) -> Local:
    """Computes z_t, r_t, and the factors of delta^n [K, *batch, H] each, and of delta^r and delta^z together."""
    gates, n = residuals
    r, z = jnp.split(gates, 2, -1)
    factors = [scale(previous, operands.dropout_mask) * r * (1 - r), (previous - n) * z * (1 - z)]
    return z, r, (1 - z) * (1 - n * n), jnp.concatenate(factors, -1)


def step_adjoint(operands: Operands, adjoint: Array, local: Local) -> tuple[Array, tuple[Array, Array]]:
    """Computes dE/ds_{t-1}, and (delta^r, delta^z) [*batch, 2H] and delta^n [*batch, H]."""
    z, r, through_n, factors = local
    delta_n = adjoint * through_n
    v = delta_n @ operands.W_n
    delta = jnp.concatenate([v, adjoint], -1) * factors
    through_products = v * r + delta @ operands.W_rz
    return adjoint * z + scale(through_products, operands.dropout_mask), (delta, delta_n)


def reset_states(previous: Array, local: Local) -> Array:
    """Computes u_t = r_t * s_{t-1}, [K, *batch, H]."""
    return local[1] * previous


def recurrent_factors(deltas: tuple[Array, Array], previous: tuple[Array, Array]) -> tuple[Array, Array]:
    """Pairs (delta^r, delta^z, 0) with s_{t-1}, and (0, 0, delta^n) with u_t: [2, K, *batch, 3H] and [2, K, *batch, H].

    The sum of the outer products over all of them is dE/dW.
    """
    delta, delta_n = deltas
    of_states = jnp.concatenate([delta, jnp.zeros_like(delta_n)], -1)
    of_reset_states = jnp.concatenate([jnp.zeros_like(delta), delta_n], -1)
    return jnp.stack([of_states, of_reset_states]), jnp.stack(previous)
