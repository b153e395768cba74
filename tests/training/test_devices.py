"""Several devices: the same training as on one, whatever they are; what is chosen, and what is refused."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxrnn.training import devices

SCRIPT = pathlib.Path(__file__).parent / "on_four_devices.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns what a process with four devices says."""
    path = tmp_path_factory.mktemp("data") / "data.txt"
    path.write_text("she sells sea shells by the sea shore; " * 100)
    done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_curve_does_not_depend_on_the_devices(found):
    for name, (one, four) in found["problems"].items():
        assert one["losses"][-1] != one["losses"][0]
        np.testing.assert_allclose(four["losses"], one["losses"], rtol=1e-5, err_msg=name)
        assert len(four["flow"]) == len(one["flow"])
        np.testing.assert_allclose(four["flow"], one["flow"], rtol=1e-3, err_msg=name)
        assert four["donated"], name
        assert four["shards"] == 4


def test_a_run_goes_on_with_other_devices(found):
    straight, *others = found["curves"]
    assert len(straight) == 40
    for curve in others:
        np.testing.assert_allclose(curve, straight, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1000])
def test_a_mesh_of_devices_that_are_not_there(count):
    with pytest.raises(ValueError, match=f"devices must be 1 to {jax.local_device_count()}.*got {count}"):
        devices.make_mesh(count)
