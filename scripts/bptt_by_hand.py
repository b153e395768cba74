"""Back-propagation through time by hand: one tiny network, every quantity of its gradient printed, and all of it equal.

    python scripts/bptt_by_hand.py [--seed N]

The network is Elman's, two units, four steps, one sequence, three classes:

    z_t = W s_{t-1} + U x_t        s_t = tanh(z_t)        O_t = V s_t        yhat_t = softmax(O_t)
    E_t = - log yhat_t[y_t]        E = sum_t E_t

Read it from top to bottom: forward, the double sum, the sweep that is the same sum in another order, and `jax.grad`.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
import jaxrnn.flow

T, D, H, V_ = 4, 2, 2, 3
Array = np.ndarray
Gradients = tuple[Array, Array, Array]  # dE/dV, dE/dW, dE/dU


def main() -> None:
    """Prints the whole calculation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="for weights, inputs and labels (default: 0)")
    random = np.random.default_rng(parser.parse_args().seed)
    np.set_printoptions(precision=4, suppress=True, floatmode="fixed")
    with jax.enable_x64(True):
        U, W, V = random.normal(size=(H, D)), random.normal(size=(H, H)), random.normal(size=(V_, H))
        x, y, s_0 = random.normal(size=(T, D)), random.integers(0, V_, T), random.normal(size=H)
        s, e = forward(U, W, V, x, y, s_0)
        double = double_sum(W, V, x, s, e)
        sweep = reverse_sweep(W, V, x, s, e)
        compare(U, W, V, x, y, s_0, double, sweep)


def forward(U: Array, W: Array, V: Array, x: Array, y: Array, s_0: Array) -> tuple[list[Array], list[Array]]:
    """States s_0 .. s_T, and e_t = dE_t/dO_t = yhat_t - y_t."""
    print("FORWARD    z_t = W s_{t-1} + U x_t    s_t = tanh(z_t)    O_t = V s_t    yhat_t = softmax(O_t)\n")
    s, e = [s_0], [np.zeros(V_)]
    for t in range(1, T + 1):
        s.append(np.tanh(W @ s[t - 1] + U @ x[t - 1]))
        O_t = V @ s[t]
        yhat = np.exp(O_t) / np.exp(O_t).sum()
        e.append(yhat - np.eye(V_)[y[t - 1]])
        print(f"  t={t}   x={x[t - 1]}   s={s[t]}   yhat={yhat}   y={y[t - 1]}   E_t={-np.log(yhat[y[t - 1]]):.4f}")
    return s, e


def double_sum(W: Array, V: Array, x: Array, s: list[Array], e: list[Array]) -> Gradients:
    """Computes dE/dW and dE/dU as they stand: one term for every step t that errs and every step k that is blamed."""
    print("\nTHE DOUBLE SUM    dE/dW = sum_t sum_{k<=t} delta_{t,k} s_{k-1}^T")
    print("    delta_{t,t} = (1 - s_t^2) * V^T (yhat_t - y_t)    delta_{t,k-1} = (1 - s_{k-1}^2) * W^T delta_{t,k}\n")
    dV, dW, dU = np.zeros_like(V), np.zeros((H, H)), np.zeros((H, D))
    for t in range(1, T + 1):
        dV += np.outer(e[t], s[t])
        delta = (1 - s[t] ** 2) * (V.T @ e[t])
        for k in range(t, 0, -1):
            term_W, term_U = np.outer(delta, s[k - 1]), np.outer(delta, x[k - 1])
            flat, size = term_W.ravel(), float(np.linalg.norm(term_W))
            print(f"  t={t} k={k}   delta_{{t,k}}={delta}   delta s_{{k-1}}^T={flat}   norm={size:.4f} {bar(size)}")
            dW, dU = dW + term_W, dU + term_U
            delta = (1 - s[k - 1] ** 2) * (W.T @ delta)
    return dV, dW, dU


def reverse_sweep(W: Array, V: Array, x: Array, s: list[Array], e: list[Array]) -> Gradients:
    """Computes the same sum, the terms of each k collected on the way back: T steps in the place of T (T + 1) / 2."""
    print("\nTHE SWEEP    delta_t = (1 - s_t^2) * (V^T (yhat_t - y_t) + W^T delta_{t+1})")
    print("    dE/dW = sum_t delta_t s_{t-1}^T    dE/dU = sum_t delta_t x_t^T    dE/dV = sum_t (yhat_t - y_t) s_t^T\n")
    dV, dW, dU = np.zeros_like(V), np.zeros((H, H)), np.zeros((H, D))
    delta = np.zeros(H)
    for t in range(T, 0, -1):
        g, back = V.T @ e[t], W.T @ delta
        delta = (1 - s[t] ** 2) * (g + back)
        print(f"  t={t}   g_t={g}   W^T delta_{{t+1}}={back}   delta_t={delta}")
        dV, dW, dU = dV + np.outer(e[t], s[t]), dW + np.outer(delta, s[t - 1]), dU + np.outer(delta, x[t - 1])
    return dV, dW, dU


def compare(U: Array, W: Array, V: Array, x: Array, y: Array, s_0: Array, double: Gradients, sweep: Gradients) -> None:
    """Prints four ways to one gradient."""
    cell, readout = jaxrnn.Elman(D, H, bias=False), jaxrnn.Readout(H, V_, bias=False)
    net = jaxrnn.Network((cell,), readout, jaxrnn.softmax_cross_entropy)
    layer, last = jaxrnn.ElmanParams(jnp.array(U), jnp.array(W), None), jaxrnn.ReadoutParams(jnp.array(V), None)
    arguments = jaxrnn.NetworkParams((layer,), last), jnp.array(x), jnp.array(y), jnp.ones(T), (jnp.array(s_0),)
    by_autodiff = jax.grad(net.loss)(*arguments)
    by_library = jaxrnn.value_and_grad(net)(*arguments)[1]
    by_terms = jaxrnn.flow.terms(net, *arguments).grads

    def three(grads: jaxrnn.NetworkParams) -> Gradients:
        return np.asarray(grads.readout.V), np.asarray(grads.layers[0].W), np.asarray(grads.layers[0].U)

    ways = {"the double sum": double, "the sweep": sweep, "jaxrnn.value_and_grad": three(by_library)}
    ways |= {"jaxrnn.flow.terms": three(by_terms), "jax.grad": three(by_autodiff)}
    print("\nALL EQUAL\n")
    for index, name in enumerate(("dE/dV", "dE/dW", "dE/dU")):
        for way, grads in ways.items():
            print(f"  {name}  {way:22} {grads[index].ravel()}")
        worst = max(np.abs(grads[index] - ways["jax.grad"][index]).max() for grads in ways.values())
        print(f"  {'':7}{'largest difference':22} {worst:.1e}\n")
        if worst > 1e-12:
            raise SystemExit(f"{name} differs")


def bar(size: float) -> str:
    """Draws a norm as a bar: how the blame fades with t - k."""
    return "#" * min(40, round(20 * size))


if __name__ == "__main__":
    main()
