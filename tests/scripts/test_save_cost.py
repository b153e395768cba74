"""The script that times saves: all ways save the same, and leave one checkpoint each."""

import jax
import numpy as np
import save_cost

from jaxrnn.training.checkpoints import Checkpoints


def test_all_ways_save_the_same(tmp_path):
    state = save_cost.train_state(2, 3)
    head, row = save_cost.head(), save_cost.row("tiny", state, tmp_path, 1)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(head.splitlines()[0].strip("|").split("|"))
    assert cells[0] == "tiny"
    assert all(float(cell) > 0 for cell in cells[2:])
    last = save_cost.WARM + 1
    left = [sorted(path.name for path in (tmp_path / way).iterdir()) for way in ("checkpoints", "orbax", "manager")]
    assert left == [[str(last)]] * 3
    saved = Checkpoints(tmp_path / "checkpoints").state(last, state)
    jax.tree.map(np.testing.assert_array_equal, saved._replace(key=0), state._replace(key=0))
