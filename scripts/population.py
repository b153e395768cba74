"""Trains 16 networks side by side, each with weights and a learning rate of its own: a recipe for sweeps.

    python scripts/population.py                     # a minute on two cores
    python scripts/population.py --together 1        # no vmap: each device takes its networks one by one
    python scripts/population.py --cell lstm --hidden 128 --together 1

The recipe is `train`, one whole training as a function of a key and a rate, and `side_by_side`, which is three
transformations of it: `jax.shard_map` gives every device its part of the networks, `jax.lax.map` takes so many of them
at a time, and vmap takes those together. The devices are the accelerators there are, or all cores of the CPU.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, PartitionSpec

import jaxrnn
from jaxrnn.tasks.adding import Adding

CELLS = {"elman": jaxrnn.Elman, "gru": jaxrnn.GRU, "lstm": jaxrnn.LSTM}
Train = Callable[[jax.Array, jax.Array], jax.Array]  # a key and a learning rate -> the loss of every update, [updates]


def train(net: jaxrnn.Network, task: Adding, updates: int, key: jax.Array, rate: jax.Array) -> jax.Array:
    """Trains one network and returns its losses, [updates]: a pure function, so that every transformation fits."""
    gradient = jaxrnn.value_and_grad(net)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def update(trained: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = trained
        batch = task.draw(key, task.batch_size)
        loss, grads = gradient(params, batch.inputs, batch.targets)
        changes, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, changes), state), loss

    params = net.init(key, rate.dtype)
    return jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, updates))[1]


def side_by_side(train: Train, together: int) -> Train:
    """Returns the function for N networks, spread over all devices: keys [N] and rates [N] -> losses [N, updates]."""
    mesh = jax.make_mesh((jax.device_count(),), ("network",), axis_types=(AxisType.Auto,))
    spread = PartitionSpec("network")

    # Without check_vma, since optax counts updates from a zero that is not marked as a device's own.
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
    def of_one_device(keys: jax.Array, rates: jax.Array) -> jax.Array:
        return jax.lax.map(lambda one: train(*one), (keys, rates), batch_size=together)

    return of_one_device


def one_after_the_other(train: Train) -> Train:
    """Returns the same by runs of their own, each as fast as it can be: one program that is compiled once."""
    alone = jax.jit(train)
    return lambda keys, rates: jnp.stack(
        [jax.block_until_ready(alone(*pair)) for pair in zip(keys, rates, strict=True)]
    )


def compare(ways: dict[str, Train], keys: jax.Array, rates: jax.Array, rounds: int) -> tuple[np.ndarray, dict]:
    """Returns losses [N, updates], the same by all ways, and the times of all ways, which take turns."""
    losses = [np.asarray(way(keys, rates)) for way in ways.values()]
    for other in losses[1:]:
        np.testing.assert_allclose(other[:, :5], losses[0][:, :5], rtol=1e-3)  # later ones of large rates are chaotic
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            jax.block_until_ready(way(keys, rates))
            times[name].append(time.perf_counter() - start)
    return losses[-1], times


def main() -> None:
    """Trains the networks both ways, and prints what became of them and how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--hidden", type=int, default=32, help="H (default: 32)")
    parser.add_argument("--networks", type=int, default=16, help="as many rates from 1e-4 to 1e-1 (default: 16)")
    parser.add_argument("--together", type=int, help="networks that a device takes at a time (default: all it has)")
    parser.add_argument("--updates", type=int, default=300, help="of each training (default: 300)")
    parser.add_argument("--rounds", type=int, default=3, help="how often both ways are timed (default: 3)")
    parser.add_argument("--devices", type=int, default=os.cpu_count(), help="of a CPU, where there is no accelerator")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.networks % jax.device_count():
        parser.error(f"--networks must be a multiple of the {jax.device_count()} devices, got {options.networks}")
    task = Adding(16, length=50)
    cell, readout = CELLS[options.cell](task.inputs, options.hidden), jaxrnn.Readout(options.hidden, task.outputs)
    net = jaxrnn.Network((cell,), readout, task.objective, last_step=True)
    run: Train = functools.partial(train, net, task, options.updates)
    together = options.together or options.networks // jax.device_count()
    ways: dict[str, Train] = {
        "one after the other": one_after_the_other(run),
        "side by side": jax.jit(side_by_side(run, together)),
    }
    rates = jnp.geomspace(1e-4, 1e-1, options.networks)
    losses, times = compare(ways, jax.random.split(jax.random.key(0), options.networks), rates, options.rounds)
    print("| rate | loss at the end |\n| --- | --- |")
    for rate, of_one in zip(rates, losses, strict=True):
        print(f"| {rate:.2g} | {of_one[-20:].mean():.4f} |")
    alone, beside = times.values()
    faster = statistics.median(a / b for a, b in zip(alone, beside, strict=True))
    print(", ".join(f"{name}: {statistics.median(seconds):.2f} s" for name, seconds in times.items()))
    print(f"{faster:.2f} times as fast side by side, on {jax.device_count()} devices, {together} networks at a time")


if __name__ == "__main__":
    main()
