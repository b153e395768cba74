"""A guard: forward-mode differentiation of a rule that has none fails with an error that says what to do instead.

JAX differentiates a `custom_vjp` function in forward mode up to the point where it would need the tangent of the
result, and then raises an error that knows nothing of the caller. The identity below goes on the way in: its tangent is
an operation that can be transposed, which is all that reverse mode asks of it, but neither run nor compiled.
"""

from __future__ import annotations

from typing import NoReturn

import jax
from chex import ArrayTree
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

MESSAGE = (
    "forward-mode differentiation (jax.jvp, jax.jacfwd, jax.linearize, jax.hessian) of the reverse scan written by "
    'hand: it defines reverse mode only. Ask for the plain scan with gradient="autodiff".'
)


def reverse_mode_only(tree: ArrayTree) -> ArrayTree:
    """Returns the pytree itself, whose derivative in forward mode is a TypeError."""
    return jax.tree.map(_guard.bind, tree)


def _raise(*_: object, **__: object) -> NoReturn:
    raise TypeError(MESSAGE)


_guard = Primitive("reverse_mode_only")
_guard.def_impl(lambda x: x)
_guard.def_abstract_eval(lambda x: x)
mlir.register_lowering(_guard, lambda _, x: [x])
batching.defvectorized(_guard)

_tangent = Primitive("tangent_of_reverse_mode_only")
_tangent.def_impl(_raise)
_tangent.def_abstract_eval(lambda x: x)
mlir.register_lowering(_tangent, _raise)
# Reverse mode transposes a tangent before anything is vmapped: only forward mode ever comes here.
batching.primitive_batchers[_tangent] = _raise

ad.deflinear2(_tangent, lambda cotangent, _: [cotangent])
ad.defjvp(_guard, lambda tangent, _: _tangent.bind(tangent))
