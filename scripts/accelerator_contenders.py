"""Contenders of accelerator.py: ways to the loss and gradient of one layer with a readout, and how each gradient reads.

A way that cannot be gone here raises, and says why: a library that is not installed, a device that is none of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import bench
import jax
import jax.numpy as jnp
from bench import Shape
from bench_peers import mean_error

import jaxrnn
from jaxrnn import interop


class Case(NamedTuple):
    """Holds one way to a loss and its gradient, and the same problem as one of jaxrnn, for the truth."""

    function: Callable[..., tuple[Any, Any]]  # (*arguments) -> (loss, grads)
    arguments: tuple
    net: jaxrnn.Network
    given: tuple  # params, inputs and targets of the network
    as_ours: Callable[[Any], Any] = lambda grads: grads  # its grads -> those of the params; None for what it has not
    compiles: bool = True  # whether jax compiles it


def by_hand(cell: str, shape: Shape, segments: int = 0, **options: Any) -> Case:
    """Takes `jaxrnn.value_and_grad`, with so many segments where they are given."""
    net, given = bench.problem(cell, shape)
    if segments:
        options["segment"] = -(-shape.T // segments)
    return Case(jaxrnn.value_and_grad(net, **options), given[:3], net, given[:3])


def by_layer(cell: str, shape: Shape, run: Callable[..., tuple]) -> Case:
    """Takes `jax.grad` of a loss around a layer that is run by `jaxrnn.unroll` or `jaxrnn.deer`."""
    net, given = bench.problem(cell, shape)

    def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        hidden = run(net.layers[0], params.layers[0], inputs)[0]
        return mean_error(hidden @ params.readout.V.T + params.readout.c, targets)

    return Case(jax.value_and_grad(loss), given[:3], net, given[:3])


def by_autodiff(cell: str, shape: Shape, hoisted: bool = True) -> Case:
    """Takes `jax.grad` of a plain scan, with U x_t + b before the loop or within it."""
    net, given = bench.problem(cell, shape)
    function = jax.value_and_grad(functools.partial(bench.plain_loss, net, hoisted=hoisted))
    return Case(function, given[:3], net, given[:3])


def by_flax(cell: str, shape: Shape) -> Case:
    """Takes `jax.grad` through `nnx.RNN`."""
    import bench_flax
    from flax import nnx

    name = {"elman": "SimpleCell", "gru": "GRUCell", "lstm": "OptimizedLSTMCell"}[cell]
    net, params = bench_flax.network(name, shape)
    function, arguments = bench_flax.through_flax(nnx.RNN, name, shape, True)

    def as_ours(grads: Any) -> Any:
        layer, readout = nnx.to_pure_dict(grads).values()
        weights = params.readout._replace(V=readout["kernel"].T, c=readout["bias"])
        own: Any = interop.from_flax(name, layer)[1]  # type: ignore[arg-type]
        own = own._replace(d=None) if cell == "gru" else own  # flax has no such bias
        return params._replace(layers=(own,), readout=weights)

    return Case(function, arguments, net, (params, *bench_flax.data(shape, True)), as_ours)


def by_cudnn(cell: str, shape: Shape) -> Case:
    """Takes the LSTM of cuDNN, all that `jax.experimental.rnn` has; it wants the batch first."""
    if jax.default_backend() != "gpu" or "cuda" not in jax.devices()[0].client.platform_version:
        raise RuntimeError(f"it needs a device with CUDA, and this is {jax.devices()[0].device_kind}")
    return cudnn_lstm(shape)


def cudnn_lstm(shape: Shape) -> Case:
    """Makes the case of `jax.experimental.rnn`, whose weights lie in one array: U, W, b, and a second b, here zero."""
    from jax.experimental import rnn

    net, (params, inputs, targets, *_) = bench.problem("lstm", shape)
    zeros = jnp.zeros((1, shape.B, shape.H))
    lengths = jnp.full(shape.B, shape.T, jnp.int32)

    def loss(weights: tuple[jax.Array, Any], inputs: jax.Array, targets: jax.Array) -> jax.Array:
        flat, readout = weights
        options = (shape.D, shape.H, 1, 0.0, False)  # of a rule of custom_vjp, which takes them by their places
        hidden = rnn.lstm(inputs, zeros, zeros, flat, lengths, *options)[0]  # [B, T, H]
        return mean_error(hidden @ readout.V.T + readout.c, targets)

    def as_ours(grads: tuple[jax.Array, Any]) -> Any:
        U, W, b, _ = (part[0] for part in rnn.unpack_lstm_weights(grads[0], shape.D, shape.H, 1, False))
        return params._replace(layers=(params.layers[0]._replace(U=U, W=W, b=b),), readout=grads[1])

    U, W, b = params.layers[0]
    flat = jnp.concatenate([U.ravel(), W.ravel(), b, jnp.zeros_like(b)])
    arguments = (flat, params.readout), jnp.swapaxes(inputs, 0, 1), targets.T
    return Case(jax.value_and_grad(loss), arguments, net, (params, inputs, targets), as_ours)


def by_torch(cell: str, shape: Shape) -> Case:
    """Takes torch's own layer, which is that of cuDNN on CUDA."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("torch finds no device with CUDA")
    return torch_layer(cell, shape, "cuda")


def torch_layer(cell: str, shape: Shape, device: str) -> Case:
    """Makes the case of torch's own layer on one of its devices."""
    import torch

    layer = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
    net, (params, inputs, targets, *_) = bench.problem(cell, shape)
    recurrent, readout = layer(shape.D, shape.H).to(device), torch.nn.Linear(shape.H, shape.V).to(device)
    weights = interop.to_torch(net.layers, jax.device_get(params.layers))
    recurrent.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    readout.load_state_dict({"weight": _tensor(params.readout.V), "bias": _tensor(params.readout.c)})
    named = {**dict(recurrent.named_parameters()), **dict(readout.named_parameters(prefix="readout"))}
    xs, labels = _tensor(inputs).to(device), _tensor(targets).long().to(device)

    def function() -> tuple[Any, Any]:
        outputs = readout(recurrent(xs)[0])
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten())
        grads = torch.autograd.grad(loss, list(named.values()))
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.item(), dict(zip(named, grads, strict=True))

    def as_ours(grads: dict[str, Any]) -> Any:
        found = {name: grad.detach().cpu().numpy() for name, grad in grads.items()}
        V, c = found.pop("readout.weight"), found.pop("readout.bias")
        found["bias_hh_l0"][: 2 * shape.H if cell == "gru" else None] = 0  # of two biases that are added, one counts
        (own,) = interop.from_torch(found)[1]
        return params._replace(layers=(own,), readout=params.readout._replace(V=V, c=c))

    return Case(function, (), net, (params, inputs, targets), as_ours, compiles=False)


def _tensor(array: jax.Array) -> Any:
    import torch

    return torch.tensor(jax.device_get(array))


class Contender(NamedTuple):
    """Says how a case is made, and with what precision of its products."""

    make: Callable[[str, Shape], Case]
    precision: str | None = None  # of `jax.default_matmul_precision`; None for what is set
    rough: bool = False  # whether it computes in bfloat16 everywhere


def _hand(**options: Any) -> Contender:
    return Contender(functools.partial(by_hand, **options), rough="compute_dtype" in options)


def _layer(run: Callable[..., tuple], **options: Any) -> Contender:
    return Contender(functools.partial(by_layer, run=functools.partial(run, **options)))


JAX_GRAD = "jax.grad"
# First the plain question, everything at its defaults.
PLAIN = {
    "jaxrnn": _hand(),
    JAX_GRAD: Contender(by_autodiff),
    "jax.grad, U x_t in the loop": Contender(functools.partial(by_autodiff, hoisted=False)),
    "flax nnx.RNN": Contender(by_flax),
    "cuDNN in jax": Contender(by_cudnn),
    "cuDNN in torch": Contender(by_torch),
}
# Then the options of jaxrnn around their defaults, one at a time, the likeliest to matter first.
OPTIONS = {
    "unroll=4": _hand(unroll=4),
    "bfloat16": _hand(compute_dtype=jnp.bfloat16),
    "highest": Contender(by_hand, "highest"),
    "jax.grad, highest": Contender(by_autodiff, "highest"),
    "cuDNN in jax, highest": Contender(by_cudnn, "highest"),
    "unroll=8": _hand(unroll=8),
    "gates anew": _hand(recompute="gates"),
    "states anew": _hand(recompute="states"),
    "1 segment": _hand(segments=1),
    "4 segments": _hand(segments=4),
    "jaxrnn.unroll": _layer(jaxrnn.unroll),
    "associative": _layer(jaxrnn.unroll, backward="associative"),
    "deer": _layer(jaxrnn.deer),
    "deer, associative": _layer(jaxrnn.deer, backward="associative"),
    "unroll=2": _hand(unroll=2),
    "bfloat16, unroll=4": _hand(compute_dtype=jnp.bfloat16, unroll=4),
}
ALL = PLAIN | OPTIONS
# Last the other shapes.
ELSEWHERE = ("jaxrnn", JAX_GRAD, "cuDNN in jax", "cuDNN in torch", "unroll=4", "flax nnx.RNN")
