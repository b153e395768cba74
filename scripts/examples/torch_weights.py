"""Goes on training a network that comes from torch: its weights, a new task, and the way back.

    python scripts/examples/torch_weights.py

The torch model is an LSTM and a Linear, as they would come from a file. Here they are made afresh. What they compute in
torch and in jaxrnn is compared, before training and after.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import jaxrnn
import jaxrnn.interop

T, B, D, H, V = 25, 16, 4, 32, 4


def from_torch(lstm: torch.nn.LSTM, linear: torch.nn.Linear) -> tuple[jaxrnn.Network, jaxrnn.NetworkParams]:
    """Makes the same network, with the same weights."""
    layers, params = jaxrnn.interop.from_torch(lstm.state_dict())
    net = jaxrnn.Network(layers, jaxrnn.Readout(H, V), jaxrnn.softmax_cross_entropy)
    readout = jaxrnn.ReadoutParams(linear.weight.detach().numpy(), linear.bias.detach().numpy())
    return net, jax.tree.map(jnp.asarray, jaxrnn.NetworkParams(params, readout))


def as_tensor(array: Any) -> torch.Tensor:
    """Copies an array to torch."""
    return torch.tensor(np.asarray(array))


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws the task: to say which of four inputs was on most often so far."""
    on = jax.random.bernoulli(key, 0.3, (T, B, D))
    return on.astype(jnp.float32), jnp.argmax(jnp.cumsum(on, 0), -1)


def main(updates: int = 300) -> None:
    """Compares the outputs, trains on, and hands the weights back to torch."""
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(D, H), torch.nn.Linear(H, V)
    net, params = from_torch(lstm, linear)
    inputs, _ = draw(jax.random.key(0))

    def difference() -> float:
        with torch.no_grad():
            theirs = linear(lstm(as_tensor(inputs))[0]).numpy()
        return float(jnp.abs(net.apply(params, inputs)[0] - theirs).max())

    print(f"outputs differ from torch's by {difference():.0e} at most")
    optimizer = optax.adam(5e-3)
    state, gradient = optimizer.init(params), jax.jit(jaxrnn.value_and_grad(net))
    for step in range(1, updates + 1):
        loss, grads = gradient(params, *draw(jax.random.key(step)))
        changes, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, changes)
        if step % (updates // 3) == 0:
            print(f"update {step}: loss {loss:.3f}")
    weights = jaxrnn.interop.to_torch(net.layers, params.layers)
    lstm.load_state_dict(jax.tree.map(as_tensor, weights))
    linear.load_state_dict({"weight": as_tensor(params.readout.V), "bias": as_tensor(params.readout.c)})
    print(f"back in torch, outputs differ by {difference():.0e} at most")


if __name__ == "__main__":
    main()
