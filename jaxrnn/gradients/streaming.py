"""The gradient of a sequence that fits no memory: in chunks from an iterator, with states spilled to host or disk."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array, ArrayTree
from jax.typing import DTypeLike

from jaxrnn.arguments import as_array, batch_shape, cast_like, check_float, check_positive
from jaxrnn.cells.base import State
from jaxrnn.gradients.plan import decide
from jaxrnn.gradients.whole import skim, whole
from jaxrnn.layer.masking import Adjoint
from jaxrnn.layer.prepared import Recompute, ScanOptions, as_recompute
from jaxrnn.network.batch import Batch as Chunk
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.setup import Setup, Sums, checked, set_up


def value_and_grad_of_chunks(
    net: Network,
    *,
    directory: str | pathlib.Path | None = None,
    recompute: bool | str = False,
    compute_dtype: DTypeLike | None = None,
    unroll: int = 1,
    return_state: bool = False,
) -> Callable[..., tuple[Any, NetworkParams]]:
    """Computes the loss of a network over a sequence of any length, and its exact gradient, in pieces.

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
        compute_dtype, unroll: as for `jaxrnn.value_and_grad`.
        return_state: whether to return the final state as well.

    Returns:
        A function `(params, chunks, state=None) -> (E, grads)`, or with `return_state` `-> ((E, final), grads)`:

        params: as `net.init` gives them.
        chunks: an iterable of `Chunk`; it is read once, in order, and each chunk is copied, so that the iterable may
            fill the same arrays again. Arrays that are spread over devices come back spread alike. By default every
            unmasked step of all chunks counts alike.
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
    if compute_dtype is not None:
        compute_dtype = check_float("compute_dtype", compute_dtype)
    if directory is not None and not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"directory must be a path, got {type(directory).__name__}")
    if directory is not None and not pathlib.Path(directory).is_dir():
        raise ValueError(f"directory must be a folder that exists, got {str(directory)!r}")
    check_positive("unroll", unroll)
    passes = _Passes(net, as_recompute(recompute), compute_dtype, unroll)

    def loss_and_gradient(
        params: NetworkParams, chunks: Iterable[Chunk], state: tuple[State, ...] | None = None
    ) -> tuple[Any, NetworkParams]:
        if isinstance(chunks, Chunk):
            raise TypeError("chunks must be an iterable of jaxrnn.Chunk, got a single one: put it into a list")
        with nullcontext() if directory is None else TemporaryDirectory(dir=directory, prefix="jaxrnn-") as folder:
            spilled: list[Callable[[], tuple]] = []
            count = 0
            for chunk in chunks:
                chunk = _checked(chunk, spilled)
                # Not held by a name: while the next chunk is read, this one is to leave the device.
                start, (state, steps) = state, _ahead(passes, params, _on_device(passes, params, chunk, state), state)
                spilled.append(_spill((chunk, start), folder, len(spilled)))
                count += int(steps)
                del chunk
            if not spilled:
                raise ValueError("chunks must hold at least one chunk, got none; was the iterator used up before?")
            sums = _back(passes, params, spilled, count)
        return ((sums.E, state) if return_state else sums.E), cast_like(sums.grads, params)

    return loss_and_gradient


class _Passes(NamedTuple):
    """Holds what both passes of a chunk depend on besides arrays: equal ones compile once."""

    net: Network
    recompute: Recompute
    compute_dtype: Any
    unroll: int

    def set_up(self, params: NetworkParams, chunk: Chunk, state: tuple[State, ...] | None) -> Setup:
        """Makes a chunk ready."""
        call = checked(self.net, params, chunk, state, compute_dtype=self.compute_dtype)
        return set_up(self.net, params, call, ScanOptions(recompute=self.recompute, unroll=self.unroll))


@functools.partial(jax.jit, static_argnums=0)
def _ahead(
    passes: _Passes, params: NetworkParams, chunk: Chunk, state: tuple[State, ...] | None
) -> tuple[tuple[State, ...], Array | int]:
    """Computes the states after a chunk, and counts its steps that are not masked."""
    setup = passes.set_up(params, chunk._replace(targets=None), state)
    return skim(setup.stack, setup.steps.shape[0], setup.state, setup.steps), setup.call.real_steps()


def _back(passes: _Passes, params: NetworkParams, spilled: list[Callable[[], tuple]], count: int) -> Sums:
    """Sums the loss and the gradients of all chunks, the last one first."""
    nothing = jax.eval_shape(lambda *chunk: _states_only(passes.set_up(params, *chunk).zeros), *spilled[-1]())
    sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
    for read in reversed(spilled):
        # What is dispatched has its arguments on the device: without waiting, chunks would gather there.
        sums = jax.block_until_ready(_chunk_back(passes, params, *read(), sums, 1 / max(count, 1)))
    return sums


@functools.partial(jax.jit, static_argnums=0)
def _chunk_back(
    passes: _Passes, params: NetworkParams, chunk: Chunk, state: tuple[State, ...] | None, sums: Sums, share: float
) -> Sums:
    """Takes both passes through one chunk: returns the sums before it."""
    if chunk.weights is None:
        steps = chunk.inputs.shape[:1] + batch_shape(chunk.inputs)
        chunk = chunk._replace(weights=jnp.full(steps, share, sums.E.dtype))
    setup = passes.set_up(params, chunk, state)
    adjoints = tuple(
        after._replace(initial=zero.initial) for after, zero in zip(sums.adjoints, setup.zeros.adjoints, strict=True)
    )
    plan = decide(passes.net, setup.steps.inputs, setup.call.dtype, recompute=passes.recompute)
    found = whole(setup, plan, setup.state, sums._replace(adjoints=adjoints), setup.steps).sums
    # Through the first step to a learned s_0 only where no state was given, which is so in the first chunk alone.
    learned = jax.tree.map(jnp.add, found.grads.state, setup.learned_grads(found.adjoints))
    return _states_only(found._replace(grads=found.grads._replace(state=learned)))


def _states_only(sums: Sums) -> Sums:
    """Drops what reached the initial states: it is in the gradients."""
    return sums._replace(adjoints=tuple(Adjoint(adjoint.state, None) for adjoint in sums.adjoints))


def _check_network(net: Network) -> None:
    if not isinstance(net, Network):
        raise TypeError(f"net must be a jaxrnn.Network, got {type(net).__name__}")
    if net.bidirectional or net.last_step:
        what = "bidirectional layers" if net.bidirectional else "last_step"
        raise ValueError(f"net has {what}, which need all of a sequence: see recompute in jaxrnn.value_and_grad")
    if net.dropout or net.recurrent_dropout:
        raise ValueError("net must not have dropout: dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)")


def _checked(chunk: Chunk, spilled: list[Callable[[], tuple]]) -> Chunk:
    """Copies what of the chunk is on the host; raises unless it goes with those before it."""
    if not isinstance(chunk, Chunk):
        raise TypeError(f"chunks must give jaxrnn.Chunk(inputs, targets, ...), got {type(chunk).__name__}")
    if chunk.targets is None:
        raise ValueError(f"chunks must have targets, got {chunk}")
    # A copy, because iterators are free to fill the arrays of one chunk with the next.
    chunk = Chunk(*(x if x is None or isinstance(x, jax.Array) else np.array(x) for x in chunk))
    if spilled:
        (first, _), here = spilled[0](), f"chunk {len(spilled)}"
        if (chunk.inputs.shape[1:], chunk.inputs.dtype) != (first.inputs.shape[1:], first.inputs.dtype):
            raise ValueError(
                f"chunks must agree in all but their length: {here} has inputs {chunk.inputs.shape} of "
                f"{chunk.inputs.dtype}, the first {first.inputs.shape} of {first.inputs.dtype}"
            )
        if (chunk.weights is None) != (first.weights is None):
            raise ValueError(f"chunks must all have weights, or none: {here} differs from the first")
    return chunk


def _on_device(passes: _Passes, params: NetworkParams, chunk: Chunk, state: tuple[State, ...] | None) -> Chunk:
    """Copies the chunk to the device; raises unless its values are right too, which can be read outside jit only."""
    chunk = Chunk(*(None if x is None else as_array(name, x) for name, x in chunk._asdict().items()))
    passes.set_up(params, chunk, state)
    return chunk


def _spill(tree: ArrayTree, folder: str | None, index: int) -> Callable[[], ArrayTree]:
    """Takes a tree off the devices, to memory of the host or to files; returns what reads it back, spread as it was."""
    leaves, structure = jax.tree.flatten(tree)
    spread = [leaf.sharding if isinstance(leaf, jax.Array) and len(leaf.devices()) > 1 else None for leaf in leaves]
    kept = [_keep(np.asarray(leaf), folder and f"{folder}/{index}-{i}.npy") for i, leaf in enumerate(leaves)]

    def read() -> ArrayTree:
        pairs = [(again(), place) for again, place in zip(kept, spread, strict=True)]
        return jax.tree.unflatten(structure, [x if place is None else jax.device_put(x, place) for x, place in pairs])

    return read


def _keep(array: np.ndarray, path: str | None) -> Callable[[], np.ndarray]:
    """Keeps an array in memory of the host, or in a file; returns what reads it back."""
    if path is None:
        return lambda: array
    np.save(path, array, allow_pickle=False)
    dtype = array.dtype  # a file of bfloat16, which is no dtype of NumPy's own, does not say what its bytes are
    return lambda: np.load(path, mmap_mode="r").view(dtype)
