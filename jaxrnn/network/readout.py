"""The readout: the affine map from the hidden state of the top layer to the outputs, with its adjoint."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from chex import Array

from jaxrnn.arguments import accumulation_dtype, check_float, check_key, check_positive
from jaxrnn.cells.affine import affine, affine_input_grads, as_columns, columns, sum_of, sum_of_outer_products
from jaxrnn.printing import as_text, expression


class ReadoutParams(NamedTuple):
    """Holds the parameters of a readout."""

    V: Array  # [V, H]
    c: Array | None  # [V]

    def __repr__(self) -> str:
        return as_text(self)


@dataclasses.dataclass(frozen=True, repr=False)
class Readout:
    """Maps the hidden state of the top layer to the outputs, by an affine map.

        O_t = V s_t + c        e_t := dE/dO_t
        g_t = V^T e_t          dE/dV = sum_t e_t s_t^T        dE/dc = sum_t e_t

    dE/dV is a sum of outer products, not of products: with a softmax, e_t = yhat_t - y_t is a vector over the outputs.

    Args:
        hidden: H.
        outputs: V.
        bias: whether there is a c.

    Raises:
        ValueError: a size below 1.
        TypeError: a size that is not an int.

    >>> import jax, jaxrnn
    >>> jaxrnn.Readout(hidden=5, outputs=3).init(jax.random.key(0)).V.shape
    (3, 5)
    """

    hidden: int
    outputs: int
    bias: bool = True

    def __post_init__(self) -> None:
        check_positive("hidden", self.hidden)
        check_positive("outputs", self.outputs)

    def __repr__(self) -> str:
        return expression(self)

    def init(self, key: chex.PRNGKey, dtype: chex.ArrayDType = jnp.float32) -> ReadoutParams:
        """Draws initial parameters: V [V, H] with variance 1/H, c [V] at zero."""
        check_key(key)
        check_float("dtype", dtype)
        V = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)(key, (self.outputs, self.hidden), dtype)
        return ReadoutParams(V, jnp.zeros(self.outputs, dtype) if self.bias else None)

    def apply(self, params: ReadoutParams, hidden: Array) -> Array:
        """Computes O_t = V s_t + c [..., V] of hidden states [..., H], in at least the float32 that objectives need."""
        dtype = accumulation_dtype(hidden.dtype)
        return affine(params.V.T, params.c, hidden, dtype)

    def adjoint(self, params: ReadoutParams, hidden: Array, e: Array) -> tuple[Array, ReadoutParams]:
        """Computes g_t = V^T e_t [..., H], and dE/dV, dE/dc summed over all steps of e [..., V]."""
        e = e.astype(hidden.dtype)
        if self.outputs > 4 * self.hidden:  # the smaller factor of the product is the one that is laid out anew
            dV = sum_of_outer_products(columns(hidden), e, self.outputs).T
        else:
            e_T = as_columns(e)
            dV = sum_of_outer_products(e_T, hidden, self.hidden)
        return affine_input_grads(params.V, e), ReadoutParams(dV, sum_of(e) if self.bias else None)
