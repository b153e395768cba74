"""The duration of loss and gradient with torch's recurrent layer on the CPU, in milliseconds: for bench.py.

python scripts/bench_torch.py lstm 100 32 64 128 65 1
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", choices=("elman", "gru", "lstm"))
    for name in ("T", "B", "D", "H", "V", "layers"):
        parser.add_argument(name, type=int)
    parser.add_argument("--seconds", type=float, default=15.0, help="time to spend")
    options = parser.parse_args()
    layer = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[options.cell]
    recurrent = layer(options.D, options.H, options.layers)
    readout = torch.nn.Linear(options.H, options.V)
    inputs = torch.randn(options.T, options.B, options.D)
    targets = torch.randint(options.V, (options.T, options.B))
    parameters = [*recurrent.parameters(), *readout.parameters()]

    def loss_and_gradient() -> None:
        outputs = readout(recurrent(inputs)[0])
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())
        torch.autograd.grad(loss, parameters)

    durations: list[float] = []
    end = time.perf_counter() + options.seconds
    while time.perf_counter() < end or len(durations) < 9:
        start = time.perf_counter()
        loss_and_gradient()
        durations.append(time.perf_counter() - start)
    print(statistics.median(durations) * 1e3)


if __name__ == "__main__":
    main()
