"""Text, character by character: from a file to streams of tokens, the task to tell the next one, and text written."""

from __future__ import annotations

import bz2
import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import check_positive, check_scale
from jaxrnn.network.losses import softmax_cross_entropy
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.tasks.base import Published, Sequences, Task

TRAIN_FRACTION = 0.9
SHAKESPEARE = 1_115_394  # the characters of tiny Shakespeare, by which it is known
UNKNOWN = "\ufffd"  # stands for every character that the training part of a text does not have


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Holds a text cut in order into a training and a validation part, as tokens.

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

    def baselines(self) -> dict[str, float]:
        """Computes the bits per character of the validation part under models that need no network.

        uniform: log2 of the size of the vocabulary. unigram: cross-entropy under the training part's frequencies, every
        count plus one. bz2: the validation part compressed, by itself, and then as what it adds to the training part,
        of which bz2 sees what its block of 900 kB holds and finds long repeats word for word.
        """
        size = len(self.vocabulary)
        frequencies = np.bincount(self.train, minlength=size) + 1.0
        bits = -np.log2(frequencies / frequencies.sum())
        parts = (self.validation, self.train, np.concatenate([self.train, self.validation]))
        texts = ("".join(self.vocabulary[token] for token in tokens) for tokens in parts)
        alone, before, both = (8 * len(bz2.compress(text.encode(), 9)) for text in texts)
        return {
            "uniform": math.log2(size),
            "unigram": float(bits[self.validation].mean()),
            "bz2": alone / len(self.validation),
            "bz2, after the training text": (both - before) / len(self.validation),
        }


def load(path: str | pathlib.Path | None = None) -> Text:
    """Reads a text as tokens: the first 90 % of its characters to train on, the rest to validate.

    Args:
        path: a UTF-8 file, or a folder of which every such file is taken, in order of name; by default the language
            reference that CPython carries in `pydoc_data.topics`, about 0.46 million characters.

    Raises:
        ValueError: no such path, a pipe or a device, not UTF-8 text, a folder without text, fewer than 100 characters.

    >>> import jaxrnn.tasks.text
    >>> text = jaxrnn.tasks.text.load()
    >>> text.train.dtype, len(text.vocabulary) > 90, text.unseen
    (dtype('int32'), True, 0)
    """
    if path is None:
        from pydoc_data import topics

        return from_string("\n".join(topics.topics.values()), "pydoc_data.topics, the topics of Python's own help")
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return from_string(*_read_folder(path))
    if not path.exists():
        raise ValueError(f"data: there is no file or folder {str(path)!r}")
    if not path.is_file():
        raise ValueError(f"data: {str(path)!r} is a pipe or a device, and must be a file or a folder: it is read again")
    content = _decode(path)
    if content is None:
        raise ValueError(f"data: {str(path)!r} is not UTF-8 text: it is binary, or must be converted first")
    return from_string(content, str(path))


def from_string(content: str, source: str = "a string") -> Text:
    """Turns a text into tokens, see `load`."""
    if len(content) < 100:
        raise ValueError(f"data: {source} holds {len(content)} characters, too few to train on (100 at least)")
    cut = int(len(content) * TRAIN_FRACTION)
    vocabulary = "".join(sorted(set(content[:cut]) - {UNKNOWN})) + UNKNOWN
    tokens = encode(vocabulary, content)
    unseen = int(np.sum(tokens[cut:] == len(vocabulary) - 1))
    return Text(vocabulary, tokens[:cut], tokens[cut:], unseen, source)


def encode(vocabulary: str, text: str) -> np.ndarray:
    """Turns a text into tokens, int32 [N]: what is not in the vocabulary becomes its last character, U+FFFD."""
    index = {character: i for i, character in enumerate(vocabulary)}
    unknown = len(vocabulary) - 1
    return np.array([index.get(character, unknown) for character in text], np.int32)


def _read_folder(folder: pathlib.Path) -> tuple[str, str]:
    """Returns the content of all its files of text that are not hidden, and what was read, in words."""
    visible = (p for p in folder.rglob("*") if "/." not in f"/{p.relative_to(folder).as_posix()}")
    files = sorted(p for p in visible if p.is_file())
    contents = [content for content in map(_decode, files) if content]
    if not contents:
        raise ValueError(f"data: the folder {str(folder)!r} has no file of UTF-8 text (of {len(files)} files)")
    return "\n".join(contents), f"{folder} ({len(contents)} of {len(files)} files are text)"


def _decode(path: pathlib.Path) -> str | None:
    """Returns the content of a file, or None where it is not text."""
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in content else content


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """Cuts a text into B streams to be read side by side, T characters at a time, the state carried between.

    Each epoch cuts the text elsewhere: it is turned by a random offset that depends on the key and the epoch alone, so
    that the position within the training is one number, and a run resumes exactly from it.
    """

    tokens: np.ndarray
    T: int
    B: int
    key: chex.PRNGKey

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
        """Returns the number of batches in an epoch."""
        return (len(self.tokens) - 1) // (self.T * self.B)

    def batch(self, step: int) -> Sequences:
        """Returns the batch of a step, counted from 0."""
        epoch, chunk = divmod(step, self.chunks)
        return _epoch(self, epoch)[chunk]


@functools.lru_cache(maxsize=2)
def _epoch(streams: Streams, epoch: int) -> list[Sequences]:
    offset = int(jax.random.randint(jax.random.fold_in(streams.key, epoch), (), 0, len(streams.tokens)))
    return _cut(np.roll(streams.tokens, -offset), streams.B, streams.chunks * streams.T, streams.T)


def validation_batches(tokens: np.ndarray, B: int, T: int = 256) -> list[Sequences]:
    """Returns the validation part as B streams in chunks of T, without B - 1 characters at most, at its end."""
    B = min(B, len(tokens) - 1)
    return _cut(tokens, B, (len(tokens) - 1) // B, T)


def _cut(tokens: np.ndarray, B: int, length: int, T: int) -> list[Sequences]:
    """Cuts the first B * length + 1 tokens into B streams, and these into chunks of T steps."""
    streams = tokens[np.arange(B) * length + np.arange(length + 1)[:, None]]  # [length + 1, B]
    x, y = streams[:-1], streams[1:]
    return [Sequences(x[t : t + T], y[t : t + T], fresh=t == 0) for t in range(0, length, T)]


def sample(
    net: Network,
    params: NetworkParams,
    vocabulary: str,
    prompt: str | None = None,
    length: int = 500,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Draws characters from a network, one jitted step each, the state carried.

        s_t = f(s_{t-1}, x_t)        x_{t+1} ~ softmax(O_t / temperature)

    Args:
        net, params: a network over the vocabulary's tokens.
        vocabulary: the character of every token; the last one, the unknown one, is never drawn.
        prompt: what the text goes on from, at least one character; by default a new line, or the first character of a
            vocabulary without one.
        length: how many characters to draw.
        temperature: 1 draws from the network's own distribution, less sharpens it, 0 takes the likeliest.
        seed: for the draws.

    Raises:
        ValueError: an empty prompt, one with characters not in the vocabulary, a negative temperature or length.
    """
    if prompt is None:
        prompt = "\n" if "\n" in vocabulary else vocabulary[0]
    strange = sorted(set(prompt) - set(vocabulary[:-1]))
    if strange:
        raise ValueError(f"prompt has characters that the training text does not have: {' '.join(map(repr, strange))}")
    if not prompt:
        raise ValueError("prompt must have at least one character")
    check_scale("temperature", temperature)
    if length < 0:
        raise ValueError(f"length must not be negative, got {length}")

    def draw() -> Iterator[str]:
        key, state = jax.random.key(seed), net.initial_state()
        *before, token = encode(vocabulary, prompt)
        if before:
            state = jax.jit(net.apply)(params, np.array(before), state)[1]
        for i in range(length):
            token, state = _next_token(net, params, token, state, jax.random.fold_in(key, i), temperature)
            yield vocabulary[int(token)]

    return draw()  # what is wrong was told at the call, and not at the first character


@functools.partial(jax.jit, static_argnums=0)
def _next_token(
    net: Network, params: NetworkParams, token: chex.Array, state: Any, key: chex.PRNGKey, temperature: Any
) -> tuple[chex.Array, Any]:
    outputs, state = net.apply(params, token[None], state)
    scores = outputs[0].at[-1].set(-jnp.inf)  # [V], never the unknown character
    noise = jax.random.gumbel(key, scores.shape, scores.dtype)
    return jnp.argmax(scores + temperature * noise), state


class NextCharacter(Task):
    """Asks for the next character of a text."""

    name = "text"
    objective = staticmethod(softmax_cross_entropy)
    unit = "nats per character"
    further_units: ClassVar = {"bits per character": 1 / math.log(2)}
    tokens = True
    data_is = "a UTF-8 file or folder (left out: Python's language reference)"

    @functools.cached_property
    def text(self) -> Text:
        return load(self.data)

    @property
    def inputs(self) -> int:
        return len(self.text.vocabulary)

    outputs = inputs

    @property
    def vocabulary(self) -> str:
        return self.text.vocabulary

    @property
    def folder(self) -> str:
        return super().folder if self.data else "topics"

    @functools.cached_property
    def baselines(self) -> dict[str, float]:
        return {name: bits * math.log(2) for name, bits in self.text.baselines().items()}

    @property
    def published(self) -> list[Published]:
        figures = {"3 minutes of a CPU": 1.88, "3 minutes of an A100": 1.4697}
        of_shakespeare = [Published(figure, f"a transformer, nanoGPT, {name}") for name, figure in figures.items()]
        return of_shakespeare if len(self.text.train) + len(self.text.validation) == SHAKESPEARE else []

    def __post_init__(self) -> None:
        super().__post_init__()
        self._streams  # noqa: B018  # a text that is too short for them is told now, not at the first batch

    @functools.cached_property
    def _streams(self) -> Streams:
        key = jax.random.fold_in(jax.random.split(jax.random.key(self.seed))[0], 0)
        return Streams(self.text.train, self.chunk, self.batch_size, key)

    def batch(self, step: int) -> Sequences:
        return self._streams.batch(step)

    def validation(self) -> list[Sequences]:
        return validation_batches(self.text.validation, self.batch_size)

    def describe(self) -> list[str]:
        found = self.text
        return [
            f"Text: {found.source}",
            f"  {len(found.train):,} characters to train on, {len(found.validation):,} to validate, "
            f"{len(found.vocabulary) - 1} different, {found.unseen} of the validation part never seen in training",
        ]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.train.tobytes() + self.text.validation.tobytes()).hexdigest()

    def excerpt(self, steps: int, size: int, seed: int) -> Sequences:
        tokens = self.text.validation
        if len(tokens) <= steps + 1:
            raise ValueError(f"steps must be less than the {len(tokens)} characters to validate on, got {steps}")
        starts = np.random.default_rng(seed).integers(0, len(tokens) - steps - 1, size)
        pieces = tokens[starts + np.arange(steps + 1)[:, None]]  # [T + 1, B]
        return Sequences(pieces[:-1], pieces[1:])

    def picture(self, net: Network, params: NetworkParams) -> None:
        """Returns none: a text is read, not looked at."""

    def sample(self, net: Network, params: NetworkParams) -> str:
        """Returns 600 characters that the network has written."""
        return "".join(sample(net, params, self.vocabulary, length=600, temperature=0.8, seed=self.seed))
