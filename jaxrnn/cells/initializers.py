"""Initial recurrent matrices, including those that `jax.nn.initializers` lacks."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from chex import Array
from jax import lax

from jaxrnn.arguments import check_choice

RECURRENT = ("orthogonal", "identity", "normal", "sparse")
CONNECTIONS = 15  # of every unit of a sparse W
SQUARINGS = 30


def recurrent(kind: str, scale: float, key: chex.PRNGKey, size: int, dtype: chex.ArrayDType) -> Array:
    """Draws an initial W [H, H] of spectral radius `scale`: the largest modulus of its eigenvalues.

    "orthogonal": every eigenvalue has that modulus, so no direction of the state shrinks or grows faster than another.
    "identity": `scale` times the identity, for relu units (Le, Jaitly & Hinton 2015, "A simple way to initialize
        recurrent networks of rectified linear units").
    "normal": independent normal entries, rescaled to the spectral radius `scale`, as in echo state networks (Jaeger
        2001, "The echo state approach to analysing and training recurrent neural networks").
    "sparse": every unit reads 15 others, drawn at random, with normal weights, rescaled likewise; with the radius 0.95
        the "smart tanh" network of Pascanu, Mikolov & Bengio (2013), "On the difficulty of training recurrent neural
        networks", section 4.1, after Sutskever, Martens & Hinton (2011).
    """
    check_choice("kind", kind, RECURRENT)
    if kind == "identity":
        return scale * jnp.eye(size, dtype=dtype)
    single = jnp.promote_types(dtype, jnp.float32)  # in bfloat16 there are no decompositions, and norms are coarse
    if kind == "orthogonal":
        return _orthogonal(scale, size, single, key).astype(dtype)
    W = jax.random.normal(key, (size, size), single)
    if kind == "sparse":
        places = jax.random.uniform(jax.random.fold_in(key, 1), (size, size))
        W = jnp.where(jnp.argsort(jnp.argsort(places, axis=1), axis=1) < CONNECTIONS, W, 0)
    return (scale / spectral_radius(W) * W).astype(dtype)


def _orthogonal(scale: float, size: int, dtype: chex.ArrayDType, key: chex.PRNGKey) -> Array:
    # Under vmap, one after the other: on a CPU with jaxlib 0.10, two batched QR factorizations at a time wait for each
    # other in XLA's pool of threads, and a vmap of `init` over two layers never ended on two cores.
    draw = jax.nn.initializers.orthogonal(scale)
    return jax.custom_batching.sequential_vmap(lambda key: draw(key, (size, size), dtype))(key)


def spectral_radius(W: Array) -> Array:
    """Returns the largest modulus of an eigenvalue of W [H, H].

        rho(W) = lim ||W^k||^(1/k),  k = 2^SQUARINGS, by repeated squaring

    It needs products only: not every accelerator can compute the eigenvalues of a matrix that is not symmetric.

    Source: Gelfand's formula.

    >>> import jax.numpy as jnp, jaxrnn.cells.initializers
    >>> W = jnp.array([[0.0, 2.0], [-0.5, 0.0]])  # eigenvalues +-i
    >>> round(float(jaxrnn.cells.initializers.spectral_radius(W)), 5)
    1.0
    """

    def square(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        A, log_radius = carry  # A is W^(2^j), divided by its norm
        A = jnp.matmul(A, A, precision=lax.Precision.HIGHEST)
        norm = jnp.linalg.norm(A)
        return A / norm, log_radius + jnp.log(norm) * 0.5 ** (j + 1)

    norm = jnp.linalg.norm(W)
    return jnp.exp(lax.fori_loop(0, SQUARINGS, square, (W / norm, jnp.log(norm)))[1])
