"""What all tests share: a compiler that hurries, float64 by request, and a hypothesis profile without surprises."""

import atexit
import importlib.metadata
import os
import pathlib
import shutil
import signal
import sys
import tempfile


def quick_compiler():
    """Returns the flags of XLA with which it compiles in a quarter of the time; what is compiled runs slower.

    A test of speed or memory compiles with `programs.OPTIMISED`, which takes them back.
    """
    flags = ["--xla_backend_optimization_level=0"]
    if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) <= (0, 10):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # later ones know no such flag, and stop at an unknown one
    return flags


# Before jax is imported. Workers of xdist import this file too, and subprocesses inherit the environment.
given = os.environ.get("XLA_FLAGS", "").split()
names = {flag.split("=")[0] for flag in given}
os.environ["XLA_FLAGS"] = " ".join([*given, *(flag for flag in quick_compiler() if flag.split("=")[0] not in names)])

# What a developer measured with `jaxrnn tune` must decide nothing here; matplotlib keeps its fonts where they were.
cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
os.environ.setdefault("MPLCONFIGDIR", os.path.join(cache, "matplotlib"))
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxrnn-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# Under --import-mode=importlib the helper modules beside this file are on no path.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from jaxrnn.layer import machine  # noqa: E402

# A shell starts what it runs in the background with Ctrl-C ignored, and tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several devices, for what runs on several; all else runs on the first. Not by the environment, which subprocesses see.
jax.config.update("jax_num_cpu_devices", 4)

# Examples that are the same in every run. A deadline would measure the compiler, and shrinking would take minutes.
hypothesis.settings.register_profile(
    "jaxrnn",
    derandomize=True,
    deadline=None,
    database=None,
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("jaxrnn")


@pytest.fixture(scope="module")
def float64():
    """Switches float64 on for the tests of a module: `pytestmark = pytest.mark.usefixtures("float64")`."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session", autouse=True)
def usual_caches():
    """Lets every machine claim the same caches, so that "auto" cuts time alike on all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "cache_size", lambda: machine.USUAL_CACHE)
        yield
