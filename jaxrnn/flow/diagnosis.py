"""The gradient flow of one network on one batch: all views of it together, and what they say in words."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chex import Array

from jaxrnn import flow
from jaxrnn.cells.base import Cell
from jaxrnn.flow import Horizon, Lyapunov, Norms, Saturation
from jaxrnn.flow.sequence import layer_index
from jaxrnn.gradients.value_and_grad import value_and_grad
from jaxrnn.layer.bptt import StepNorms
from jaxrnn.network.network import Network, NetworkParams

SPECTRUM = 256  # numbers of a state up to which all singular values and exponents are worth their time
LAGS = 100
EXPONENTS = 16  # of a larger state
EXPLODING = 10.0  # how much larger than at its own step a gradient has become
MANY = 0.5  # a share of saturated units, or of gates, that deserves a word


class Diagnosis(NamedTuple):
    """Holds what was found of one layer; `flow` and `saturation` are of all layers."""

    layer: int
    cell: Cell
    adjoints: np.ndarray  # |dE_t/ds_k|, [T, T]
    terms: np.ndarray  # |delta_{t,k} s_{k-1}^T|, the terms of dE/dW (of the first recurrent weight, by name)
    weight: str  # the weight's name
    profile: np.ndarray  # |dE_t/ds_{t-i}| against |dE_t/ds_t|, the geometric mean over t, [T]; NaN where none is left
    flow: tuple[StepNorms, ...]
    half: Horizon
    one_percent: Horizon
    singular_values: np.ndarray | None  # of ds_T/ds_{T-i}, the first sequence, [L + 1, n]; None for large states
    norms: Norms  # the root mean square of them, all sequences
    lyapunov: Lyapunov
    saturation: tuple[Saturation, ...]

    @property
    def steps(self) -> int:
        """Returns T."""
        return self.adjoints.shape[1]

    @property
    def verdict(self) -> str:
        """Tells what becomes of a gradient on its way back over T steps: "exploding", "vanishing" or "healthy".

        It explodes where it is not finite or has become ten times as large, in the mean over t; it vanishes where one
        percent of it is left after fewer than T/4 steps. Over more steps a healthy one may turn out to vanish.
        """
        if not np.all(np.isfinite(self.adjoints)) or np.nanmax(self.profile) > EXPLODING:
            return "exploding"
        return "vanishing" if float(self.one_percent.mean) < self.steps / 4 else "healthy"

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all figures by name, as for `numpy.savez`."""
        named: dict[str, Any] = {
            "adjoints": self.adjoints,
            "terms": self.terms,
            "profile": self.profile,
            "horizon_half": self.half.steps,
            "horizon_one_percent": self.one_percent.steps,
            "jacobian_log_norms": self.norms.log,
            "jacobian_log_norms_error": self.norms.error,
            "lyapunov_exponents": self.lyapunov.exponents,
            "lyapunov_error": self.lyapunov.error,
        }
        if self.singular_values is not None:
            named["singular_values"] = self.singular_values
        for i, (norms, found) in enumerate(zip(self.flow, self.saturation, strict=True)):
            named |= {f"delta_{i}": norms.delta, f"adjoint_{i}": norms.adjoint, f"saturation_{i}": found.units}
        return {name: np.asarray(value) for name, value in named.items()}

    def __str__(self) -> str:
        return "\n".join([*_findings(self), "", *_advice(self)])


def diagnose(
    net: Network, params: NetworkParams, inputs: Any, targets: Any, *, key: Array, layer: int = -1, **options: Any
) -> Diagnosis:
    """Computes all of `jaxrnn.flow` for a network and a batch, without dropout; printed, it is a diagnosis in words.

    Args:
        net, params, inputs, targets: as for `jaxrnn.value_and_grad`, inputs [T, B, ...] with T from 20 to 2,000.
        key: for random probes.
        layer: which layer to look at closely.
        options: weights, state, mask and reset, as for `jaxrnn.value_and_grad`. Lyapunov exponents count real steps,
            and no resets.

    Raises:
        TypeError, ValueError: as for `jaxrnn.flow.terms`; fewer than 20 steps.
    """
    steps = np.shape(inputs)[0]
    if steps < 20:
        raise ValueError(f"inputs must have 20 steps at least, for a flow to be seen, got {steps}")
    layer = layer_index(net, layer)
    net = dataclasses.replace(net, dropout=0.0, recurrent_dropout=0.0)
    forward = {name: value for name, value in options.items() if name != "weights"}
    terms = flow.terms(net, params, inputs, targets, **options)
    chosen: dict[str, Any] = {"layer": layer, "lags": min(LAGS, steps)}
    norms = flow.jacobian_norms(net, params, inputs, key=key, **chosen, **forward)
    n = sum(leaf.shape[-1] for leaf in jax.tree.leaves(net.initial_state()[layer]))
    singular_values = None
    if n <= SPECTRUM:
        first = {
            name: jax.tree.map(lambda leaf, axis=int(name != "state"): jnp.take(leaf, 0, axis), value)
            for name, value in (forward | {"inputs": jnp.asarray(inputs)}).items()
        }
        singular_values = flow.jacobians(net, params, **first, **chosen)
    count = n if n <= SPECTRUM else EXPONENTS
    held = {name: value for name, value in forward.items() if name != "reset"}
    exponents = flow.lyapunov_exponents(net, params, inputs, **held, layer=layer, count=count)
    (_, sweep), _ = jax.jit(value_and_grad(net, return_flow=True))(params, inputs, targets, **options)
    sweep, singular_values, norms, exponents = jax.tree.map(np.asarray, (sweep, singular_values, norms, exponents))
    adjoints = np.asarray(terms.adjoints[layer], np.float64)
    weight, weight_terms = _recurrent(terms.weights[layer])
    return Diagnosis(
        layer,
        net.layers[layer],  # type: ignore[arg-type]
        adjoints,
        np.asarray(weight_terms),
        weight,
        lag_profile(adjoints),
        sweep,
        flow.horizon(terms.adjoints[layer], 0.5),
        flow.horizon(terms.adjoints[layer], 0.01),
        singular_values,
        norms,
        exponents,
        flow.saturation(net, params, inputs, **forward),
    )


def lag_profile(norms: np.ndarray) -> np.ndarray:
    """Computes for every lag i the geometric mean over t of norms[t, t - i] / norms[t, t], [T]; NaN for none."""
    rows, T = norms.shape
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(norms)
        logs = logs - np.diagonal(logs, T - rows)[:, None]
    lags = [np.diagonal(logs, T - rows - i) for i in range(T)]
    finite = [lag[np.isfinite(lag)] for lag in lags]
    return np.array([np.exp(lag.mean()) if lag.size else np.nan for lag in finite])


def _recurrent(weights: Any) -> tuple[str, Any]:
    """Returns the name and the terms of W, or of the first weight of a cell that has no W."""
    if hasattr(weights, "W"):
        return "W", weights.W
    path, leaf = jax.tree.leaves_with_path(weights)[0]
    return jax.tree_util.keystr(path).lstrip(".") or "weights", leaf


def _findings(d: Diagnosis) -> list[str]:
    rate = _rate(d.profile)
    if d.verdict == "exploding":
        lines = ["The gradient EXPLODES on its way back."]
    else:
        half, one_percent = _reach(d.half), _reach(d.one_percent)
        does = {"vanishing": "VANISHES", "healthy": "is HEALTHY"}[d.verdict]
        lines = [
            f"The gradient {does}: of {d.steps} steps it reaches back {one_percent}.",
            f"  horizon          half of it is left after {half}, one percent after {one_percent}",
        ]
    lines += [
        f"  every step back  multiplies it by {np.exp(rate):.3f} (log {rate:+.4f}), over all lags seen",
        f"  largest exponent {_largest(d.lyapunov)}",
    ]
    for i, found in enumerate(d.saturation):
        shares = {name: (float(shut), float(wide)) for name, (shut, wide) in found.gates.items()}
        gates = "".join(f"; {name} gate {shut:.0%} shut, {wide:.0%} open" for name, (shut, wide) in shares.items())
        lines.append(f"  saturation       layer {i}: {float(found.units):.0%} of the units{gates}")
    return lines


def _largest(found: Lyapunov) -> str:
    """Says what the largest exponent is, and what becomes of small changes."""
    exponent, error = float(found.exponents[0]), float(found.error[0])
    if np.isnan(exponent):
        return "not known: too few steps are real, or states are not finite"
    if np.isinf(exponent):
        return f"{exponent:+} per step: small changes of the state {'overflow' if exponent > 0 else 'are gone at once'}"
    fate = "grow, the network is chaotic" if exponent > 0 else "are forgotten"
    fate = "stay what they are" if abs(exponent) <= 3 * error else fate
    return f"{exponent:+.4f} +- {error:.4f} per step: small changes of the state {fate}"


def _advice(d: Diagnosis) -> list[str]:
    if d.verdict == "exploding":
        return [
            "What to try:",
            "  clip gradients by their global norm (optax.clip_by_global_norm(1.0)), or",
            "  a smaller recurrent_scale; where W has grown in training, weight decay on it",
        ]
    reach = max(1, int(np.ceil(float(d.one_percent.mean))))
    if d.verdict == "healthy":
        if _is_beyond(d.one_percent):
            return ["What to try: nothing on this account. What is not learned is not lost on the way back."]
        return [
            f"What to try: nothing, if {reach} steps are enough. Hardly anything further back is learned from.",
            f"Whether that is far depends on the steps looked at, {d.steps} here: look again with more (--steps).",
        ]
    gated = bool(d.saturation[d.layer].gates)
    shrinks, activation = getattr(d.cell, "recurrent_scale", 1.0) < 1, getattr(d.cell, "activation", None)
    hints = {
        "smaller inputs or input_scale: saturated units pass nothing": float(d.saturation[d.layer].units) > MANY,
        "a larger bias of the forget gate (LSTM: forget_bias=3), or of the update gate": gated,
        "recurrent_scale=1: a W that shrinks nothing to begin with": not gated and shrinks,
        'activation="relu" with recurrent_initializer="identity", and small inputs': not gated and activation == "tanh",
        "a gated cell: jaxrnn.GRU or jaxrnn.LSTM": not gated,
    }
    return [
        "What to try, if anything further back than that matters:",
        *(f"  {hint}" for hint, applies in hints.items() if applies),
        f"If nothing further back matters: truncate=jaxrnn.Window({reach}) leaves out about one percent",
    ]


def _reach(horizon: Horizon) -> str:
    more = " or more" if _is_beyond(horizon) else ""
    return f"{float(horizon.mean):.1f} +- {float(horizon.spread):.1f} steps{more}"


def _is_beyond(horizon: Horizon) -> bool:
    """Tells whether the losses reach further back than the first step."""
    return float(horizon.beyond) > 0.05


def _rate(profile: np.ndarray) -> float:
    """Computes the slope of the logarithm of the profile per lag, by least squares, down to a millionth."""
    lags = np.arange(len(profile))
    seen = np.isfinite(profile) & (profile > 1e-6)
    return float(np.polyfit(lags[seen], np.log(profile[seen]), 1)[0]) if seen.sum() > 1 else -np.inf
