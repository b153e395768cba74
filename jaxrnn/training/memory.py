"""What a network takes at least, from its sizes alone, so that what no machine has is refused before it is made."""

from __future__ import annotations

from typing import NamedTuple

from jaxrnn.arguments import check_memory
from jaxrnn.training.settings import CELLS

PROGRAM = 100_000  # bytes of a layer's part of the compiled program, a tenth of what was measured


class Sizes(NamedTuple):
    """Holds the sizes of a network of equal layers, and of a batch."""

    cell: str  # one of `CELLS`
    inputs: int
    hidden: int
    outputs: int
    layers: int
    steps: int
    batch: int

    @property
    def parameters(self) -> int:
        """Counts U and W of every layer, and V; the biases are left out."""
        rows = CELLS[self.cell](1, 1).blocks * self.hidden
        below = self.inputs + (self.layers - 1) * self.hidden
        return rows * (below + self.layers * self.hidden) + self.outputs * self.hidden

    @property
    def states(self) -> int:
        """Counts s_t of every layer, and one number or token of the inputs."""
        return self.steps * self.batch * (self.layers * self.hidden + 1)


def check(sizes: Sizes, copies: int) -> None:
    """Raises where parameters, so many times, and the states of all steps take more than the machine's memory.

        4 (copies (sum over layers of m H (D + H)  +  V H)  +  T B (L H + 1))  +  L times a layer's compiled program

    It is a lower bound, in float32: what passes may still be too much.

    Args:
        sizes: of the network and a batch.
        copies: how many numbers there are for each parameter, for example four with Adam: itself, its gradient, and two
            moments.

    >>> from jaxrnn.training import memory
    >>> memory.check(memory.Sizes("lstm", 50, 256, 50, 2, 100, 32), copies=4)
    >>> memory.check(memory.Sizes("elman", 32, 2**31, 32, 1, 50, 8), copies=4)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: a network of these sizes would take ... TB at least, and this machine has ... of memory
    """
    if min(sizes[1:]) < 1:
        return  # no size at all: the network itself says so
    least = 4 * (copies * sizes.parameters + sizes.states) + sizes.layers * PROGRAM
    check_memory("a network of these sizes", least)
