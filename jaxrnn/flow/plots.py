"""Pictures: arrays in, matplotlib figures out. Nothing global is touched, and nothing is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from jaxrnn.flow.diagnosis import Diagnosis, lag_profile
from jaxrnn.layer.bptt import StepNorms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#33658a", "#d1603d", "#888888"
DECADES = 8  # below the largest value, in pictures of logarithms: further down is rounding in float32


def empty_figure(width: float, height: float) -> Figure:
    """Returns a figure without axes, its size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def hide_frame(axes: Axes) -> None:
    """Hides the frame of axes above and at the right."""
    axes.margins(x=0.02)
    axes.spines[["top", "right"]].set_visible(False)


def add_colour_bar(axes: Axes, image: Any, label: str) -> None:
    """Adds what the colours of an image mean."""
    axes.figure.colorbar(image, ax=axes, label=label)


def terms(norms: np.ndarray, weight: str = "W") -> Figure:
    """Draws the double sum: the norm of every term (t, k), and beside it how it falls with the lag t - k.

    Args:
        norms: [T, T], zero above the diagonal, as `jaxrnn.flow.terms` gives them for one weight.
        weight: its name.
    """
    figure = empty_figure(11, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _terms(left, norms, weight)
    _profile(right, lag_profile(np.asarray(norms, np.float64)), f"term of dE/d{weight} against that at lag 0")
    return figure


def delta_norms(flow: Sequence[StepNorms]) -> Figure:
    """Draws |delta_t| and |dE/ds_t| through time, for every layer, from `value_and_grad(..., return_flow=True)`."""
    return _alone(_delta_norms, flow)


def jacobian_spectrum(singular_values: np.ndarray) -> Figure:
    """Draws singular values of ds_T/ds_{T-i} against the lag i: the largest, the smallest, and quantiles between.

    Args:
        singular_values: [L + 1, n], largest first.
    """
    return _alone(_spectrum, singular_values)


def lyapunov_spectrum(exponents: np.ndarray, error: np.ndarray) -> Figure:
    """Draws the exponents [m] in order, with their standard errors; above zero small changes grow."""
    return _alone(_lyapunov, exponents, error)


def gradient_flow(diagnosis: Diagnosis, title: str = "Gradient flow") -> Figure:
    """Draws one page: terms of the double sum, lag profile, norms through time, Jacobians, Lyapunov exponents."""
    d = diagnosis
    figure = empty_figure(13, 11)
    figure.suptitle(f"{title}: {d.verdict}", fontsize=13, fontweight="bold")
    axes = figure.subplots(3, 2, height_ratios=[1.5, 1, 1])
    _terms(axes[0, 0], d.terms, d.weight)
    _profile(axes[0, 1], d.profile, "|dE_t/ds_{t-i}| against |dE_t/ds_t|", d)
    _delta_norms(axes[1, 0], d.flow)
    _spectrum(axes[1, 1], d.singular_values, (d.norms.log, d.norms.error))
    _lyapunov(axes[2, 0], d.lyapunov.exponents, d.lyapunov.error)
    axes[2, 1].axis("off")
    axes[2, 1].text(0, 1, str(d), transform=axes[2, 1].transAxes, va="top", family="monospace", fontsize=8, wrap=True)
    return figure


def _alone(draw: Callable[..., None], *arguments: Any) -> Figure:
    figure = empty_figure(8, 4.2)
    draw(figure.subplots(), *arguments)
    return figure


def _terms(axes: Axes, norms: np.ndarray, weight: str) -> None:
    with np.errstate(divide="ignore"):
        logs = np.log10(np.asarray(norms, np.float64))
    finite = logs[np.isfinite(logs)]
    top = finite.max() if finite.size else 0.0
    rows, T = logs.shape
    image = axes.imshow(
        np.where(np.isfinite(logs), logs, np.nan), cmap="viridis", vmin=max(finite.min(initial=top), top - DECADES),
        vmax=top, aspect="auto" if rows == 1 else "equal", interpolation="nearest",
        extent=(0.5, T + 0.5, T + 0.5, T - rows + 0.5),
    )  # fmt: skip
    axes.set(xlabel="k, the step that is blamed", ylabel="t, the step that errs", title=f"Terms (t, k) of dE/d{weight}")
    add_colour_bar(axes, image, "log10 of the norm")


def _profile(axes: Axes, profile: np.ndarray, label: str, diagnosis: Diagnosis | None = None) -> None:
    axes.semilogy(np.arange(len(profile)), profile, color=BLUE, linewidth=1.4)
    axes.set(xlabel="lag i, steps back", ylabel=label, title="How far back a loss reaches")
    _limit(axes, profile)
    if diagnosis is not None and diagnosis.verdict != "exploding":
        for name, horizon in (("half", diagnosis.half), ("1 %", diagnosis.one_percent)):
            mean = float(horizon.mean)
            if float(horizon.beyond) < 0.5:
                axes.axvline(mean, color=ORANGE, linewidth=1, linestyle="--")
                axes.annotate(f"{name}: {mean:.0f}", (mean, 1), xycoords=("data", "axes fraction"), xytext=(4, -14),
                              textcoords="offset points", color=ORANGE, fontsize=9)  # fmt: skip
    hide_frame(axes)


def _delta_norms(axes: Axes, flow: Sequence[StepNorms]) -> None:
    for i, norms in enumerate(flow):
        name = f", layer {i}" if len(flow) > 1 else ""
        fade = 1 - 0.6 * (len(flow) - 1 - i) / len(flow)
        for values, colour, label in ((norms.adjoint, ORANGE, "|dE/ds_t|"), (norms.delta, BLUE, "|delta_t|")):
            shown = np.where(np.asarray(values) > 0, values, np.nan)
            axes.semilogy(
                np.arange(1, len(shown) + 1), shown, color=colour, alpha=fade, linewidth=1.3, label=label + name
            )
    axes.set(xlabel="step t", ylabel="norm over units and batch", title="What the sweep carries")
    axes.legend(frameon=False, fontsize=9)
    hide_frame(axes)


def _spectrum(axes: Axes, values: np.ndarray | None, norms: tuple[ArrayLike, ArrayLike] | None = None) -> None:
    shown = []
    if values is not None:
        n = values.shape[1]
        # Smaller than the largest one by the precision of the dtype, a singular value is rounding.
        values = np.where(values > values[:, :1] * 2 * n * np.finfo(values.dtype).eps, values, np.nan)
        tenth = f"number {n // 10 + 1} of {n}"
        marks = [(0, "largest", 1.0), (n // 10, tenth, 0.6), (n // 2, "median", 0.8), (n - 1, "smallest", 0.4)]
        for index, label, alpha in marks if n > 3 else marks[:1] + marks[-1:]:
            shown.append(values[:, index])
            axes.semilogy(np.arange(len(values)), shown[-1], color=BLUE, alpha=alpha, linewidth=1.3, label=label)
    if norms is not None:
        size, error = np.exp(np.asarray(norms[0])), np.asarray(norms[1])
        lags, low, high = np.arange(len(size)), size * np.exp(-2 * error), size * np.exp(2 * error)
        axes.fill_between(lags, low, high, color=ORANGE, alpha=0.3, lw=0)
        axes.semilogy(lags, size, color=ORANGE, linewidth=1.3, label="root mean square")
        shown.append(size)
    _limit(axes, np.concatenate(shown), 1.0)
    axes.set(xlabel="lag i, steps back", ylabel="singular values", title="Jacobians ds_T/ds_{T-i}")
    axes.legend(frameon=False, fontsize=9)
    hide_frame(axes)


def _limit(axes: Axes, values: np.ndarray, reference: float | None = None) -> None:
    """Shows the values that have a logarithm, down to twice DECADES below a reference, by default the largest."""
    values = values[np.isfinite(values) & (values > 0)]
    if values.size:
        axes.set_ylim(max(values.min(), (reference or values.max()) * 10.0 ** -(2 * DECADES)) / 2, values.max() * 2)


def _lyapunov(axes: Axes, exponents: ArrayLike, error: ArrayLike) -> None:
    index = np.arange(1, np.size(exponents) + 1)
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle="--")
    axes.errorbar(index, exponents, yerr=2 * np.asarray(error), color=BLUE, fmt="o", markersize=3, linewidth=0.8)
    axes.set(xlabel="number", ylabel="nats per step", title="Lyapunov exponents, with two standard errors")
    hide_frame(axes)
