"""Fresh recurrent matrices: their eigenvalues, and how many units each unit sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY

import jaxrnn

pytestmark = pytest.mark.usefixtures("float64")


def fresh(kind, scale, size=50):
    cell = jaxrnn.Elman(3, size, recurrent_initializer=kind, recurrent_scale=scale)
    return np.asarray(cell.init(KEY, jnp.float64).W)


@pytest.mark.parametrize(("kind", "scale"), [("orthogonal", 0.9), ("identity", 0.5), ("normal", 1.3), ("sparse", 0.95)])
def test_they_have_the_spectral_radius(kind, scale):
    W = fresh(kind, scale)
    assert abs(np.abs(np.linalg.eigvals(W)).max() - scale) <= 1e-6
    assert (kind == "identity") == bool(np.all(scale * np.eye(50) == W))


@pytest.mark.parametrize("kind", ["orthogonal", "identity", "normal", "sparse"])
def test_narrow_ones_are_the_wide_ones_rounded(kind):
    cell = jaxrnn.Elman(3, 20, recurrent_initializer=kind)
    narrow, wide = (cell.init(KEY, dtype).W for dtype in (jnp.bfloat16, jnp.float32))
    assert narrow.dtype == jnp.bfloat16
    assert np.array_equal(narrow, wide.astype(jnp.bfloat16))


def test_a_sparse_matrix_has_so_many_entries_in_every_row():
    W = fresh("sparse", 0.95)
    assert np.all((W != 0).sum(1) == 15)
    assert len({tuple(np.flatnonzero(row)) for row in W}) == 50
    assert np.isfinite(fresh("sparse", 0.95, size=4)).all()


def test_an_unknown_one_is_told():
    with pytest.raises(ValueError, match="recurrent_initializer must be one of"):
        jaxrnn.Elman(3, 4, recurrent_initializer="eye")


def qr_operands(closed, found):
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name in ("geqrf", "qr", "householder_product"):
            found.append(equation.invars[0].aval.shape)
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda value: hasattr(value, "jaxpr")):
            if hasattr(inner, "jaxpr"):
                qr_operands(inner, found)
    return found


def test_networks_drawn_under_vmap_are_those_drawn_alone_and_factorize_one_matrix_at_a_time():
    net = jaxrnn.Network((jaxrnn.GRU(2, 3), jaxrnn.LSTM(3, 4)), jaxrnn.Readout(4, 1), jaxrnn.squared_error)
    keys = jax.random.split(KEY, 5)
    alone = [net.init(key) for key in keys]
    chex.assert_trees_all_close(jax.jit(jax.vmap(net.init))(keys), jax.tree.map(lambda *p: jnp.stack(p), *alone))
    shapes = qr_operands(jax.make_jaxpr(jax.vmap(net.init))(keys), [])
    assert len(shapes) >= 7  # three blocks of the GRU, four of the LSTM
    assert {len(shape) for shape in shapes} == {2}
