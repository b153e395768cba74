"""Trains an equinox model whose cell runs over time by jaxrnn: `scan(cell, xs)` in the place of a `lax.scan`.

    python scripts/examples/equinox_model.py

The model hears two notes of noisy sound and says whether the second is higher. It is written for one sequence and
mapped over a batch with `jax.vmap`, as equinox users write; jaxrnn makes of that one batch again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxrnn.interop.equinox import scan

T, B, H = 60, 64, 24


class Listener(eqx.Module):
    """Reads a sequence, and gives one logit at its end."""

    cell: eqx.nn.GRUCell
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        key_cell, key_head = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(1, H, key=key_cell)
        self.head = eqx.nn.Linear(H, "scalar", key=key_head)

    def __call__(self, sound: jax.Array) -> jax.Array:
        """Takes one sound [T, 1]."""
        _, last = scan(self.cell, sound)  # hidden states [T, H], last state [H]
        return self.head(last)


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws sounds [B, T, 1], and whether the second half is higher, [B]."""
    keys = jax.random.split(key, 3)
    notes = jax.random.uniform(keys[0], (B, 2), minval=0.3, maxval=1.2)  # radians per step
    phase = jnp.cumsum(jnp.repeat(notes, T // 2, axis=1), axis=1) + jax.random.uniform(keys[1], (B, 1), maxval=6.3)
    return (jnp.sin(phase) + 0.1 * jax.random.normal(keys[2], (B, T)))[..., None], notes[:, 1] > notes[:, 0]


@eqx.filter_value_and_grad(has_aux=True)
def loss(model: Listener, sounds: jax.Array, higher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the cross-entropy, and the share of right answers."""
    logits = jax.vmap(model)(sounds)
    return optax.sigmoid_binary_cross_entropy(logits, higher).mean(), jnp.mean((logits > 0) == higher)


def main(updates: int = 300) -> None:
    """Trains the model, and prints loss and right answers as they go."""
    model, optimizer = Listener(jax.random.key(0)), optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def update(model: Listener, state: optax.OptState, key: jax.Array) -> tuple:
        found, grads = loss(model, *draw(key))
        changes, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, changes), state, found

    for step in range(1, updates + 1):
        model, state, (value, right) = update(model, state, jax.random.key(step))
        if step % (updates // 3) == 0:
            print(f"update {step}: loss {value:.3f}, {right:.0%} right")


if __name__ == "__main__":
    main()
