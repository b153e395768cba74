"""Makes a flax model faster by one line: `RNN` of jaxrnn in the place of `nnx.RNN`.

    python scripts/examples/flax_model.py

The model tags every step of a sequence with the parity of the ones so far, which only a network with a memory can do.
Its cell, its parameters and their fresh values are those of flax; the loop over time and its gradient are jaxrnn's.
"""

import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrnn.interop.flax import RNN  # the one line: this, or nnx.RNN

T, B, H = 40, 64, 32


class Tagger(nnx.Module):
    """Gives two logits for every step."""

    def __init__(self, rnn: type[nnx.RNN], rngs: nnx.Rngs) -> None:
        self.rnn = rnn(nnx.LSTMCell(1, H, rngs=rngs))
        self.head = nnx.Linear(H, 2, rngs=rngs)

    def __call__(self, bits: jax.Array) -> jax.Array:
        """Takes bits [B, T], and returns logits [B, T, 2]."""
        return self.head(self.rnn(bits[..., None].astype(jnp.float32)))


@nnx.jit
def update(model: Tagger, optimizer: nnx.Optimizer, bits: jax.Array) -> jax.Array:
    """Takes one step of Adam, and returns the loss before it."""

    def loss(model: Tagger) -> jax.Array:
        parity = jnp.cumsum(bits, axis=1) % 2
        return optax.softmax_cross_entropy_with_integer_labels(model(bits), parity).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    optimizer.update(model, grads)
    return value


def train(rnn: type[nnx.RNN], updates: int) -> tuple[list[float], float]:
    """Trains a fresh model; returns its losses, and the seconds of all updates but the first, which compiles."""
    model = Tagger(rnn, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-2), wrt=nnx.Param)
    losses = []
    for step in range(updates):
        bits = jax.random.bernoulli(jax.random.key(step), shape=(B, T)).astype(int)
        losses.append(float(update(model, optimizer, bits)))
        if step == 0:
            start = time.perf_counter()
    return losses, time.perf_counter() - start


def main(updates: int = 200) -> None:
    """Trains with flax's loop and with jaxrnn's, from the same parameters on the same bits."""
    for name, rnn in (("nnx.RNN", nnx.RNN), ("jaxrnn's RNN", RNN)):
        losses, seconds = train(rnn, updates)
        print(f"{name:12s}: loss {losses[0]:.4f} at first, {losses[-1]:.4f} at the end, {seconds:.2f} s")


if __name__ == "__main__":
    main()
