"""The picture of the recursion: its widths are the norms, and every label is there, on no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
import jaxrnn.flow
from jaxrnn.flow.recursion import number, recursion


def norms(cell, T=5):
    net = jaxrnn.Network((cell,), jaxrnn.Readout(cell.hidden, 3), jaxrnn.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs, targets = jax.random.normal(keys[0], (T, 2, cell.inputs)), jax.random.randint(keys[1], (T, 2), 0, 3)
    found = jaxrnn.flow.terms(net, net.init(keys[2]), inputs, targets, state=cell_state(net))
    return np.asarray(found.adjoints[0]), np.asarray(found.weights[0].W)


def cell_state(net):
    return jax.tree.map(lambda leaf: leaf + 0.5, net.initial_state((2,), jnp.float32))


def widths(figure):
    """Returns the width of every arrow by its name."""
    return {arrow.get_gid(): arrow.get_arrowstyle().tail_width for arrow in figure.axes[0].patches if arrow.get_gid()}


def labels(figure):
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("kind", [jaxrnn.Elman, jaxrnn.GRU, jaxrnn.LSTM])
def test_arrows_are_as_thick_as_the_norms(kind):
    adjoints, terms = norms(kind(2, 4))
    found = widths(recursion(adjoints, terms, t=4, k=2))
    legend = found.pop("legend")
    expected = {"dE_4/ds_4": adjoints[3, 3], "dE/ds_3": adjoints[3, 2], "dE/ds_2": adjoints[3, 1]}
    expected |= {f"term {j}": terms[3, j - 1] for j in (1, 2, 3, 4)}
    assert found.keys() == expected.keys()
    one = legend / 10.0 ** np.floor(np.log10(max(expected.values())))  # points of a norm of one
    for name, norm in expected.items():
        assert np.isclose(found[name], one * norm, rtol=1e-6), name


def test_every_label_is_there():
    adjoints, terms = norms(jaxrnn.Elman(2, 4), T=4)
    found = labels(recursion(adjoints, terms, t=3, k=1, errors=(2.0, 0.5)))
    for letter in ("x", "s", "O", r"\hat y", "E"):
        assert {f"${letter}_{j}$" for j in (1, 2, 3, 4)} <= set(found)
    assert (found.count("$W$"), found.count("$U$"), found.count("$V$")) == (4, 4, 4)
    pairs = [("E_3", r"\hat y_3"), (r"\hat y_3", "O_3"), ("O_3", "s_3"), ("s_3", "s_2"), ("s_2", "s_1")]
    factors = [rf"$\dfrac{{\partial {above}}}{{\partial {below}}}$" for above, below in pairs]
    assert [label for label in found if label in factors] == factors
    assert found.count(r"$\dfrac{\partial^{+} s_1}{\partial W}$") == 1
    carried = [2.0, 0.5, *adjoints[2, [2, 1, 0]], *terms[2, :3]]
    assert {number(float(norm)) for norm in carried} <= set(found)


def test_no_label_lies_on_another():
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    adjoints, terms = norms(jaxrnn.Elman(2, 4), T=4)
    for t, k in [(1, 1), (3, 1), (4, 4), (4, 1)]:
        figure = recursion(adjoints, terms, t, k, errors=(2.0, 0.5))
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [
            (text.get_text(), text.get_window_extent(renderer)) for text in figure.axes[0].texts if text.get_text()
        ]
        for i, (label, box) in enumerate(boxes):
            assert 0 <= box.x0 < box.x1 <= figure.bbox.x1, label
            assert not [other for other, around in boxes[i + 1 :] if box.overlaps(around)], label


def test_an_own_step_has_no_way_back():
    adjoints, terms = norms(jaxrnn.Elman(2, 4), T=1)
    assert widths(recursion(adjoints, terms, t=1, k=1)).keys() == {"dE_1/ds_1", "term 1", "legend"}


def test_what_carries_nothing_has_no_arrow():
    found = widths(recursion(np.eye(3), np.eye(3), t=3, k=1))
    assert found.keys() == {"dE_3/ds_3", "term 3", "legend"}


@pytest.mark.parametrize(
    ("shapes", "t", "k", "message"),
    [
        (((3, 3), (3, 3)), 0, 1, "t must lie in 1 .. T = 3, got 0: steps are counted from 1"),
        (((3, 3), (3, 3)), 4, 1, "t must lie in 1 .. T = 3, got 4"),
        (((3, 3), (3, 3)), 2, 3, "k must lie in 1 .. t = 2, got 3: no loss blames a later step"),
        (((3, 3), (4, 4)), 2, 1, r"must be \[T, T\], both, got \(3, 3\) and \(4, 4\)"),
        (((1, 3), (1, 3)), 1, 1, r"must be \[T, T\]"),
        (((9, 9), (9, 9)), 2, 1, "room for 1 to 8 steps, got 9: take the terms of a shorter sequence"),
    ],
)
def test_wrong_arguments(shapes, t, k, message):
    with pytest.raises(ValueError, match=message):
        recursion(np.zeros(shapes[0]), np.zeros(shapes[1]), t, k)
