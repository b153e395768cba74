"""Draws how far back a gradient reaches in a plain network and in an LSTM, both fresh: the picture in README.md.

    python scripts/flow_picture.py [--steps 60] [--out scripts/pictures/flow.png]

Every square (t, k) is the size of one term of the double sum: how much the error of step t blames step k. The curve
beside the squares is the mean over t, by the number of steps between the two.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING

import jax
import numpy as np

import jaxrnn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = pathlib.Path(__file__).parent / "pictures" / "flow.png"
INPUTS, HIDDEN, OUTPUTS, BATCH = 32, 64, 32, 8
CELLS = {"Elman": jaxrnn.Elman(INPUTS, HIDDEN), "LSTM": jaxrnn.LSTM(INPUTS, HIDDEN)}
COLOURS = {"Elman": "#d1603d", "LSTM": "#33658a"}
DECADES = 6  # below the largest term: what is smaller has the darkest colour


def reach(cell: jaxrnn.Cell, steps: int) -> np.ndarray:
    """Computes |dE_t/ds_k| against |dE_t/ds_t|, on random inputs and labels: [T, T], NaN for k > t."""
    net = jaxrnn.Network((cell,), jaxrnn.Readout(HIDDEN, OUTPUTS), jaxrnn.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 3)
    inputs = jax.random.normal(keys[0], (steps, BATCH, INPUTS))
    targets = jax.random.randint(keys[1], (steps, BATCH), 0, OUTPUTS)
    norms = np.asarray(jaxrnn.flow.terms(net, net.init(keys[2]), inputs, targets).adjoints[0], np.float64)  # [T, T]
    return np.where(np.tri(steps, dtype=bool), norms / np.diag(norms)[:, None], np.nan)


def lag_means(relative: np.ndarray) -> np.ndarray:
    """Computes the geometric mean over t of what is left after i steps back, for every lag i: [T]."""
    return np.array([np.exp(np.mean(np.log(np.diag(relative, -i)))) for i in range(len(relative))])


def picture(found: dict[str, np.ndarray]) -> Figure:
    """Draws one square for each network, and the curve of all beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.1), layout="constrained")
    axes = figure.subplots(1, len(found) + 1, width_ratios=[1] * len(found) + [1.25])
    for panel, (name, relative) in zip(axes, found.items(), strict=False):
        T = len(relative)
        image = panel.imshow(
            np.log10(relative), cmap="viridis", vmin=-DECADES, vmax=0, extent=(0.5, T + 0.5, T + 0.5, 0.5)
        )
        panel.set(xlabel="k, the step that is blamed", ylabel="t, the step that errs", title=name)
        axes[-1].semilogy(lag_means(relative), color=COLOURS[name], linewidth=1.6, label=name)
    figure.colorbar(image, ax=axes[:-1].tolist(), label="log10 of what is left")
    axes[-1].axhline(0.01, color="#888888", linewidth=0.8, linestyle="--")
    axes[-1].annotate("1 %", (1, 0.01), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#888888")
    axes[-1].set(xlabel="steps back", ylabel="left of the gradient", title="How far back a loss reaches")
    axes[-1].set_ylim(10.0**-DECADES, 2)
    axes[-1].legend(frameon=False)
    axes[-1].spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Computes both networks, and draws them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="T (default: 60)")
    parser.add_argument("--out", type=pathlib.Path, default=PICTURE, help="a file (default: %(default)s)")
    options = parser.parse_args()
    if options.steps < 2:
        parser.error(f"--steps must be 2 or more, got {options.steps}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture({name: reach(cell, options.steps) for name, cell in CELLS.items()}).savefig(options.out, dpi=100)
    print(f"Drawn in {options.out}")


if __name__ == "__main__":
    main()
