"""The lengths of segments: what needs the least memory, tried one by one; what is kept of them."""

import jax
import jax.numpy as jnp
import pytest
from programs import OPTIMISED

import jaxrnn
from jaxrnn.layer.machine import Limits
from jaxrnn.layer.segments import balanced_lengths, nearby_divisor, segment_length


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_balanced_lengths_need_the_least(levels):
    """No other lengths of as many levels need a tenth less."""
    steps, state, step = 720, 3, 8

    def needed(lengths):
        edges = sum(-(-above // length) for above, length in zip((steps, *lengths[:-1]), lengths, strict=True))
        return edges * state + lengths[-1] * step

    def all_lengths(above, levels):
        if levels == 0:
            return [()]
        return [(K, *rest) for K in range(1, above + 1) if above % K == 0 for rest in all_lengths(K, levels - 1)]

    least = min(map(needed, all_lengths(steps, levels)))
    assert needed(balanced_lengths(steps, state, step, levels)) <= 1.1 * least


@pytest.mark.parametrize(("steps", "K", "expected"), [(12, 5, 4), (12, 12, 12), (13, 7, 7), (100, 30, 25)])
def test_a_divisor_is_taken_where_one_is_near(steps, K, expected):
    assert nearby_divisor(steps, K) == expected


def test_a_segment_asked_for_is_cut_to_the_sequence_and_auto_leaves_a_short_one_whole():
    limits = Limits(whole_bytes=24 * 2**20, cache_bytes=8 * 2**20, rows=256)
    assert segment_length(5, 3, 1, 8, limits) == 3
    assert segment_length(2, 3, 1, 8, limits) == 2
    assert segment_length("auto", 1000, 1, 8, limits) == 1000
    assert segment_length("auto", 1000, 1, 8, limits.always_cut) == 1000
    assert segment_length("auto", 1000, 1000, 2**20, limits) == 8  # 8 MB, what stays in cache
    assert segment_length("auto", 24, 1000, 2**20, limits) == 24
    assert segment_length("auto", 24, 1000, 2**20, limits.always_cut) == 8
    assert segment_length("auto", 24, 1000, 2**20, limits.of_a_layer) == 4
    assert segment_length("auto", 1024, 4, 2**20, limits) == 64  # 256 rows


def test_hidden_states_that_are_kept_and_handed_out_are_held_once():
    """Held twice, they would need a whole [T, B, H] more."""
    T, B, D, H, V = 128, 64, 128, 256, 128
    cell = jaxrnn.Elman(D, H)

    def loss(params, V, inputs):
        return jax.nn.logsumexp(jaxrnn.unroll(cell, params, inputs)[0] @ V, -1).sum()

    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((H, V), (T, B, D)))
    lowered = jax.jit(jax.grad(loss, (0, 1))).lower(jax.eval_shape(cell.init, jax.random.key(0)), *shapes)
    found = lowered.compile(compiler_options=OPTIMISED).memory_analysis().temp_size_in_bytes
    assert found < 3.2 * (T * B * H * 4)
