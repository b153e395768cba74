"""Two loops over the same cell of another library compared: outputs, last states, and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import relative_error

B, T, D, H = 2, 5, 3, 4
LENGTHS = jnp.array([3, 5])


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def with_gradients(run):
    """Returns a function of arguments that gives what `run` does, and the gradient of all of that to all arguments."""

    def loss(arguments):
        results = run(*arguments)
        waves = [jnp.sin(3 * leaf + i).sum() for i, leaf in enumerate(jax.tree.leaves(results))]
        return sum(waves), results

    compute = jax.jit(jax.grad(loss, has_aux=True))
    return lambda *arguments: compute(arguments)


def assert_alike(ours, theirs, *arguments, tolerance=1e-12):
    """Raises unless two functions have the same results and gradients, in structure too."""
    found, truth = with_gradients(ours)(*arguments), with_gradients(theirs)(*arguments)
    assert jax.tree.structure(found) == jax.tree.structure(truth)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(truth)]
    assert relative_error(found, truth) <= tolerance
