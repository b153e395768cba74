"""Segments: runs of K consecutive steps, the unit in which memory is spent. No result depends on K."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
from chex import ArrayTree
from jax import lax

from jaxrnn.arguments import check_positive
from jaxrnn.layer.machine import Limits


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


def segment_length(segment: int | str, steps: int, rows: int, step_bytes: int, limits: Limits) -> int:
    """Chooses K: what was asked for, or for "auto" the length whose working set fits in cache.

    Args:
        segment: an int >= 1, or "auto".
        steps: T.
        rows: B, the size of all batch axes together.
        step_bytes: what one step of the whole batch occupies in the reverse pass, in bytes.
        limits: of the machine, see `jaxrnn.layer.machine`.
    """
    check_segment(segment)
    if not isinstance(segment, str):
        return min(segment, steps)
    if steps * step_bytes <= limits.whole_bytes:
        return steps
    K = max(limits.cache_bytes // step_bytes, -(-limits.rows // max(rows, 1)), 1)
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
