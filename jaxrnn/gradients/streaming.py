"""The gradient of a sequence that fits no memory: in chunks from an iterator, with states spilled to host or disk."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.arguments import accumulation_dtype, cast_like, check_float
from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import decide
from jaxrnn.gradients.value_and_grad import both_passes
from jaxrnn.layer.bptt import check_recompute, zero_grads
from jaxrnn.layer.masking import Adjoint
from jaxrnn.network.network import Network, NetworkParams, Run, check_run, check_targets, starts
from jaxrnn.network.passes import Carry, Loss, Stack, Steps


class Chunk(NamedTuple):
    """Some steps of a sequence, as `jaxrnn.value_and_grad` takes a whole one."""

    inputs: Any  # [K, *batch, D], or tokens [K, *batch]
    targets: Any  # [K, *batch, ...]
    weights: Any = None  # [K, *batch]; either all chunks have them or none
    mask: Any = None  # [K, *batch]
    reset: Any = None  # [K, *batch]


def value_and_grad_of_chunks(
    net: Network,
    *,
    directory: str | pathlib.Path | None = None,
    recompute: bool | str = False,
    compute_dtype: Any = None,
    return_state: bool = False,
) -> Callable[..., tuple[Any, NetworkParams]]:
    """The loss of a network over a sequence of any length, and its exact gradient: `jaxrnn.value_and_grad` in pieces.

        forward:  s_K, s_2K, ..  from chunk to chunk; each chunk, and the state before it, goes to the host or to disk
        reverse, the last chunk first:  both passes over the chunk, with dE/ds through all later ones carried in

    What a device holds is one chunk and its reverse pass, however many chunks there are. Everything is computed
    forward twice. The function returned runs a loop on the host: it is not to be jitted, for it jits its two passes
    itself. They compile once for every length of a chunk, and once more for the first: let all have one length.

    Where the sequence fits, `jaxrnn.value_and_grad(net, recompute=True)` does the same without leaving the device.

    Args:
        net: the network; without dropout, bidirectional layers or `last_step`.
        directory: where chunks and states are spilled to, as files that are removed at the end; memory of the host
            where None.
        recompute: within a chunk, as for `jaxrnn.value_and_grad`.
        compute_dtype: as for `jaxrnn.value_and_grad`.
        return_state: whether to return the final state as well.

    Returns:
        A function `(params, chunks, state=None) -> (E, grads)`, or with `return_state` `-> ((E, final), grads)`:

        params: as `net.init` gives them.
        chunks: an iterable of `Chunk`; it is read once, in order, and each chunk is copied, so that the iterable may
            fill the same arrays again. By default every unmasked step of all chunks counts alike.
        state: as for `jaxrnn.value_and_grad`.

    Raises:
        TypeError: net is not a Network, or directory no path; from the function returned, something else than a
            `Chunk`.
        ValueError: a network that needs all of a sequence at once; a directory that is none; from the function
            returned, no chunks, chunks of different batches, weights in some chunks only, and all that
            `jaxrnn.value_and_grad` says of a chunk outside jit. A chunk is checked before the next one is read.

    >>> import jax, jax.numpy as jnp, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.Elman(65, 32),), jaxrnn.Readout(32, 65), jaxrnn.softmax_cross_entropy)
    >>> tokens = jax.random.randint(jax.random.key(1), (1001,), 0, 65)
    >>> chunks = (jaxrnn.Chunk(tokens[t : t + 100], tokens[t + 1 : t + 101]) for t in range(0, 1000, 100))
    >>> loss, grads = jaxrnn.value_and_grad_of_chunks(net)(net.init(jax.random.key(0)), chunks)
    >>> grads.layers[0].W.shape
    (32, 32)
    """
    _check_network(net)
    check_recompute(recompute)
    if compute_dtype is not None:
        check_float("compute_dtype", compute_dtype)
    _check_directory(directory)
    passes = _Passes(net, recompute, None if compute_dtype is None else jnp.dtype(compute_dtype))

    def loss_and_gradient(params: NetworkParams, chunks: Iterable[Chunk], state: Any = None) -> tuple[Any, Any]:
        with _spilled(directory) as spilled:
            count = 0
            for chunk in chunks:
                chunk = _on_host(chunk, spilled)
                # Not held by a name: while the next chunk is read, this one is to leave the device.
                start, (state, steps) = state, _ahead(passes, params, _on_device(passes, params, chunk, state), state)
                spilled.append((chunk, start))
                count += int(steps)
            if not len(spilled):
                raise ValueError("chunks must hold at least one chunk, got none; was the iterator used up before?")
            E, grads = _back(passes, params, spilled, count)
        return ((E, state) if return_state else E), grads

    return loss_and_gradient


class _Passes(NamedTuple):
    """What both passes of a chunk depend on besides arrays: equal ones compile once."""

    net: Network
    recompute: bool | str
    compute_dtype: Any


def _run(passes: _Passes, params: NetworkParams, chunk: Chunk, state: Any) -> Run:
    return check_run(passes.net, params, chunk.inputs, state, chunk.mask, chunk.reset, None, passes.compute_dtype)


@functools.partial(jax.jit, static_argnums=0)
def _ahead(passes: _Passes, params: NetworkParams, chunk: Chunk, state: Any) -> tuple[tuple[State, ...], Any]:
    """The state after a chunk, and how many of its steps are real."""
    run = _run(passes, params, chunk, state)
    before, initial = starts(passes.net, run, params.state)
    stack = Stack(passes.net, params, run, initial, None)
    return stack.advance(before, Steps(run.inputs, run.breaks, run.kept.between))[0], run.count


def _back(passes: _Passes, params: NetworkParams, spilled: _Spilled, count: int) -> tuple[Any, NetworkParams]:
    """The loss and the gradients: all chunks, the last one first."""
    nothing = jax.eval_shape(functools.partial(_nothing, passes), params, *spilled[-1])
    carry = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
    for i in reversed(range(len(spilled))):
        # What is dispatched has its arguments on the device: without waiting, chunks would gather there.
        carry = jax.block_until_ready(_chunk_back(passes, params, *spilled[i], carry, 1 / max(count, 1)))
    return carry.E, cast_like(carry.grads, params)


@functools.partial(jax.jit, static_argnums=0)
def _chunk_back(passes: _Passes, params: NetworkParams, chunk: Chunk, state: Any, carry: Carry, share: Any) -> Carry:
    """Both passes over one chunk: the carry before it."""
    run = _run(passes, params, chunk, state)
    weights = chunk.weights
    if weights is None:
        weights = jnp.full(run.steps, share, accumulation_dtype(run.dtype))
    loss = Loss(passes.net, params, run, chunk.targets, weights)
    (before, initial), to_learned = jax.vjp(functools.partial(starts, passes.net, run), params.state)
    adjoints = tuple(
        Adjoint(after.state, jax.tree.map(jnp.zeros_like, s_0))
        for after, s_0 in zip(carry.adjoints, initial, strict=True)
    )
    plan = decide(passes.net, run.inputs, run.dtype, recompute=passes.recompute)
    steps = Steps(run.inputs, run.breaks, run.kept.between, loss.steps)
    stack = Stack(passes.net, params, run, initial, loss)
    _, carry, _ = both_passes(stack, plan, before, carry._replace(adjoints=adjoints), steps)
    # Through the first step to a learned s_0 only where no state was given, which is so in the first chunk alone.
    (learned,) = to_learned(tuple(zip(*carry.adjoints, strict=True)))
    grads = carry.grads._replace(state=jax.tree.map(jnp.add, carry.grads.state, learned))
    return Carry(carry.E, grads, _states_only(carry.adjoints))


def _nothing(passes: _Passes, params: NetworkParams, chunk: Chunk, state: Any) -> Carry:
    """The carry behind the last chunk, for its shapes."""
    run = _run(passes, params, chunk, state)
    E = jnp.zeros((), accumulation_dtype(run.dtype))
    before, _ = starts(passes.net, run, params.state)
    return Carry(E, zero_grads(params), tuple(Adjoint(s, None) for s in before))


def _states_only(adjoints: tuple[Adjoint, ...]) -> tuple[Adjoint, ...]:
    return tuple(adjoint._replace(initial=None) for adjoint in adjoints)


def _check_network(net: Network) -> None:
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    if net.bidirectional or net.last_step:
        what = "bidirectional layers" if net.bidirectional else "last_step"
        raise ValueError(f"net has {what}, which need all of a sequence: see recompute in jaxrnn.value_and_grad")
    if net.dropout or net.recurrent_dropout:
        raise ValueError("net must not have dropout: dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)")


def _check_directory(directory: Any) -> None:
    if directory is None:
        return
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory must be a path, got {type(directory).__name__}")
    if not pathlib.Path(directory).is_dir():
        raise ValueError(f"directory must be a folder that exists, got {str(directory)!r}")


def _on_host(chunk: Any, spilled: _Spilled) -> Chunk:
    """A copy of the chunk, as arrays of the host; raise unless it goes with those before it."""
    if not isinstance(chunk, Chunk):
        raise TypeError(f"chunks must give jaxrnn.Chunk(inputs, targets, ...), got {type(chunk).__name__}")
    # A copy, because iterators are free to fill the arrays of one chunk with the next.
    chunk = Chunk(*(None if array is None else np.array(array) for array in chunk))
    if len(spilled):
        first, here = spilled[0][0], f"chunk {len(spilled)}"
        if (chunk.inputs.shape[1:], chunk.inputs.dtype) != (first.inputs.shape[1:], first.inputs.dtype):
            raise ValueError(
                f"chunks must agree in all but their length: {here} has inputs {chunk.inputs.shape} of "
                f"{chunk.inputs.dtype}, the first {first.inputs.shape} of {first.inputs.dtype}"
            )
        if (chunk.weights is None) != (first.weights is None):
            raise ValueError(f"chunks must all have weights, or none: {here} differs from the first")
    return chunk


def _on_device(passes: _Passes, params: NetworkParams, chunk: Chunk, state: Any) -> Chunk:
    """The chunk as arrays of the device; raise unless its values are right too, which can be read outside jit only."""
    chunk = jax.tree.map(jnp.asarray, chunk)
    check_targets(passes.net, _run(passes, params, chunk, state), chunk.targets, chunk.weights)
    return chunk


class _Spilled:
    """Trees of arrays one after the other: in memory of the host, or as files that are read when they are needed."""

    def __init__(self, folder: pathlib.Path | None) -> None:
        self.folder = folder
        self.trees: list[Any] = []

    def __len__(self) -> int:
        return len(self.trees)

    def append(self, tree: Any) -> None:
        """Put a tree behind the others, off the device."""
        tree = jax.tree.map(np.asarray, tree)
        if self.folder is not None:
            for i, leaf in enumerate(jax.tree.leaves(tree)):
                np.save(self._path(len(self.trees), i), leaf, allow_pickle=False)
            tree = jax.tree.map(lambda leaf: leaf.dtype, tree)
        self.trees.append(tree)

    def __getitem__(self, index: int) -> Any:
        tree = self.trees[index]
        if self.folder is None:
            return tree
        index %= len(self.trees)
        dtypes, structure = jax.tree.flatten(tree)
        # A file of bfloat16, which is no dtype of NumPy's own, does not say what its bytes are.
        leaves = [np.load(self._path(index, i), mmap_mode="r").view(dtype) for i, dtype in enumerate(dtypes)]
        return jax.tree.unflatten(structure, leaves)

    def _path(self, index: int, leaf: int) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"{index}-{leaf}.npy"


@contextlib.contextmanager
def _spilled(directory: str | pathlib.Path | None) -> Iterator[_Spilled]:
    if directory is None:
        yield _Spilled(None)
        return
    with tempfile.TemporaryDirectory(dir=directory, prefix="jaxrnn-") as folder:
        yield _Spilled(pathlib.Path(folder))
