"""A batch spread over devices: each computes the gradient of its part, and one sum at the end makes it that of all."""

from __future__ import annotations

import abc
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxrnn.arguments import as_array
from jaxrnn.layer.eager import compile_once, is_traced
from jaxrnn.layer.sharding import batch_spec, spec_of, with_automatic_axes
from jaxrnn.network.batch import Call
from jaxrnn.network.network import NetworkParams


class BatchGradient(abc.ABC):
    """Defines a function `(params, inputs, targets, ...) -> (value, grads)` in two parts.

    What depends on the batch as a whole (weights, what is dropped, checks of values) is done by `check`; the rest is
    done by `compute`, for the batch or for the part of it that one device has.
    """

    __name__ = "value_and_grad"  # in profiles of what is jitted

    @abc.abstractmethod
    def check(self, params: NetworkParams, *arguments: Any, **named: Any) -> Call:
        """Returns the arguments of a call, checked."""

    @abc.abstractmethod
    def compute(self, params: NetworkParams, call: Call, axes: tuple[str, ...] = ()) -> tuple[Any, NetworkParams]:
        """Computes value and gradients; with the names of axes, for one part of a batch spread over them, of all."""

    @abc.abstractmethod
    def spread(self, batch: PartitionSpec) -> Any:
        """Returns how the value is spread, where the batch is spread so: what has a batch axis has it first."""

    def __call__(self, params: NetworkParams, *arguments: Any, **named: Any) -> tuple[Any, NetworkParams]:
        """Computes value and gradients."""
        if jax.sharding.get_abstract_mesh().explicit_axes:
            return self._with_automatic_axes(params, arguments, named)
        call = self.check(params, *arguments, **named)
        compute = type(self).compute if is_traced((params, call)) else _jitted(type(self).compute)
        return compute(self, params, call)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.check).replace(return_annotation="tuple[Any, NetworkParams]")

    def _with_automatic_axes(self, params: NetworkParams, arguments: tuple, named: dict) -> tuple[Any, NetworkParams]:
        inputs = as_array("inputs", self.__signature__.bind(params, *arguments, **named).arguments["inputs"])
        result = self.spread(PartitionSpec(*batch_spec(inputs))), spec_of(params)

        def run(params: NetworkParams, arguments: tuple, named: dict) -> tuple[Any, NetworkParams]:
            return self.compute(params, self.check(params, *arguments, **named))

        return with_automatic_axes(run, lambda *_: result)(params, arguments, named)


@functools.cache
def _jitted(compute: Callable) -> Callable:
    return jax.jit(compute, static_argnums=0)


def data_parallel(
    function: Callable[..., tuple[Any, NetworkParams]], mesh: Mesh | None = None, axis: str | Sequence[str] = "data"
) -> Callable[..., tuple[Any, NetworkParams]]:
    """Spreads the batch of a gradient over devices: the same function, with the same arguments and the same results.

        E = sum_n E^n        dE/dtheta = sum_n dE^n/dtheta        E^n: what device n has of the sum over the batch

    Every device takes its part of the batch through both passes by itself, with all parameters; loss and gradients are
    summed over the devices once, at the end. (Of a `jaxrnn.Window` with a tolerance, the size of every lag is summed
    besides: all devices must stop at the same one.) Weights left out count the real steps of the whole batch, and what
    dropout leaves out does not depend on how many devices there are. A memory budget is that of each device.

    Where a batch is small, or most of the arithmetic is in one large product (a vocabulary of 10,000), the devices of
    one CPU gain nothing: XLA spreads such a product over all cores by itself.

    In a loop of your own on the devices of a CPU, wait for a loss now and then (`jax.block_until_ready`): where one
    runs more than 32 computations ahead, XLA may find no thread for the sum, and ends the process.

    Args:
        function: what `jaxrnn.value_and_grad` or `jaxrnn.online.value_and_grad` returned.
        mesh: the devices. By default the mesh of `jax.set_mesh` where it has the axis, and else all devices there are.
        axis: the name, or names, of the mesh's axes that the first batch axis is spread over.

    Returns:
        The function; jit it, or the training step around it. Arrays that are spread otherwise, or lie on one device,
        are moved. Final states and carries are spread as the batch is.

    Raises:
        TypeError: a function of another kind.
        ValueError: a mesh without the axis; from the function returned, a batch that does not divide by the number of
            devices, inputs without a batch axis, and all that the function says.

    >>> import jax, jaxrnn
    >>> net = jaxrnn.Network((jaxrnn.GRU(65, 32),), jaxrnn.Readout(32, 65), jaxrnn.softmax_cross_entropy)
    >>> params = net.init(jax.random.key(0))
    >>> tokens = jax.random.randint(jax.random.key(1), (21, 8), 0, 65)
    >>> step = jax.jit(jaxrnn.data_parallel(jaxrnn.value_and_grad(net)))
    >>> loss, grads = step(params, tokens[:-1], tokens[1:])
    """
    if not isinstance(function, BatchGradient):
        came = "a jitted function" if hasattr(function, "lower") else repr(function)
        raise TypeError(f"function must be what value_and_grad of jaxrnn or jaxrnn.online returned, got {came}")
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    if mesh is not None:
        _check_axes(mesh, axes)
    return _DataParallel(function, mesh, axes)


@dataclasses.dataclass(frozen=True)
class _DataParallel:
    function: BatchGradient
    mesh: Mesh | None
    axes: tuple[str, ...]

    def __call__(self, params: NetworkParams, *arguments: Any, **named: Any) -> tuple[Any, NetworkParams]:
        mesh = self.mesh or _default_mesh(self.axes)
        call = self.function.check(params, *arguments, **named)
        _check_batch(call.steps.shape[1:], mesh, self.axes)
        return _compute_parts(self.function, mesh, self.axes, params, call)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.function)


@compile_once(0, 1, 2)  # `shard_map` outside of jit compiles every operation by itself: 20 seconds
def _compute_parts(
    function: BatchGradient, mesh: Mesh, axes: tuple[str, ...], params: NetworkParams, call: Call
) -> tuple[Any, NetworkParams]:
    """Computes value and gradients of a batch that is spread over some axes of a mesh."""
    batch = PartitionSpec(axes)
    parts: Any = {"steps": PartitionSpec(None, axes), "vanishing": PartitionSpec()}
    parts |= dict.fromkeys(("state", "dropout", "last"), batch)
    # Without check_vma: its sums would be one for each gradient and axis, and users' cells need not know of it.
    of_a_part = jax.shard_map(
        lambda params, call: function.compute(params, call, axes),
        mesh=mesh,
        in_specs=(PartitionSpec(), dataclasses.replace(call, **parts)),
        out_specs=(function.spread(batch), PartitionSpec()),
        check_vma=False,
    )
    return of_a_part(params, call)


def _default_mesh(axes: tuple[str, ...]) -> Any:
    """Returns the mesh that is set, or one of all devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty:
        _check_axes(mesh, axes)
        return mesh
    if len(axes) > 1:
        raise ValueError(f"axis must be one name where no mesh is given or set, got {axes}")
    return jax.make_mesh((jax.device_count(),), axes, axis_types=(AxisType.Auto,))


def _check_axes(mesh: Any, axes: tuple[str, ...]) -> None:
    missing = set(axes) - set(mesh.axis_names)
    if missing:
        raise ValueError(f"axis must name axes of the mesh, {mesh.axis_names}, got {axes}")


def _check_batch(batch: tuple[int, ...], mesh: Any, axes: tuple[str, ...]) -> None:
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if not batch:
        raise ValueError("inputs must have a batch axis, [T, B, ...], to be spread over devices; got a single sequence")
    if batch[0] % devices:
        raise ValueError(
            f"a batch of {batch[0]} sequences cannot be spread over {devices} devices: its size must be a multiple of "
            f"{devices}"
        )
