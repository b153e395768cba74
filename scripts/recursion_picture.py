"""The picture of `bptt_by_hand.py --picture`: the way of one term through the graph, and the three sums beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jaxrnn.flow import Terms
from jaxrnn.flow.plots import ORANGE
from jaxrnn.flow.recursion import INK, QUIET, SOFT, draw_recursion, number, size_of, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray
Sums = tuple[list[float], list[float], list[float]]  # norms of the terms of ds_t/dW, ds_t/dU and dE/dV
SIDE, LONGEST = 3.65, 2.1  # inches: the width of the sums, and of their longest bar
HEADING, LINE = 0.92, 0.26  # inches: the height of a formula, and of a bar with its number


def sums(W: Array, x: Array, s: list[Array], e: list[Array], t: int) -> Sums:
    """Computes the norms of all terms of the three sums.

        ds_t/dW = sum_k ds_t/ds_k d+ s_k/dW        ds_t/dU = sum_k ds_t/ds_k d+ s_k/dU        dE/dV = sum_t dE_t/dV

    A term of ds_t/dW is the matrix ds_t/dz_k times s_{k-1}, one number for every i, a, b: its norm is the product of
    the two norms. So is that of dE_t/dV, the outer product of yhat_t - y_t and s_t.
    """
    norm = np.linalg.norm
    by_W: list[float] = []
    by_U: list[float] = []
    jacobian = np.eye(len(W))  # ds_t/ds_t
    for k in range(t, 0, -1):
        by_z = jacobian * (1 - s[k] ** 2)  # ds_t/dz_k
        by_W.insert(0, float(norm(by_z) * norm(s[k - 1])))
        by_U.insert(0, float(norm(by_z) * norm(x[k - 1])))
        jacobian = by_z @ W  # ds_t/ds_{k-1}
    return by_W, by_U, [float(norm(e[j]) * norm(s[j])) for j in range(1, len(e))]


def picture(found: Terms, sums: Sums, t: int, k: int, errors: tuple[float, float]) -> Figure:
    """Draws the graph with the way of the term (t, k), and the sums beside it."""
    from matplotlib.figure import Figure

    T = len(sums[2])
    width, height = size_of(T, has_errors=True)
    figure = Figure(figsize=(width + SIDE, height))
    graph = figure.add_axes((0, 0, width / (width + SIDE), 1))
    draw_recursion(graph, found.adjoints[0], found.weights[0].W, t, k, errors)
    side = figure.add_axes((width / (width + SIDE), 0, SIDE / (width + SIDE), 1))
    side.set(xlim=(0, SIDE), ylim=(0, height))
    side.axis("off")
    scale, top = LONGEST / max(map(max, sums)), height - 0.1
    gap = (top - 0.85 - 3 * HEADING - sum(map(len, sums)) * LINE) / 3
    for weight, sizes in zip("WU", sums[:2], strict=True):
        formula = rf"$\dfrac{{\partial s_{t}}}{{\partial {weight}}}\;=\;\sum_{{k=1}}^{{{t}}}\;\dfrac{{\partial s_{t}}}"
        formula += rf"{{\partial s_k}}\;\dfrac{{\partial^{{+}} s_k}}{{\partial {weight}}}$"
        top = draw_sum(side, top, formula, "k", sizes, k, scale) - gap
    formula = rf"$\dfrac{{\partial E}}{{\partial V}}\;=\;\sum_{{t=1}}^{{{T}}}\;\dfrac{{\partial E_t}}{{\partial V}}"
    formula += rf"\;=\;\sum_{{t=1}}^{{{T}}}\;(\hat y_t-y_t)\,s_t^{{\,\mathrm{{T}}}}$"
    draw_sum(side, top, formula, "t", sums[2], t, scale)
    write(side, 0.1, 0.55, "A bar is as long as the norm of its term", 11, QUIET)
    return figure


def draw_sum(axes: Axes, top: float, formula: str, letter: str, sizes: list[float], chosen: int, scale: float) -> float:
    """Draws a sum from the height `top` on, a bar for each term, and returns the height under it."""
    write(axes, 0.1, top - HEADING / 2, formula, 16, INK)
    for i, size in enumerate(sizes, 1):
        y = top - HEADING - (i - 0.5) * LINE
        colour = ORANGE if i == chosen else SOFT
        write(axes, 0.12, y, f"${letter}={i}$", 13, ORANGE if i == chosen else QUIET)
        axes.barh(y, size * scale, height=0.15, left=0.72, color=colour)
        write(axes, 0.72 + size * scale + 0.08, y, number(size), 11, QUIET)
    return top - HEADING - len(sizes) * LINE
