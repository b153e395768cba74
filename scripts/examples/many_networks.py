"""Trains a population of networks side by side, by `jax.vmap` over their parameters and learning rates.

    python scripts/examples/many_networks.py

Every network learns to say a bit again that it saw ten steps before. `scripts/population.py` spreads such a population
over devices, and measures what that gains.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import jaxrnn

T, B, DELAY, NETWORKS = 30, 16, 10, 8
NET = jaxrnn.Network((jaxrnn.LSTM(1, 16),), jaxrnn.Readout(16, 2), jaxrnn.softmax_cross_entropy)


@functools.partial(jax.jit, static_argnums=2)
@functools.partial(jax.vmap, in_axes=(0, 0, None))
def train(key: jax.Array, rate: jax.Array, updates: int) -> jax.Array:
    """Trains one network, and returns the loss of every update; vmap makes it a population."""
    optimizer, gradient = optax.adam(rate), jaxrnn.value_and_grad(NET)

    def update(trained: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = trained
        bits = jax.random.bernoulli(key, shape=(T, B)).astype(int)
        seen = jnp.arange(T)[:, None] >= DELAY  # before, there is nothing to say again
        weights = jnp.broadcast_to(seen, (T, B)) / (B * (T - DELAY))
        loss, grads = gradient(params, bits[..., None].astype(jnp.float32), jnp.roll(bits, DELAY, 0), weights)
        changes, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, changes), state), loss

    key_params, key_data = jax.random.split(key)
    params = NET.init(key_params)
    return jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key_data, updates))[1]


def main(updates: int = 500) -> None:
    """Trains networks that differ in their rate alone, and prints what became of each."""
    rates = jnp.geomspace(1e-3, 1, NETWORKS)
    keys = jnp.broadcast_to(jax.random.key(0), (NETWORKS,))
    losses = train(keys, rates, updates)  # [NETWORKS, updates]
    for rate, of_one in zip(rates, losses, strict=True):
        print(f"rate {rate:.3f}: loss {of_one[0]:.3f} at first, {of_one[-10:].mean():.3f} at the end")
    print(f"the best rate is {rates[jnp.argmin(losses[:, -10:].mean(1))]:.3f}")


if __name__ == "__main__":
    main()
