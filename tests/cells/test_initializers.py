"""Fresh recurrent matrices: their eigenvalues, and how many units each unit sees."""

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
