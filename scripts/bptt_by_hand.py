"""Back-propagation through time by hand: one tiny network, every quantity of its gradient printed, and all of it equal.

    python scripts/bptt_by_hand.py [--seed N] [--t 3] [--k 1] [--picture [PATH]]

The network is Elman's, two units, four steps, one sequence, three classes:

    z_t = W s_{t-1} + U x_t        s_t = tanh(z_t)        O_t = V s_t        yhat_t = softmax(O_t)
    E_t = - log yhat_t[y_t]        E = sum_t E_t

Read it from top to bottom: forward, one term of the double sum factor by factor, the double sum, the sweep that is the
same sum in another order, and `jax.grad`. `--picture` draws the term's way through the unrolled graph.
"""

import argparse
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxrnn
import jaxrnn.flow

T, D, H, V_ = 4, 2, 2, 3
Array = np.ndarray
Gradients = tuple[Array, Array, Array]  # dE/dV, dE/dW, dE/dU


def main() -> None:
    """Prints the whole calculation, and draws it where asked to."""
    options = parse()
    random = np.random.default_rng(options.seed)
    with jax.enable_x64(True), np.printoptions(precision=4, suppress=True, floatmode="fixed"):
        U, W, V = random.normal(size=(H, D)), random.normal(size=(H, H)), random.normal(size=(V_, H))
        x, y, s_0 = random.normal(size=(T, D)), random.integers(0, V_, T), random.normal(size=H)
        s, e = forward(U, W, V, x, y, s_0)
        errors = one_term(W, V, y, s, e, options.t, options.k)
        double = double_sum(W, V, x, s, e)
        sweep = reverse_sweep(W, V, x, s, e)
        found = compare(U, W, V, x, y, s_0, double, sweep)
    if options.picture:
        from recursion_picture import picture, sums

        options.picture.parent.mkdir(parents=True, exist_ok=True)
        picture(found, sums(W, x, s, e, options.t), options.t, options.k, errors).savefig(options.picture, dpi=130)
        print(f"Drawn in {options.picture}")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seed", type=int, default=1138, help="for weights, inputs and labels (default: 1138, whose terms fade)")
    add("--t", type=int, default=3, help=f"the step that errs, of the term that is taken apart: 1 .. {T} (default: 3)")
    add("--k", type=int, default=1, help="the step that is blamed: 1 .. t (default: 1)")
    add("--picture", type=pathlib.Path, nargs="?", const="recursion.png", metavar="PATH",
        help="draw the term's way, into a file (default: recursion.png)")  # fmt: skip
    options = parser.parse_args()
    if options.seed < 0:
        parser.error(f"--seed must be 0 or more, got {options.seed}")
    if not 1 <= options.t <= T:
        parser.error(f"--t must lie in 1 .. {T}, got {options.t}")
    if not 1 <= options.k <= options.t:
        parser.error(f"--k must lie in 1 .. t = {options.t}, got {options.k}: no loss blames a later step")
    if options.picture and options.picture.suffix not in (".png", ".pdf", ".svg"):
        parser.error(f"--picture must end in .png, .pdf or .svg, got {options.picture}")
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        parser.error('--picture needs matplotlib: pip install ".[command]"')
    return options


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


def one_term(W: Array, V: Array, y: Array, s: list[Array], e: list[Array], t: int, k: int) -> tuple[float, float]:
    """Multiplies the factors of one term from left to right, and returns |dE_t/dyhat_t| and |dE_t/dO_t|.

    Three slips are common: yhat - y is dE/dO, not dE/dyhat; dE/dV is an outer product, not a product; and d+ is the
    immediate derivative, s_{k-1} held constant, or the recursion is counted twice.
    """
    print(f"\nONE TERM, t={t} k={k}    dE_t/dyhat_t dyhat_t/dO_t dO_t/ds_t ds_t/ds_k d+ s_k/dW, from left to right\n")
    label = np.eye(V_)[y[t - 1]]
    yhat = e[t] + label
    by_yhat = (0 - label) / yhat
    show(f"dE_{t}/dyhat_{t} = - y_{t} / yhat_{t}", by_yhat)
    softmax = np.diag(yhat) - np.outer(yhat, yhat)
    by_O = by_yhat @ softmax
    products = {f"dE_{t}/dO_{t} = yhat_{t} - y_{t}": by_O}
    show(f"dyhat_{t}/dO_{t} = diag(yhat_{t}) - yhat_{t} yhat_{t}^T", softmax, products)
    by_s = by_O @ V
    show(f"dO_{t}/ds_{t} = V", V, blames(by_s, s, t, t))
    for j in range(t, k, -1):
        jacobian = np.diag(1 - s[j] ** 2) @ W
        by_s = by_s @ jacobian
        show(f"ds_{j}/ds_{j - 1} = diag(1 - s_{j}^2) W", jacobian, blames(by_s, s, t, j - 1))
    immediate = np.einsum("ia,b->iab", np.diag(1 - s[k] ** 2), s[k - 1])  # d+ s_k[i]/dW[a, b]: zero where a is not i
    term = np.einsum("i,iab->ab", by_s, immediate)
    rows = np.einsum("iib->ib", immediate)
    show(f"d+ s_{k}[i]/dW[i, :] = (1 - s_{k}[i]^2) s_{k - 1}", rows, {f"the term, delta_{{{t},{k}}} s_{k - 1}^T": term})
    check_term(term, W, V, s, e, t, k)
    return float(np.linalg.norm(by_yhat)), float(np.linalg.norm(by_O))


def blames(by_s: Array, s: list[Array], t: int, j: int) -> dict[str, Array]:
    """Computes what E_t asks of s_j, and delta_{t,j}, what it asks of z_j."""
    return {f"dE_{t}/ds_{j}": by_s, f"delta_{{{t},{j}}} = dE_{t}/ds_{j} * (1 - s_{j}^2)": by_s * (1 - s[j] ** 2)}


def show(factor: str, value: Array, products: dict[str, Array] | None = None) -> None:
    """Prints a factor, and what it makes of the product of those before it."""
    print(f"  {factor:46} {' '.join(map(str, np.atleast_2d(value)))}")
    for name, product in (products or {}).items():
        print(f"      so {name:41} {product.ravel()}")


def check_term(term: Array, W: Array, V: Array, s: list[Array], e: list[Array], t: int, k: int) -> None:
    """Holds a term to delta_{t,k} s_{k-1}^T, the delta by its recursion."""
    delta = (1 - s[t] ** 2) * (V.T @ e[t])
    for j in range(t - 1, k - 1, -1):
        delta = (1 - s[j] ** 2) * (W.T @ delta)
    difference = np.abs(term - np.outer(delta, s[k - 1])).max() / max(1, np.abs(term).max())
    print(f"\n  {'difference to the delta of its recursion':46} {difference:.1e}")
    if difference > 1e-15:
        raise SystemExit("the term differs")


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


def compare(
    U: Array, W: Array, V: Array, x: Array, y: Array, s_0: Array, double: Gradients, sweep: Gradients
) -> jaxrnn.flow.Terms:
    """Prints four ways to one gradient, and returns the library's terms of the double sum."""
    cell, readout = jaxrnn.Elman(D, H, bias=False), jaxrnn.Readout(H, V_, bias=False)
    net = jaxrnn.Network((cell,), readout, jaxrnn.softmax_cross_entropy)
    layer, last = jaxrnn.ElmanParams(jnp.array(U), jnp.array(W), None), jaxrnn.ReadoutParams(jnp.array(V), None)
    arguments = jaxrnn.NetworkParams((layer,), last), jnp.array(x), jnp.array(y), jnp.ones(T), (jnp.array(s_0),)
    by_autodiff = jax.grad(net.loss)(*arguments)
    by_library = jaxrnn.value_and_grad(net)(*arguments)[1]
    found = jaxrnn.flow.terms(net, *arguments)

    def three(grads: jaxrnn.NetworkParams) -> Gradients:
        return np.asarray(grads.readout.V), np.asarray(grads.layers[0].W), np.asarray(grads.layers[0].U)

    ways = {"the double sum": double, "the sweep": sweep, "jaxrnn.value_and_grad": three(by_library)}
    ways |= {"jaxrnn.flow.terms": three(found.grads), "jax.grad": three(by_autodiff)}
    print("\nALL EQUAL\n")
    for index, name in enumerate(("dE/dV", "dE/dW", "dE/dU")):
        for way, grads in ways.items():
            print(f"  {name}  {way:22} {grads[index].ravel()}")
        worst = max(np.abs(grads[index] - ways["jax.grad"][index]).max() for grads in ways.values())
        print(f"  {'':7}{'largest difference':22} {worst:.1e}\n")
        if worst > 1e-12:
            raise SystemExit(f"{name} differs")
    return found


def bar(size: float) -> str:
    """Draws a norm as a bar: how the blame fades with t - k."""
    return "#" * min(40, round(20 * size))


if __name__ == "__main__":
    main()
