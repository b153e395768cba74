"""What `gated_step.py` tries: other cells, other loops, other options."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import gated_cells
import gated_loops


class Trial(NamedTuple):
    """Says what is tried: another cell, other options, or another function; or loops that write over their inputs."""

    cell: str
    layers: int = 1
    kind: type | None = None
    unroll: int = 1
    function: Callable | None = None
    in_place: bool = False
    exact: bool = True


TRIALS = {
    "outputs of scans over inputs": Trial("lstm", in_place=True),
    "a product for each gate": Trial("lstm", kind=gated_cells.FourProducts),
    "units first, [H, B]": Trial("lstm", function=gated_loops.units_first),
    "three sigmoids and a tanh": Trial("lstm", kind=gated_cells.Sigmoids),
    "halves in the weights": Trial("lstm", kind=gated_cells.HalvedWeights),
    "b added in the loop": Trial("lstm", kind=gated_cells.BiasInLoop),
    "gates kept in bfloat16": Trial("lstm", kind=gated_cells.Bfloat16, exact=False),
    "tanh(m) kept": Trial("lstm", kind=gated_cells.TanhKept),
    "factors by pieces": Trial("lstm", kind=gated_cells.FactorsByPieces),
    "factors in the loop": Trial("lstm", kind=gated_cells.FactorsInLoop),
    "select in the place of concatenate": Trial("lstm", kind=gated_cells.Select),
    "deltas after the loop": Trial("lstm", kind=gated_cells.DeltasAfterLoop),
    "x and s as columns": Trial("lstm", kind=gated_cells.InputsAsColumns),
    "one weight product": Trial("lstm", kind=gated_cells.OneWeightProduct),
    "weight products beside the next loop": Trial("lstm", function=gated_loops.products_beside_loops),
    "two layers: one loop": Trial("lstm", 2, function=gated_loops.one_loop),
    "two layers: one loop, one product": Trial("lstm", 2, function=gated_loops.one_product),
    **{f"LSTM, unroll {n}": Trial("lstm", unroll=n) for n in (2, 4, 8)},
    "GRU: outputs of scans over inputs": Trial("gru", in_place=True),
    "columns, then cut": Trial("gru", kind=gated_cells.ColumnsThenCut),
    **{f"GRU, unroll {n}": Trial("gru", unroll=n) for n in (2, 4, 8)},
}
