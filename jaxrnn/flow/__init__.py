"""Gradient flow: the inside of BPTT as arrays. Which step is blamed for which error, how far back, why no further."""

from jaxrnn.flow.examples import per_example_gradient_norms
from jaxrnn.flow.horizon import Horizon, horizon
from jaxrnn.flow.jacobians import Norms, jacobian_norms, jacobians
from jaxrnn.flow.lyapunov import Lyapunov, lyapunov_exponents
from jaxrnn.flow.penalty import vanishing_penalty
from jaxrnn.flow.saturation import Saturation, saturation
from jaxrnn.flow.terms import Terms, terms

__all__ = [
    "Horizon",
    "Lyapunov",
    "Norms",
    "Saturation",
    "Terms",
    "horizon",
    "jacobian_norms",
    "jacobians",
    "lyapunov_exponents",
    "per_example_gradient_norms",
    "saturation",
    "terms",
    "vanishing_penalty",
]
