"""The diagnosis in words, and its pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from jaxrnn import flow
from jaxrnn.flow import plots
from jaxrnn.flow.diagnosis import diagnose, lag_profile

T, B = 60, 4


def found(cell, scale=1.0, dropout=0.0, **options):
    readout = jaxrnn.Readout(cell.hidden, 5)
    net = jaxrnn.Network((cell,), readout, jaxrnn.softmax_cross_entropy, recurrent_dropout=dropout)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = scale * jax.random.normal(keys[0], (T, B, cell.inputs))
    targets = jax.random.randint(keys[1], (T, B), 0, 5)
    return net, diagnose(net, net.init(keys[2]), inputs, targets, key=keys[3], **options)


@pytest.fixture(scope="module")
def vanishing():
    return found(jaxrnn.Elman(4, 12, recurrent_scale=0.5), 1e-3)[1]


def test_vanishing(vanishing):
    assert vanishing.verdict == "vanishing"
    assert float(vanishing.one_percent.mean) == 7  # 0.5^7 < 0.01 < 0.5^6
    assert np.isclose(vanishing.lyapunov.exponents[0], np.log(0.5), atol=1e-3)
    words = str(vanishing)
    assert "The gradient VANISHES: of 60 steps it reaches back 7.0 +- 0.0 steps." in words
    assert "multiplies it by 0.500" in words
    assert "are forgotten" in words
    assert "recurrent_scale=1" in words
    assert "jaxrnn.Window(7)" in words


def test_dropout_is_left_out(vanishing):
    d = found(jaxrnn.Elman(4, 12, recurrent_scale=0.5), 1e-3, dropout=0.5)[1]
    assert np.array_equal(d.adjoints, vanishing.adjoints)


def test_healthy():
    d = found(jaxrnn.Elman(4, 12), 1e-3)[1]
    assert d.verdict == "healthy"
    assert "reaches back 45.5 +- 8.7 steps or more" in str(d)  # all of the history that losses from T/2 on have
    assert np.allclose(d.profile, 1, atol=1e-2)
    assert "What is not learned is not lost on the way back." in str(d)


def test_healthy_within_the_steps_looked_at():
    d = found(jaxrnn.Elman(4, 12, recurrent_scale=0.8), 1e-3)[1]
    assert d.verdict == "healthy"
    assert float(d.one_percent.mean) == 21  # 0.8^21 < 0.01 < 0.8^20
    words = str(d)
    assert "nothing, if 21 steps are enough" in words
    assert "60 here: look again with more (--steps)" in words
    assert "not lost" not in words


def test_exploding():
    d = found(jaxrnn.Elman(4, 40, recurrent_initializer="normal", recurrent_scale=3.0, input_scale=0.1))[1]
    assert d.verdict == "exploding"
    assert d.lyapunov.exponents[0] > 0
    assert "chaotic" in str(d)
    assert "clip" in str(d)


def test_saturated():
    d = found(jaxrnn.Elman(4, 12, input_scale=100.0))[1]
    assert d.saturation[0].units > 0.5
    assert "saturated units pass nothing" in str(d)


def test_gated_with_masks_and_resets():
    reset = jnp.zeros((T, B), bool).at[50].set(True)
    mask = jaxrnn.lengths_to_mask(jnp.array([60, 40, 55, 60]), T)
    _, d = found(jaxrnn.LSTM(4, 8), mask=mask, reset=reset)
    assert np.all(d.adjoints[55:, :50] == 0)
    assert "forget gate" in str(d)
    assert d.singular_values.shape == (T + 1, 16)
    assert np.all(d.singular_values[20:] == 0)


def test_padding_has_no_part_in_the_exponents():
    """Whatever stands in it; a sequence padded after every fifth step is the one without the padding."""
    cell = jaxrnn.GRU(4, 8)
    net = jaxrnn.Network((cell,), jaxrnn.Readout(8, 5), jaxrnn.softmax_cross_entropy)
    params, inputs = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (T, B, 4))
    exponents = lambda inputs, **options: flow.lyapunov_exponents(net, params, inputs, **options)
    plain, every_sixth = exponents(inputs), np.arange(72) % 6 == 5
    padded = jnp.zeros((72, B, 4)).at[~every_sixth].set(inputs).at[every_sixth].set(jnp.nan)
    mask = jnp.broadcast_to(~every_sixth[:, None], (72, B))
    held = exponents(padded, mask=mask, skip=12)
    assert np.allclose(held.exponents, exponents(inputs, skip=10).exponents, atol=1e-5)

    ended = jaxrnn.lengths_to_mask(jnp.array([T, 40, 50, T]), T)
    targets = jnp.zeros((T, B), int)
    first, second = (
        diagnose(net, params, jnp.where(ended[..., None], inputs, x), targets, key=jax.random.key(3), mask=ended)
        for x in (jnp.nan, 7.0)
    )
    assert np.array_equal(first.lyapunov.exponents, second.lyapunov.exponents)
    assert abs(first.lyapunov.exponents[0] - plain.exponents[0]) < 0.02
    assert "are forgotten" in str(first)


def test_exponents_of_no_real_steps_are_not_known(vanishing):
    """Of sequences that end while states still settle; -inf is known."""
    net = jaxrnn.Network((jaxrnn.Elman(4, 6),), jaxrnn.Readout(6, 5), jaxrnn.softmax_cross_entropy)
    mask = jaxrnn.lengths_to_mask(jnp.array([5, 6]), T)
    found = flow.lyapunov_exponents(net, net.init(jax.random.key(0)), jnp.ones((T, 2, 4)), mask=mask)
    assert np.isnan(found.exponents).all()
    words = str(vanishing._replace(lyapunov=found))
    assert "largest exponent not known" in words
    assert "forgotten" not in words
    gone = flow.Lyapunov(np.array([-np.inf]), np.array([np.nan]))
    assert "exponent -inf per step: small changes of the state are gone" in str(vanishing._replace(lyapunov=gone))


def test_the_profile_is_the_mean_over_t():
    steps = np.arange(30)
    norms = np.where(steps <= steps[:, None], 0.9 ** (steps[:, None] - steps), 0.0) * (1 + steps[:, None])
    assert np.allclose(lag_profile(norms), 0.9**steps)
    assert np.allclose(lag_profile(norms[-1:]), 0.9**steps)
    assert np.isnan(lag_profile(np.eye(5))[1:]).all()


def lines(figure, index=0):
    return {line.get_label(): line.get_xydata() for line in figure.axes[index].lines}


def test_the_pictures_show_their_data(vanishing):
    """The figures hold the numbers, and every axis says what it is."""
    d = vanishing
    page = plots.gradient_flow(d, "A network")
    for axes in page.axes[:5]:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()
    image = page.axes[0].images[0].get_array()
    assert np.allclose(image[40, 35:41], np.log10(d.terms[40, 35:41]), rtol=1e-5)
    assert image.mask[3, 4] or np.isnan(image[3, 4])
    assert np.allclose(lines(page, 1)["_child0"][:, 1], d.profile, equal_nan=True)
    assert np.allclose(lines(page, 2)["|delta_t|"][:, 1], d.flow[0].delta)
    assert np.allclose(lines(page, 2)["|dE/ds_t|"][:, 1], d.flow[0].adjoint)
    assert np.allclose(lines(page, 3)["largest"][:, 1], d.singular_values[:, 0])
    assert page.get_suptitle() == "A network: vanishing"
    assert page.axes[5].texts[0].get_text() == str(d)

    alone = plots.terms(d.terms)
    assert np.allclose(lines(alone, 1)["_child0"][:, 1], lag_profile(d.terms), equal_nan=True)
    spectrum = plots.jacobian_spectrum(d.singular_values)
    assert np.allclose(lines(spectrum)["largest"][:, 1], d.singular_values[:, 0])
    assert np.allclose(lines(plots.delta_norms(d.flow))["|delta_t|"][:, 1], d.flow[0].delta)
    exponents = plots.lyapunov_spectrum(np.array([0.1, -0.2]), np.array([0.01, 0.02]))
    assert any(
        np.allclose(line.get_ydata(), [0.1, -0.2]) for line in exponents.axes[0].lines if len(line.get_xdata()) == 2
    )
