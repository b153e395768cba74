"""Piano rolls for the tests of tasks."""

import numpy as np
import pytest
from scipy.io import savemat


@pytest.fixture(scope="session")
def rolls():
    """Returns a function that draws piano rolls of some lengths."""

    def draw(seed, lengths):
        random = np.random.default_rng(seed)
        return [(random.random((T, 88)) < 0.1).astype(np.uint8) for T in lengths]

    return draw


@pytest.fixture(scope="session")
def files(tmp_path_factory, rolls):
    """Returns a folder with the same rolls in both formats, and the rolls."""
    folder = tmp_path_factory.mktemp("rolls")
    parts = {"train": rolls(0, (5, 9, 2)), "valid": rolls(1, (4,)), "test": rolls(2, (7, 3))}
    cells = {f"{part}data": np.empty((1, len(found)), object) for part, found in parts.items()}
    for part, found in parts.items():
        cells[f"{part}data"][0, :] = found
    savemat(folder / "rolls.mat", cells)
    arrays = {part: np.concatenate(found) for part, found in parts.items()}
    lengths = {f"{part}_lengths": np.array([len(roll) for roll in found]) for part, found in parts.items()}
    np.savez(folder / "rolls.npz", **arrays, **lengths)
    return folder, parts
