"""Trains a network inside one `lax.scan`: the whole training is one compiled program, and can be mapped over.

    python scripts/examples/train_in_scan.py

The network adds the two marked numbers of a sequence (Hochreiter & Schmidhuber 1997). Nothing returns to Python between
updates, which is the fastest way for small networks, and the only one inside a `vmap` over seeds or rates.
"""

import jax
import jax.numpy as jnp
import optax

import jaxrnn

T, B = 20, 32
NET = jaxrnn.Network((jaxrnn.GRU(2, 32),), jaxrnn.Readout(32, 1), jaxrnn.squared_error, last_step=True)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws numbers with two marks, [T, B, 2], and the sums of the marked ones, [B, 1]."""
    key_numbers, *keys = jax.random.split(key, 3)
    numbers = jax.random.uniform(key_numbers, (T, B))
    first, second = (jax.random.randint(key, (B,), 0, T // 2) for key in keys)
    places = jnp.stack([first, second + T // 2])
    marks = jax.nn.one_hot(places, T, axis=1).sum(0)  # [T, B]
    return jnp.stack([numbers, marks], -1), jnp.sum(numbers * marks, 0)[:, None]


def train(key: jax.Array, updates: int) -> tuple[jaxrnn.NetworkParams, jax.Array]:
    """Returns trained parameters and the loss of every update, [updates]: a pure function of its key."""
    gradient = jaxrnn.value_and_grad(NET)

    def update(trained: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        params, state = trained
        loss, grads = gradient(params, *draw(key))
        changes, state = OPTIMIZER.update(grads, state, params)
        return (optax.apply_updates(params, changes), state), loss

    key_params, key_data = jax.random.split(key)
    params = NET.init(key_params)
    (params, _), losses = jax.lax.scan(update, (params, OPTIMIZER.init(params)), jax.random.split(key_data, updates))
    return params, losses


def main(updates: int = 600) -> None:
    """Trains one network, then prints its losses and how well it adds numbers it has not seen."""
    params, losses = jax.jit(train, static_argnums=1)(jax.random.key(0), updates)
    for part in jnp.array_split(losses, 3):
        print(f"mean loss of {part.size} updates: {part.mean():.4f}")
    inputs, sums = draw(jax.random.key(1))
    outputs, _ = NET.apply(params, inputs)
    print(f"fresh numbers: off by {jnp.abs(outputs - sums).mean():.3f} on average; always 1 would be off by 0.33")


if __name__ == "__main__":
    main()
