"""The devices of a training: a mesh of them, arrays spread over it, and how many of them are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxrnn.training.settings import Settings

AXIS = "data"  # of the mesh: the one that a batch is spread over


def devices_of_a_process() -> int:
    """Returns how many devices every process has."""
    return min(map(len, _by_process().values()))


def make_mesh(devices: int) -> Mesh:
    """Makes a mesh of so many devices of every process, in the order of the processes.

    Raises:
        ValueError: a process has fewer.
    """
    of_processes, least = _by_process(), devices_of_a_process()
    if not 1 <= devices <= least:
        raise ValueError(f"devices must be 1 to {least}, what every process has, got {devices}")
    chosen = [device for process in sorted(of_processes) for device in of_processes[process][:devices]]
    return Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def _by_process() -> dict[int, list[jax.Device]]:
    found: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        found.setdefault(device.process_index, []).append(device)
    return found


def shardings(tree: chex.ArrayTree, mesh: Mesh | None, *axes: str | None) -> Any:
    """Returns where every array of a pytree lies: spread along its first axes as said, or whole on every device."""
    place: Sharding = SingleDeviceSharding(jax.local_devices()[0])
    if mesh is not None:
        place = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda leaf: place, tree)


def spread(tree: chex.ArrayTree, mesh: Mesh, *axes: str | None) -> Any:
    """Spreads the arrays of a pytree, which every process has whole, each of which reads its own part of them."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf), np.shape(leaf)), tree
    )


def cores_that_pay(settings: Settings, outputs: int, counts: Sequence[int]) -> int:
    """Returns the largest of some numbers of cores with which a step takes less time than with one, or 1.

    A step has a product with W, of G H^2 numbers, G = 1, 3 or 4. A core gains where it has much of it to do (2^18
    multiplications at least, for its part of the batch), where W fits its own cache, as each core reads all of it (2 MB
    at most), and where no product with V is much larger: XLA spreads one large product over all cores by itself.

    On two cores of an AMD EPYC with AVX-512, jax 0.10.2, the time of two devices in that of one, at T, B, D, H, V: loss
    and gradient (`scripts/bench_peers.py`) of an LSTM at 128,48,96,224,90: 0.62; 70,24,48,160,90: 0.91; of a GRU 0.76
    and 0.91; of an Elman network 70,24,48,160,90: 0.90; 40,128,256,384,1000: 0.91; and where the rule says one core,
    200,8,32,96,40: 1.22. Steps of training gain less, as both devices update all parameters: `jaxrnn train --cell lstm
    --hidden 128 --chunk 100 --steps 1500`, `--devices 2` against `--devices 1`, 0.80 and 0.87, a GRU 0.86 and 0.94.
    """
    W = {"elman": 1, "gru": 3, "gru-before": 3, "lstm": 4}[settings.cell] * settings.hidden**2
    if W > 2**19 or outputs * settings.hidden > 8 * W:
        return 1
    return max((count for count in counts if W * settings.batch // count >= 2**18), default=1)
