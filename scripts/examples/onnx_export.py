"""Trains a network here, and writes it as an ONNX file that runs without Python: in a browser, or in a phone.

    python scripts/examples/onnx_export.py

The network reads brackets and says at every step whether one that was opened is still open. The file is run by
onnxruntime, on several sequences of unlike lengths, and read again to train on.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import optax

import jaxrnn
import jaxrnn.interop.onnx

T, B, OPENED, CLOSED = 24, 32, 1, 2  # token 0 is any other character
NET = jaxrnn.Network((jaxrnn.GRU(3, 24),), jaxrnn.Readout(24, 2), jaxrnn.softmax_cross_entropy)


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws tokens [T, B], and whether a bracket is open after each of them; one that closes nothing is ignored."""

    def step(depth: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        depth = jnp.maximum(depth + (token == OPENED) - (token == CLOSED), 0)
        return depth, (depth > 0).astype(int)

    tokens = jax.random.randint(key, (T, B), 0, 3)
    return tokens, jax.lax.scan(step, jnp.zeros(B, int), tokens)[1]


def train(updates: int) -> jaxrnn.NetworkParams:
    """Returns trained parameters."""
    optimizer, gradient = optax.adam(1e-2), jax.jit(jaxrnn.value_and_grad(NET))
    params = NET.init(jax.random.key(0))
    state = optimizer.init(params)
    for step in range(1, updates + 1):
        loss, grads = gradient(params, *draw(jax.random.key(step)))
        changes, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, changes)
        if step % (updates // 2) == 0:
            print(f"update {step}: loss {loss:.3f}")
    return params


def main(updates: int = 300) -> None:
    """Trains, writes the file, runs it elsewhere, and reads it again."""
    params = train(updates)
    tokens, _ = draw(jax.random.key(0))
    lengths = jnp.arange(B) % T + 1
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "brackets.onnx"
        jaxrnn.interop.onnx.save(NET, params, path, tokens=True, lengths=True)
        session = onnxruntime.InferenceSession(path)
        names = [given.name for given in session.get_inputs()]
        given = dict(zip(names, (np.asarray(tokens, np.int64), np.asarray(lengths)), strict=True))
        theirs = session.run(None, given)[0]  # [T, B, 2]
        print(f"{path.name} has {path.stat().st_size} bytes, and the inputs {' and '.join(names)}")
        model = jaxrnn.interop.onnx.load(path)
    mask = jaxrnn.lengths_to_mask(lengths, T)
    ours, _ = model.net.apply(model.params, tokens, mask=mask)
    difference = jnp.abs(jnp.where(mask[..., None], ours - theirs, 0)).max()
    print(f"read again, its outputs differ from onnxruntime's by {difference:.0e} at most")


if __name__ == "__main__":
    main()
