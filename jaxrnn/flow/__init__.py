"""Gradient flow: the inside of BPTT as arrays. Which step is blamed for which error, how far back, why no further."""

from jaxrnn.flow.jacobians import Lyapunov, Norms, jacobian_norms, jacobians, lyapunov_exponents
from jaxrnn.flow.norms import per_example_gradient_norms
from jaxrnn.flow.steps import Saturation, saturation, vanishing_penalty
from jaxrnn.flow.terms import Horizon, Terms, horizon, terms

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
