"""Characters to tokens, and text from a trained network."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.network.network import Network, NetworkParams

UNKNOWN = "\ufffd"  # stands for every character that the training part of a text does not have


def encode(vocabulary: str, text: str) -> np.ndarray:
    """Turns a text into tokens, int32 [N]: what is not in the vocabulary becomes its last character, U+FFFD."""
    index = {character: i for i, character in enumerate(vocabulary)}
    unknown = len(vocabulary) - 1
    return np.array([index.get(character, unknown) for character in text], np.int32)


def sample(
    net: Network,
    params: NetworkParams,
    vocabulary: str,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Draws characters from a network, one jitted step each, the state carried.

        s_t = f(s_{t-1}, x_t)        x_{t+1} ~ softmax(O_t / temperature)

    Args:
        net, params: a network over the vocabulary's tokens.
        vocabulary: the character of every token; the last one, the unknown one, is never drawn.
        prompt: what the text goes on from, at least one character.
        length: how many characters to draw.
        temperature: 1 draws from the network's own distribution, less sharpens it, 0 takes the likeliest.
        seed: for the draws.

    Raises:
        ValueError: an empty prompt, one with characters not in the vocabulary, a negative temperature or length.
    """
    strange = sorted(set(prompt) - set(vocabulary[:-1]))
    if strange:
        raise ValueError(f"prompt has characters that the training text does not have: {' '.join(map(repr, strange))}")
    if not prompt:
        raise ValueError("prompt must have at least one character")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be zero or positive, got {temperature}")
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")
    return _draw(net, params, vocabulary, prompt, length, temperature, seed)


def _draw(
    net: Network, params: NetworkParams, vocabulary: str, prompt: str, length: int, temperature: float, seed: int
) -> Iterator[str]:
    key = jax.random.key(seed)
    *before, last = encode(vocabulary, prompt)
    state = net.initial_state()
    if before:
        state = jax.jit(net.apply)(params, np.array(before), state)[1]
    token = jnp.asarray(last)
    for i in range(length):
        token, state = _next_token(net, params, token, state, jax.random.fold_in(key, i), temperature)
        yield vocabulary[int(token)]


@functools.partial(jax.jit, static_argnums=0)
def _next_token(
    net: Network, params: NetworkParams, token: chex.Array, state: Any, key: chex.PRNGKey, temperature: Any
) -> tuple[chex.Array, Any]:
    outputs, state = net.apply(params, token[None], state)
    scores = outputs[0].at[-1].set(-jnp.inf)  # [V], never the unknown character
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    return jnp.argmax(scores + temperature * noise), state
