"""The picture of the recursion: the unrolled graph, and the way of one term (t, k) of the double sum through it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrnn.flow.plots import ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST = 8  # steps: more columns than these are too narrow to read
COLUMN, ROW, RADIUS = 1.5, 1.08, 0.25  # inches, as everything that is placed below
BELOW = 1.2  # from x_t to the lower edge
WIDEST = 12.0  # points, of the thickest arrow
INK, QUIET, PALE = "#333333", "#8c8c8c", "#c4c4c4"
SOFT = "#eeb9a6"  # the other terms of the same loss


def recursion(
    adjoints: np.ndarray, terms: np.ndarray, t: int, k: int, errors: tuple[float, float] | None = None
) -> Figure:
    """Draws the unrolled graph, and on it the way of the term (t, k) of dE/dW: back from E_t to s_k, and there to W.

        dE_t/dW = sum_{k<=t} dE_t/ds_t ds_t/ds_k d+ s_k/dW

    An arrow is as thick as the norm of what it carries is large: of dE_t/ds_j on its way to s_j, and of the term (t, j)
    on its way to W. Steps are counted from 1, as in the formula.

    Args:
        adjoints: |dE_t/ds_k|, [T, T], as `jaxrnn.flow.terms` gives them, T at most 8; of the only layer, or of the
            last: to a lower one blame also comes down from the layers above it, at every step, which is another graph.
        terms: the norms of the terms of dE/dW, [T, T], likewise: of a GRU or an LSTM too.
        t: the step that errs, 1 .. T.
        k: the step that is blamed, 1 .. t.
        errors: the norms of dE_t/dyhat_t and of dE_t/dO_t, where a readout and a softmax stand between s_t and E_t.

    Returns:
        A figure of matplotlib.

    Raises:
        ValueError: norms that are not [T, T] of the same T up to 8; t or k outside.

    >>> import jax, jax.numpy as jnp, jaxrnn, jaxrnn.flow
    >>> from jaxrnn.flow.recursion import recursion
    >>> net = jaxrnn.Network((jaxrnn.GRU(3, 5),), jaxrnn.Readout(5, 3), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (5, 2), 0, 3)
    >>> found = jaxrnn.flow.terms(net, net.init(jax.random.key(0)), tokens[:-1], tokens[1:])
    >>> figure = recursion(found.adjoints[0], found.weights[0].W, t=4, k=2)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size_of(len(adjoints), errors is not None))
    draw_recursion(figure.add_axes((0, 0, 1, 1)), adjoints, terms, t, k, errors)
    return figure


def size_of(T: int, has_errors: bool) -> tuple[float, float]:
    """Returns the width and the height of the graph of T steps, in inches."""
    return max(T, 4) * COLUMN + 1.75, (4 if has_errors else 2) * ROW + 2.75


def draw_recursion(
    axes: Axes, adjoints: np.ndarray, terms: np.ndarray, t: int, k: int, errors: tuple[float, float] | None = None
) -> None:
    """Draws what `recursion` draws on axes of the size `size_of`."""
    adjoints, terms = np.asarray(adjoints, np.float64), np.asarray(terms, np.float64)
    _check(adjoints, terms, t, k)
    T, rows = len(adjoints), (["x", "s", "O", r"\hat y", "E"] if errors else ["x", "s", "E"])
    width, height = size_of(T, errors is not None)
    axes.set(xlim=(-0.5, width - 0.5), ylim=(-ROW - BELOW, height - ROW - BELOW), aspect="equal")
    axes.axis("off")
    _draw_graph(axes, T, rows, t, k)
    down = [*(errors or ()), adjoints[t - 1, t - 1]]
    back, ends = adjoints[t - 1, k - 1 : t - 1], terms[t - 1, :t]
    scale = WIDEST / max(*down, *back, *ends, np.finfo(float).tiny)
    _draw_way_down(axes, down, rows[:0:-1], t, scale)
    for j in range(t, k, -1):
        _draw_step_back(axes, j, adjoints[t - 1, j - 2], scale)
    for j in range(1, t + 1):
        _draw_end(axes, j, ends[j - 1], scale, chosen=j == k)
    _write_formula(axes, rows, t, k)
    _write_legend(axes, t, k, scale)


def _check(adjoints: np.ndarray, terms: np.ndarray, t: int, k: int) -> None:
    T = len(adjoints)
    if adjoints.shape != (T, T) or terms.shape != (T, T):
        raise ValueError(f"adjoints and terms must be [T, T], both, got {adjoints.shape} and {terms.shape}")
    if not 1 <= T <= LONGEST:
        raise ValueError(f"the graph has room for 1 to {LONGEST} steps, got {T}: take the terms of a shorter sequence")
    if not 1 <= t <= T:
        raise ValueError(f"t must lie in 1 .. T = {T}, got {t}: steps are counted from 1")
    if not 1 <= k <= t:
        raise ValueError(f"k must lie in 1 .. t = {t}, got {k}: no loss blames a later step")


def _draw_graph(axes: Axes, T: int, rows: list[str], t: int, k: int) -> None:
    """Draws the forward pass, quietly: nodes, edges, and the weights on the edges."""
    for j in range(T + 1):
        for i, letter in enumerate(rows):
            if j == 0 and letter != "s":
                continue
            on_way = (j == t and i >= 1) or (letter == "s" and k <= j <= t)
            edge = ORANGE if on_way else QUIET if j <= t and i < 2 else PALE  # pale: E_t does not depend on it
            _draw_node(axes, _place(j, i), f"${letter}_{j}$", edge)
            if i + 1 < len(rows) and j > 0:
                _draw_edge(axes, _place(j, i), _place(j, i + 1), "U" if i == 0 else "V" if rows[i + 1] == "O" else "")
        if j < T:
            _draw_edge(axes, _place(j, 1), _place(j + 1, 1), "")
            x, y = _between(j + 1)
            frame = {"boxstyle": "round,pad=0.22", "facecolor": "white", "edgecolor": QUIET if j < t else PALE}
            write(axes, x, y, "$W$", 13, INK if j < t else QUIET, ha="center", bbox=frame, zorder=5)


def _place(step: int, row: int) -> tuple[float, float]:
    return step * COLUMN, (row - 1) * ROW


def _between(step: int) -> tuple[float, float]:
    """Returns where the W of a step stands: on the edge from s_{step-1} to s_step."""
    return (step - 0.5) * COLUMN, 0.0


def _draw_node(axes: Axes, place: tuple[float, float], text: str, edge: str) -> None:
    from matplotlib.patches import Circle

    face, width = ("#fdf1ec", 1.6) if edge == ORANGE else ("white", 1.0)
    axes.add_patch(Circle(place, RADIUS, facecolor=face, edgecolor=edge, linewidth=width, zorder=4))
    write(axes, *place, text, 16, QUIET if edge == PALE else INK, ha="center", zorder=6)


def _draw_edge(axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: str) -> None:
    arrow = {"arrowstyle": "-|>", "color": PALE, "linewidth": 1.0, "shrinkA": 0, "shrinkB": RADIUS * 72}
    axes.annotate("", end, start, arrowprops=arrow, zorder=1)
    if weight:
        x, y = start[0], (start[1] + end[1]) / 2
        write(axes, x - 0.09, y, f"${weight}$", 13, QUIET, ha="right")


def _draw_way_down(axes: Axes, sizes: Sequence[float], letters: list[str], t: int, scale: float) -> None:
    """Draws the way from E_t to s_t, a factor at each arrow."""
    for i, size in enumerate(sizes):
        above, below = letters[i : i + 2]
        x, y = _place(t, len(letters) - i)
        x += 0.13
        drop = (RADIUS**2 - 0.13**2) ** 0.5
        name = f"dE_{t}/d{_plain(below)}_{t}"
        _draw_arrow(axes, (x, y - drop), (x, y - ROW + drop), size * scale, name)
        middle = y - ROW / 2
        write(axes, x + 0.16, middle, _fraction(f"{above}_{t}", f"{below}_{t}"), 14, ORANGE)
        write(axes, x + 0.62, middle, number(size), 11, QUIET)


def _draw_step_back(axes: Axes, j: int, size: float, scale: float) -> None:
    """Draws the way from s_j to s_{j-1}, under the edge."""
    (x, _), drop = _between(j), 0.19
    reach = COLUMN / 2 - (RADIUS**2 - drop**2) ** 0.5
    _draw_arrow(axes, (x + reach, -drop), (x - reach, -drop), size * scale, f"dE/ds_{j - 1}", bend=-0.22)
    write(axes, x - 0.18, -0.72, _fraction(f"s_{j}", f"s_{j - 1}"), 14, ORANGE, ha="center")
    write(axes, x + 0.08, -0.72, number(size), 11, QUIET)


def _draw_end(axes: Axes, j: int, size: float, scale: float, chosen: bool) -> None:
    """Draws the end of a way, from s_j to the W of step j: what the immediate derivative makes of dE_t/ds_j."""
    (x, _), rise = _between(j), 0.19
    start = x + COLUMN / 2 - (RADIUS**2 - rise**2) ** 0.5, rise
    _draw_arrow(axes, start, (x, 0.18), size * scale, f"term {j}", bend=0.45, colour=ORANGE if chosen else SOFT)
    if chosen:
        write(axes, x - 0.18, 0.72, _fraction(f"s_{j}", "W", r"\partial^{+}"), 14, ORANGE, ha="center")
    write(axes, x + 0.08, 0.72 if chosen else 0.5, number(size), 11, QUIET)


def _draw_arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], width: float, name: str, bend: float = 0.0,
    colour: str = ORANGE,
) -> None:  # fmt: skip
    """Draws an arrow whose shaft is so many points wide; what carries nothing is not drawn."""
    from matplotlib.patches import ArrowStyle, FancyArrowPatch

    if width > 0:
        full = min(1.0, 2 * width)  # a head larger than its shaft would say more than there is
        head = {"head_width": width + 6 * full, "head_length": min(7 + width / 2, 11) * full}
        style = ArrowStyle.Simple(tail_width=width, **head)
        line: dict[str, Any] = {"connectionstyle": f"arc3,rad={bend}", "shrinkA": 1, "shrinkB": 1, "mutation_scale": 1}
        axes.add_patch(FancyArrowPatch(start, end, arrowstyle=style, color=colour, lw=0, zorder=3, gid=name, **line))


def _write_formula(axes: Axes, rows: list[str], t: int, k: int) -> None:
    chain = [f"{letter}_{t}" for letter in rows[:0:-1]]
    factors = [rf"\dfrac{{\partial {above}}}{{\partial {below}}}" for above, below in pairwise(chain)]
    factors += [rf"\dfrac{{\partial s_{t}}}{{\partial s_k}}", r"\dfrac{\partial^{+} s_k}{\partial W}"]
    formula = rf"$\dfrac{{\partial E_{t}}}{{\partial W}}\;=\;\sum_{{k=1}}^{{{t}}}\;" + r"\;".join(factors) + "$"
    write(axes, -0.3, axes.get_ylim()[1] - 0.6, formula, 18, INK)


def _write_legend(axes: Axes, t: int, k: int, scale: float) -> None:
    size, y = 10.0 ** np.floor(np.log10(WIDEST / scale)), axes.get_ylim()[0] + 0.55
    _draw_arrow(axes, (-0.3, y), (0.3, y), size * scale, "legend", colour=QUIET)
    text = f"norm {size:g}. Thickness and number: the norm of the gradient that it carries"
    write(axes, 0.42, y, text, 11, QUIET)
    text = rf"In colour: $k={k}$; pale: the other terms. $\partial^{{+}}$: immediate, $s_{{k-1}}$ held constant"
    write(axes, -0.3, y - 0.32, text, 11, QUIET)


def write(axes: Axes, x: float, y: float, text: str, size: float, colour: str, **options: Any) -> None:
    """Writes a line, its symbols in the letters of TeX, centred in height."""
    axes.text(x, y, text, fontsize=size, color=colour, va="center", math_fontfamily="cm", **options)


def _fraction(above: str, below: str, operator: str = r"\partial") -> str:
    return rf"$\dfrac{{{operator} {above}}}{{\partial {below}}}$"


def number(size: float) -> str:
    """Writes a norm, short."""
    if 0.01 <= size < 1000 or size == 0:
        return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f}"
    mantissa, exponent = f"{size:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _plain(letter: str) -> str:
    return letter.replace(r"\hat y", "yhat")
