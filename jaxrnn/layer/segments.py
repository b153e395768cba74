"""Segments: runs of K consecutive steps, the unit in which memory is spent. No result depends on K."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
from chex import ArrayTree
from jax import lax

from jaxrnn.arguments import check_positive


class Segments(NamedTuple):
    """Holds a pytree over T steps that was cut: n whole segments of K steps, and the rest."""

    whole: ArrayTree  # [n, K, ...], or None where there is at most one segment
    rest: ArrayTree  # [T - n K, ...], or None where there is none


def split(tree: ArrayTree, steps: int, K: int) -> Segments:
    """Cuts a pytree of [T, ...] into segments of K; a single segment is all rest, with no loop over segments."""
    chex.assert_tree_shape_prefix(tree, (steps,))
    if steps <= K:
        return Segments(None, tree)
    count, rest = divmod(steps, K)
    whole = jax.tree.map(lambda x: x[: count * K].reshape(count, K, *x.shape[1:]), tree)
    return Segments(whole, jax.tree.map(lambda x: x[count * K :], tree) if rest else None)


def join(segments: Segments) -> ArrayTree:
    """Undoes `split`."""
    if segments.whole is None:
        return segments.rest
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), segments.whole)
    if segments.rest is None:
        return whole
    return jax.tree.map(lambda x, y: lax.concatenate([x, y], 0), whole, segments.rest)


def each(function: Callable[..., ArrayTree], *segments: Segments) -> Segments:
    """Applies a function to the whole segments, and to the rest, as far as there are any."""
    return Segments(*(None if parts[0] is None else function(*parts) for parts in zip(*segments, strict=True)))


def scan_segments(
    body: Callable[[ArrayTree, ArrayTree], tuple[ArrayTree, ArrayTree]],
    carry: ArrayTree,
    xs: Segments,
    reverse: bool = False,
) -> tuple[ArrayTree, Segments]:
    """Runs `lax.scan` with a segment in the place of a step: `body(carry, x) -> (carry, y)`, in either direction."""
    whole = rest = None
    if reverse and xs.rest is not None:
        carry, rest = body(carry, xs.rest)
    if xs.whole is not None:
        carry, whole = lax.scan(body, carry, xs.whole, reverse=reverse)
    if not reverse and xs.rest is not None:
        carry, rest = body(carry, xs.rest)
    return carry, Segments(whole, rest)


# Measured on 2 cores with 1 MB of L2 each and 32 MB of L3, float32. A segment is fastest while what its reverse pass
# touches stays near (T,B,D,H,V = 128,64,128,512,128, 96 MB as a whole: K = 128, 32, 8 take 88, 74, 61 ms); a sequence
# that fits in L3 gains nothing from being cut (64,32,65,512,65, 22 MB: K = 64, 16, 4 take 13.6, 14.4, 18.3 ms).
# On Linux, glibc besides maps blocks of 32 MB and more anew at every call.
CACHE_BYTES = 8 * 2**20
WHOLE_BYTES = 24 * 2**20
# What `unroll` is cut to: it keeps what the forward pass leaves of all steps anyway, and who calls it has arrays of
# that size in cache too. Loss and gradient through `jaxrnn.interop.flax.RNN`, cut to this and as above (python
# scripts/bench_flax.py, T,B,D,H,V = 100,32,64,128,65, batch first): SimpleCell 6.4 and 7.1 ms, 7.6 and 10.7 MB;
# GRUCell 19.2 and 19.3 ms, 14.4 and 16.9 MB; LSTMCell 24.0 and 21.9 ms, 16.6 and 18.5 MB (a busy machine, in turns).
LAYER_BYTES = 4 * 2**20
# Below this many rows (K B) a segment's weight products spend more on reading and writing gradients than on arithmetic.
ROWS = 256


def segment_length(
    segment: int | str,
    steps: int,
    rows: int,
    step_bytes: int,
    whole_bytes: int = WHOLE_BYTES,
    cache_bytes: int = CACHE_BYTES,
) -> int:
    """Chooses K: what was asked for, or for "auto" the length whose working set fits in cache.

    Args:
        segment: an int >= 1, or "auto".
        steps: T.
        rows: B, the size of all batch axes together.
        step_bytes: what one step of the whole batch occupies in the reverse pass, in bytes.
        whole_bytes: up to where a sequence is left in one piece.
        cache_bytes: what a segment is to occupy.
    """
    check_segment(segment)
    if not isinstance(segment, str):
        return min(segment, steps)
    if steps * step_bytes <= whole_bytes:
        return steps
    K = max(cache_bytes // step_bytes, -(-ROWS // max(rows, 1)), 1)
    return nearby_divisor(steps, min(K, steps))


def check_segment(segment: int | str) -> None:
    """Raises unless it is "auto" or a positive int."""
    if not isinstance(segment, str):
        check_positive("segment", segment)
    elif segment != "auto":
        raise ValueError(f'segment must be an int or "auto", got {segment!r}')


def balanced_lengths(steps: int, state_bytes: int, step_bytes: int, levels: int = 1) -> tuple[int, ...]:
    """Computes the lengths, outermost first, that need the least memory where only segments' first states are kept.

    One level keeps T/K states beside the K steps of a segment: least at K = sqrt(T state / step). With two, segments
    are cut in turn when their time comes, and each costs the cube root; and so on, a forward pass for every level.
    Source: Chen et al. (2016), "Training deep nets with sublinear memory cost", section 4.
    """
    parts = (steps * step_bytes / state_bytes) ** (1 / (levels + 1))  # of a level, and K step / state of the innermost
    lengths = [nearby_divisor(steps, min(steps, max(1, round(parts * state_bytes / step_bytes))))]
    for _ in range(levels - 1):
        inside = lengths[0]
        count = -(-steps // inside)
        lengths.insert(0, inside * nearby_divisor(count, min(count, max(1, round(parts)))))
    return tuple(lengths)


def nearby_divisor(steps: int, K: int) -> int:
    """Finds the largest divisor of T in K/2 .. K, so that no remainder is compiled as a loop of its own; or else K."""
    return next((k for k in range(K, K // 2, -1) if steps % k == 0), K)
