"""Text, character by character: from a file to streams of tokens, and from a trained network back to text."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxrnn.arguments import check_positive
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.sequences import Sequences, Task

UNKNOWN = "\ufffd"  # stands for every character that the training part does not have
TRAIN_FRACTION = 0.9


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """A text cut in order into a training and a validation part, as tokens.

    Fields:
        vocabulary: the characters of the training part in order of code point, then U+FFFD for all others.
        train, validation: tokens, int32 [N].
        unseen: how many characters of the validation part are not in the vocabulary.
        source: what was read, in words.
    """

    vocabulary: str
    train: np.ndarray
    validation: np.ndarray
    unseen: int
    source: str

    def encode(self, text: str) -> np.ndarray:
        """Tokens of a text, int32 [N]."""
        return encode(self.vocabulary, text)

    def yardsticks(self) -> dict[str, float]:
        """Bits per character of the validation part under models that need no network.

        uniform: log2 of the size of the vocabulary. unigram: cross-entropy under the training part's frequencies, every
        count plus one. bz2: the validation part compressed, by itself, and then as what it adds to the training part,
        of which bz2 sees what its block of 900 kB holds and finds long repeats word for word.
        """
        size = len(self.vocabulary)
        frequencies = np.bincount(self.train, minlength=size) + 1.0
        bits = -np.log2(frequencies / frequencies.sum())
        alone, before = _compressed(self, self.validation), _compressed(self, self.train)
        both = _compressed(self, np.concatenate([self.train, self.validation]))
        characters = len(self.validation)
        return {
            "uniform": math.log2(size),
            "unigram": float(bits[self.validation].mean()),
            "bz2": 8 * alone / characters,
            "bz2, after the training text": 8 * (both - before) / characters,
        }


def _compressed(text: Text, tokens: np.ndarray) -> int:
    return len(bz2.compress("".join(text.vocabulary[token] for token in tokens).encode(), 9))


def encode(vocabulary: str, text: str) -> np.ndarray:
    """Tokens of a text, int32 [N]: what is not in the vocabulary becomes its last character, U+FFFD."""
    index = {character: i for i, character in enumerate(vocabulary)}
    unknown = len(vocabulary) - 1
    return np.array([index.get(character, unknown) for character in text], np.int32)


def load(path: str | pathlib.Path | None = None) -> Text:
    """A text as tokens: the first 90 % of its characters to train on, the rest to validate.

    Args:
        path: a UTF-8 file, or a folder of which every such file is taken, in order of name; by default the language
            reference that CPython carries in `pydoc_data.topics`, about 0.46 million characters.

    Raises:
        ValueError: no such path, not UTF-8 text, a folder without text, fewer than 100 characters.

    >>> import jaxrnn.tasks.text
    >>> text = jaxrnn.tasks.text.load()
    >>> text.train.dtype, len(text.vocabulary) > 90, text.unseen
    (dtype('int32'), True, 0)
    """
    if path is None:
        from pydoc_data import topics

        return from_string("\n".join(topics.topics.values()), "pydoc_data.topics, the topics of Python's own help")
    path = pathlib.Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"data: there is no file or folder {str(path)!r}")
    if path.is_dir():
        return from_string(*_read_folder(path))
    content = _decode(path)
    if content is None:
        raise ValueError(f"data: {str(path)!r} is not UTF-8 text: it is binary, or must be converted first")
    return from_string(content, str(path))


def from_string(content: str, source: str = "a string") -> Text:
    """A text as tokens, see `load`."""
    if len(content) < 100:
        raise ValueError(
            f"data: {source} holds {len(content)} characters, too few to train and validate (100 at least)"
        )
    cut = int(len(content) * TRAIN_FRACTION)
    vocabulary = "".join(sorted(set(content[:cut]) - {UNKNOWN})) + UNKNOWN
    tokens = encode(vocabulary, content)
    unseen = int(np.sum(tokens[cut:] == len(vocabulary) - 1))
    return Text(vocabulary, tokens[:cut], tokens[cut:], unseen, source)


def _read_folder(folder: pathlib.Path) -> tuple[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder)))
    contents = [content for content in map(_decode, files) if content]
    if not contents:
        raise ValueError(f"data: the folder {str(folder)!r} has no file of UTF-8 text (of {len(files)} files)")
    return "\n".join(contents), f"{folder} ({len(contents)} of {len(files)} files are text)"


def _hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _decode(path: pathlib.Path) -> str | None:
    """The content of a file, or None where it is not text."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in content else content


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """Contiguous streams: the text cut into B pieces read side by side, T characters at a time, state carried between.

    Each epoch cuts the text elsewhere: it is turned by a random offset that depends on the key and the epoch alone, so
    that the position within the training is one number, and a run resumes exactly from it.
    """

    tokens: np.ndarray
    T: int
    B: int
    key: Array

    def __post_init__(self) -> None:
        check_positive("chunk", self.T)
        check_positive("batch", self.B)
        if len(self.tokens) < self.T * self.B + 1:
            raise ValueError(
                f"chunk x batch is {self.T} x {self.B} = {self.T * self.B}, but the training text has only "
                f"{len(self.tokens)} characters; make chunk or batch smaller"
            )

    @property
    def chunks(self) -> int:
        """The number of batches in an epoch."""
        return (len(self.tokens) - 1) // (self.T * self.B)

    def batch(self, step: int) -> Sequences:
        """The batch of a step, counted from 0."""
        epoch, chunk = divmod(step, self.chunks)
        window = self._epoch(epoch)[:, chunk * self.T : (chunk + 1) * self.T + 1].T
        return Sequences(window[:-1], window[1:], fresh=chunk == 0)

    def _epoch(self, epoch: int) -> np.ndarray:
        """The streams of an epoch, each with one character of the next, [B, chunks * T + 1]."""
        return _turned(self, epoch)


@functools.lru_cache(maxsize=2)
def _turned(streams: Streams, epoch: int) -> np.ndarray:
    offset = int(jax.random.randint(jax.random.fold_in(streams.key, epoch), (), 0, len(streams.tokens)))
    return cut_streams(np.roll(streams.tokens, -offset), streams.B, streams.chunks * streams.T)


def cut_streams(tokens: np.ndarray, B: int, length: int) -> np.ndarray:
    """The first B * length + 1 tokens as B streams of `length`, each with the one that follows: [B, length + 1]."""
    starts = np.arange(B)[:, None] * length
    return tokens[starts + np.arange(length + 1)]


def validation_batches(tokens: np.ndarray, B: int, T: int = 256) -> Iterator[Sequences]:
    """The whole validation part once, as B streams in chunks of T; at most B - 1 characters at the end are left out."""
    B = min(B, len(tokens) - 1)
    length = (len(tokens) - 1) // B
    streams = cut_streams(tokens, B, length)
    for start in range(0, length, T):
        window = streams[:, start : min(start + T, length) + 1].T
        yield Sequences(window[:-1], window[1:], fresh=start == 0)


def task(content: Text, chunk: int, size: int, key: Array) -> Task:
    """To tell the next character of a text."""
    streams = Streams(content.train, chunk, size, key)
    V = len(content.vocabulary)
    return Task(
        name="text",
        inputs=V,
        outputs=V,
        objective=softmax_cross_entropy,
        unit="nats per character",
        batch=streams.batch,
        validation=lambda: validation_batches(content.validation, size),
        baselines={name: bits * math.log(2) for name, bits in content.yardsticks().items()},
        tokens=True,
    )


def sample(
    net: Network,
    params: NetworkParams,
    vocabulary: str,
    prompt: str = "\n",
    length: int = 500,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Characters drawn from a network, one jitted step each, the state carried.

        s_t = f(s_{t-1}, x_t)        x_{t+1} ~ softmax(O_t / temperature)

    Args:
        net, params: a network over the vocabulary's tokens.
        vocabulary: as `Text` has it; its last character, the unknown one, is never drawn.
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
    net: Network, params: NetworkParams, token: Array, state: Any, key: Array, temperature: Any
) -> tuple[Array, Any]:
    outputs, state = net.apply(params, token[None], state)
    scores = outputs[0].at[-1].set(-jnp.inf)  # [V], never the unknown character
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    return jnp.argmax(scores + temperature * noise), state
