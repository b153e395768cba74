"""What all tests share: float64 by request, and a hypothesis profile whose examples are the same in every run."""

import pathlib
import sys

import hypothesis
import jax
import pytest

# Under --import-mode=importlib the helper modules beside the tests are on no path.
sys.path.insert(0, str(pathlib.Path(__file__).parent))

# Every example compiles programs of its own: a deadline would measure the compiler, and shrinking would take minutes.
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
    """float64 for the tests of a module: `pytestmark = pytest.mark.usefixtures("float64")`."""
    with jax.enable_x64(True):
        yield
