"""The soak script: it counts what is compiled and kept, and says where something grows."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import soak

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "soak.py"


def rows(megabytes, compilations):
    return [soak.Row(i, i, *row) for i, row in enumerate(zip(megabytes, compilations, strict=True))]


def test_the_verdict():
    level = [300, 400, 410, 410, 411, 412]
    assert soak.verdict(rows(level, [5, 9, 9, 9, 9, 9]), 20) is None
    assert "1 compilations" in soak.verdict(rows(level, [5, 9, 9, 9, 9, 10]), 20)
    assert "MB more" in soak.verdict(rows([300, 400, 420, 440, 460, 480], [9] * 6), 20)
    assert "only 2 rows" in soak.verdict(rows([1, 2], [1, 1]), 20)


def test_compilations_and_memory_are_seen():
    watch = soak.Watch(0.0, 1e9)
    watch({"step": 0})
    watch({"step": 1})
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
    watch({"step": 2})
    assert watch.rows[-1].compilations > watch.rows[-2].compilations
    assert watch.rows[0].megabytes > 50


@pytest.mark.slow
def test_a_quick_run():
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed: nothing grows" in done.stdout
    assert done.stdout.count("\n| ") >= 10
