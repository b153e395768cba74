"""How far three truncated gradients are from the whole one, at the parameters of a trained text model.

    python scripts/truncation_bias.py [--data FILE] [--cell elman|gru|lstm] [--updates 1000] [--out truncation_bias]

A network is trained on a text for some updates by full BPTT over chunks of T steps; then the gradients of many chunks
are taken whole, and truncated to k steps as `jaxrnn.Carried`, `jaxrnn.Window` and `jaxrnn.Tail` mean it. For each k:

    cosine, ratio    of a chunk's truncated gradient and its whole one: angle and norms, means over chunks
    bias             |mean of the truncated gradients - mean of the whole ones| / |mean of the whole ones|

Noise averages out over chunks, a bias does not. Prints a table, draws truncation_bias.png.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxrnn
from jaxrnn.tasks import text
from jaxrnn.training.fit import fit
from jaxrnn.training.step import adam, initial_train_state, make_step

CELLS = {"elman": jaxrnn.Elman, "gru": jaxrnn.GRU, "lstm": jaxrnn.LSTM}
COLOURS = {"Carried": "#33658a", "Window": "#d1603d", "Tail": "#5b8c5a"}


def trained(cell: str, hidden: int, content: text.Text, steps: int, updates: int) -> tuple[jaxrnn.Network, Any, Any]:
    """Returns a network after some updates, and the state that it carries on."""
    V = len(content.vocabulary)
    scale = {"input_scale": 2 * V**0.5} if cell == "elman" else {}
    net = jaxrnn.Network((CELLS[cell](V, hidden, **scale),), jaxrnn.Readout(hidden, V), jaxrnn.softmax_cross_entropy)
    optimizer = adam(3e-3, max(updates, 1))
    state = initial_train_state(net, optimizer, 32, jax.random.key(0))
    streams = text.Streams(content.train, steps, 32, jax.random.key(1))
    losses: list[float] = []
    log = lambda metrics: losses.append(metrics["loss"])  # noqa: E731
    state = fit(state, make_step(net, optimizer), streams.batch, updates, log=log).train
    print(
        f"{net.layers[0]}, after {updates} updates: {losses[-1] if losses else float('nan'):.3f} nats per character\n"
    )
    return net, state.params, state.network_state


def gradients(
    net: jaxrnn.Network, params: Any, state: Any, chunks: list[Any], truncate: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradient of every chunk, all parameters [N, P] and W alone [N, H * H]; the state is carried on."""
    run = jax.jit(jaxrnn.value_and_grad(net, truncate=truncate, return_state=True))
    everything, recurrent = [], []
    for chunk in chunks:
        (_, state), grads = run(params, chunk.inputs, chunk.targets, None, state)
        everything.append(np.asarray(ravel_pytree(grads)[0], np.float64))
        recurrent.append(np.asarray(grads.layers[0].W, np.float64).ravel())
    return np.stack(everything), np.stack(recurrent)


def compare(estimates: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    """Computes cosine, ratio of norms and bias of gradients [N, P] against the whole ones."""
    sizes, true_sizes = np.linalg.norm(estimates, axis=1), np.linalg.norm(truth, axis=1)
    cosine = np.mean(np.sum(estimates * truth, 1) / np.maximum(sizes * true_sizes, 1e-300))
    bias = np.linalg.norm(estimates.mean(0) - truth.mean(0)) / np.linalg.norm(truth.mean(0))
    return float(cosine), float(np.mean(sizes / true_sizes)), float(bias)


def picture(found: dict[str, dict[int, Any]], title: str) -> Any:
    """Draws cosine, ratio of norms and bias of the gradient by W, against k."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    names = ("cosine with the whole gradient", "norm against the whole gradient's", "bias")
    for index, (axes, name) in enumerate(zip(figure.subplots(1, 3), names, strict=True)):
        for truncation, by_k in found.items():
            values = [by_k[k][1][index] for k in by_k]
            axes.plot(list(by_k), values, color=COLOURS[truncation], marker="o", markersize=4, label=truncation)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="k, steps", ylabel=name, title=f"dE/dW: {name.split()[0]}")
        if index == 2:
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_ylim(bottom=-1e-4)
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if index == 0:
            axes.legend(frameon=False)
    return figure


def main() -> None:
    """Trains, compares, prints, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a text file or folder (default: Python's own language reference)")
    parser.add_argument("--cell", choices=list(CELLS), default="elman")
    parser.add_argument("--hidden", type=int, default=128, help="H (default: 128)")
    parser.add_argument("--steps", type=int, default=256, help="T of a chunk (default: 256)")
    parser.add_argument("--updates", type=int, default=1000, help="of the training (default: 1000)")
    parser.add_argument("--chunks", type=int, default=30, help="whose gradients are compared (default: 30)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("truncation_bias"), help="a folder")
    options = parser.parse_args()
    for name in ("hidden", "updates", "chunks"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(options, name)}")
    if options.steps < 2:
        parser.error(f"--steps must be 2 or more, got {options.steps}")
    try:
        content = text.load(options.data)
        net, params, state = trained(options.cell, options.hidden, content, options.steps, options.updates)
    except ValueError as error:
        parser.error(str(error))
    streams = text.Streams(content.train, options.steps, 32, jax.random.key(1))
    chunks = [streams.batch(options.updates + i) for i in range(options.chunks)]
    truth = gradients(net, params, state, chunks, None)
    lags = [*(2**i for i in range(options.steps.bit_length()) if 2**i < options.steps), options.steps]
    found: dict[str, dict[int, Any]] = {name: {} for name in COLOURS}
    print("All parameters, and W alone:\n")
    print("| k | " + " | ".join(f"{name}: cosine, ratio, bias" for name in found) + " |\n|---|" + "---|" * len(found))
    for k in lags:
        for name in found:
            estimates = gradients(net, params, state, chunks, getattr(jaxrnn, name)(k))
            found[name][k] = [compare(*pair) for pair in zip(estimates, truth, strict=True)]
        cells = ("; ".join("{:.4f}, {:.3f}, {:.4f}".format(*part) for part in by_k[k]) for by_k in found.values())
        print(f"| {k} | " + " | ".join(cells) + " |", flush=True)
    print()
    for name, by_k in found.items():
        short = [k for k, (_, W) in by_k.items() if W[0] < 0.99]
        enough = min((k for k in by_k if not short or k > max(short)), default="none of these")
        print(f"{name}: dE/dW has a cosine of 0.99 with the whole one from k = {enough} on")
    options.out.mkdir(parents=True, exist_ok=True)
    title = (
        f"{type(net.layers[0]).__name__}({options.hidden}) on text, T = {options.steps}, {options.chunks} chunks of 32"
    )
    picture(found, title).savefig(options.out / "truncation_bias.png", dpi=130)
    print(f"Drawn in {options.out / 'truncation_bias.png'}")


if __name__ == "__main__":
    main()
