"""The calculation by hand, printed term by term."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_calculation_by_hand_is_the_librarys():
    command = [sys.executable, str(ROOT / "scripts" / "bptt_by_hand.py"), "--seed", "3"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("delta_{t,k}=[") == 10
    assert all(float(line.split()[-1]) < 1e-12 for line in printed.splitlines() if "largest difference" in line)
