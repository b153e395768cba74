"""A gradient is easy to step through: few frames lie between the public function and the cell."""

import dataclasses
import inspect
import pathlib
import typing

import jax
import jax.numpy as jnp

import jaxrnn

PACKAGE = pathlib.Path(jaxrnn.__file__).parent


@dataclasses.dataclass(frozen=True)
class Watched(jaxrnn.Elman):
    """Records the package's functions that stand between the caller and the step, outermost first."""

    seen: typing.ClassVar[list] = []

    def step_with_residuals(self, operands, state, projected):
        frames = [frame for frame in inspect.stack()[1:] if PACKAGE in pathlib.Path(frame.filename).parents]
        self.seen.append([frame.function for frame in reversed(frames)])
        return super().step_with_residuals(operands, state, projected)


def test_at_most_seven_frames_from_the_public_function_to_the_step():
    net = jaxrnn.Network((Watched(3, 4),), jaxrnn.Readout(4, 5), jaxrnn.softmax_cross_entropy)
    params = net.init(jax.random.key(0))
    jaxrnn.value_and_grad(net)(params, jnp.ones((5, 2, 3)), jnp.ones((5, 2), int))
    forward = [frames for frames in Watched.seen if "whole" in frames]  # the others count bytes, for the plan
    assert all(frames[0] == "__call__" for frames in forward)
    assert max(len(frames) - 1 for frames in forward) + 1 <= 7, forward  # those between, and the step itself
