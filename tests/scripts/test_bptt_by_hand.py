"""The calculation by hand, printed term by term, and drawn."""

import contextlib
import io
import pathlib
import re
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
PNG = b"\x89PNG"
LARGEST_PICTURE = 200_000  # bytes


def numbers(printed, name):
    """Returns the numbers at the end of the line that begins with a name."""
    (line,) = [line for line in printed.splitlines() if line.strip().startswith(name)]
    return np.array(re.findall(r"-?\d+\.\d{4}", line), float)


@pytest.fixture(scope="module")
def whole(bptt_by_hand, recursion_picture, tmp_path_factory):
    """Returns what one run of the script prints, the figure, what it was drawn from, and the file."""
    path, drawn, printed = tmp_path_factory.mktemp("whole") / "new" / "picture.png", [], io.StringIO()

    def picture(*given, draw=recursion_picture.picture):
        drawn.append((draw(*given), given))
        return drawn[0][0]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setitem(sys.modules, "recursion_picture", recursion_picture)
        patch.setattr(recursion_picture, "picture", picture)
        patch.setattr(sys, "argv", ["bptt_by_hand.py", "--picture", str(path)])
        bptt_by_hand.main()
    ((figure, given),) = drawn
    return printed.getvalue(), figure, given, path


def test_the_calculation_by_hand_is_the_librarys(whole):
    printed = whole[0]
    assert printed.count("delta_{t,k}=[") == 10
    differences = [float(line.split()[-1]) for line in printed.splitlines() if "largest difference" in line]
    assert len(differences) == 3
    assert max(differences) < 1e-12


def test_one_term_is_the_product_of_its_factors(bptt_by_hand, capsys):
    random = np.random.default_rng(5)
    U, W, V, x = (random.normal(size=shape) for shape in ((2, 2), (2, 2), (3, 2), (4, 2)))
    y = random.integers(0, 3, 4)
    with np.printoptions(precision=4, suppress=True, floatmode="fixed"):
        s, e = bptt_by_hand.forward(U, W, V, x, y, random.normal(size=2))
        by_yhat, by_O = bptt_by_hand.one_term(W, V, y, s, e, t=4, k=2)
        bptt_by_hand.double_sum(W, V, x, s, e)
    printed = capsys.readouterr().out
    row = numbers(printed, "dE_4/dyhat_4 =")
    softmax = numbers(printed, "dyhat_4/dO_4").reshape(3, 3)
    V, one, two = (numbers(printed, name).reshape(-1, 2) for name in ("dO_4/ds_4", "ds_4/ds_3", "ds_3/ds_2"))
    assert np.allclose(row @ softmax, numbers(printed, "so dE_4/dO_4 = yhat_4 - y_4"), atol=1e-3)
    by_s = row @ softmax @ V @ one @ two
    assert np.allclose(by_s, numbers(printed, "so dE_4/ds_2"), atol=1e-3)
    immediate = numbers(printed, "d+ s_2[i]/dW[i, :]").reshape(2, 2)
    term = numbers(printed, "so the term, delta_{4,2} s_1^T")
    assert np.allclose((by_s[:, None] * immediate).ravel(), term, atol=1e-3)
    (of_the_sum,) = [line for line in printed.splitlines() if "t=4 k=2   delta_{t,k}" in line]
    assert np.array_equal(term, np.array(re.findall(r"-?\d+\.\d{4}", of_the_sum), float)[2:6])
    assert np.allclose([by_yhat, by_O], [np.linalg.norm(row), np.linalg.norm(row @ softmax)], atol=1e-3)
    (difference,) = re.findall(r"difference to the delta of its recursion +(\S+)", printed)
    assert float(difference) <= 1e-15


def test_a_wrong_factor_is_found(bptt_by_hand):
    W, V, s = np.eye(2), np.ones((3, 2)), [np.full(2, 0.5)] * 3
    e = [np.zeros(3), np.ones(3), np.ones(3)]
    delta = 0.75 * (V.T @ e[2])
    bptt_by_hand.check_term(np.outer(delta, s[1]), W, V, s, e, t=2, k=2)
    with pytest.raises(SystemExit, match="the term differs"):
        bptt_by_hand.check_term(np.outer(delta, s[1]) * (1 + 1e-14), W, V, s, e, t=2, k=2)


def test_the_sums_have_the_norms_of_their_terms(recursion_picture):
    """Against the tensors themselves, d s_t[i] / dW[a, b], one change of W at a time."""
    random = np.random.default_rng(0)
    W, U, x = random.normal(size=(2, 2)), random.normal(size=(2, 2)), random.normal(size=(3, 2))

    def run(weights):
        """Returns s_0 .. s_3, each step with a W and a U of its own."""
        s = [np.array([0.3, -0.4])]
        for (W_k, U_k), x_k in zip(weights, x, strict=True):
            s.append(np.tanh(W_k @ s[-1] + U_k @ x_k))
        return s

    def by_differences(k, which, size=1e-6):
        change = np.zeros((2, 2, 2))
        for index in np.ndindex(2, 2):
            ends = []
            for sign in (1, -1):
                weights = [[W.copy(), U.copy()] for _ in range(3)]
                weights[k][which][index] += sign * size
                ends.append(run(weights)[3])
            change[(slice(None), *index)] = (ends[0] - ends[1]) / (2 * size)
        return np.linalg.norm(change)

    s, e = run([(W, U)] * 3), [np.zeros(3), *random.normal(size=(3, 3))]
    by_W, by_U, by_V = recursion_picture.sums(W, x, s, e, t=3)
    assert np.allclose(by_W, [by_differences(k, 0) for k in range(3)], rtol=1e-7)
    assert np.allclose(by_U, [by_differences(k, 1) for k in range(3)], rtol=1e-7)
    assert np.allclose(by_V, [np.linalg.norm(np.outer(e[t], s[t])) for t in (1, 2, 3)], rtol=1e-14)


def test_the_picture_has_the_numbers_of_the_text(whole):
    printed, figure, (_, sums, *_), path = whole
    assert path.read_bytes().startswith(PNG)
    assert f"Drawn in {path}" in printed
    graph, side = figure.axes
    widths = {arrow.get_gid(): arrow.get_arrowstyle().tail_width for arrow in graph.patches if arrow.get_gid()}
    expected = {"dE_3/dyhat_3": "dE_3/dyhat_3 =", "dE_3/dO_3": "so dE_3/dO_3", "dE_3/ds_3": "so dE_3/ds_3"}
    expected |= {"dE/ds_2": "so dE_3/ds_2", "dE/ds_1": "so dE_3/ds_1", "term 1": "so the term"}
    for arrow, line in expected.items():
        assert np.isclose(widths[arrow], widths["legend"] * np.linalg.norm(numbers(printed, line)), rtol=1e-3), arrow
    lengths = np.array([bar.get_width() for bar in side.patches])
    flat = np.concatenate(sums)
    assert np.allclose(lengths / lengths[0], flat / flat[0])
    assert {f"{norm:.2f}" for norm in flat} <= {text.get_text() for text in side.texts}


def test_the_picture_of_the_readme_is_there_and_small():
    assert "](scripts/pictures/recursion.png)" in (ROOT / "README.md").read_text()
    picture = (ROOT / "scripts" / "pictures" / "recursion.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) < LARGEST_PICTURE


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--t", 5], "--t must lie in 1 .. 4, got 5"),
        (["--t", 0], "--t must lie in 1 .. 4, got 0"),
        (["--t", 2, "--k", 3], "--k must lie in 1 .. t = 2, got 3: no loss blames a later step"),
        (["--k", 0], "--k must lie in 1 .. t = 3, got 0"),
        (["--seed", -1], "--seed must be 0 or more, got -1"),
        (["--picture", "picture.txt"], "--picture must end in .png, .pdf or .svg, got picture.txt"),
    ],
)
def test_wrong_use_is_told_in_one_line(bptt_by_hand, call, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        call(bptt_by_hand, *arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err.splitlines()[-1]
