"""ONNX: saved networks in onnxruntime, there and back in every bit; models of others; what is refused or damaged."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.examples import assert_same, fill
from oracles import relative_error
from pairwise import label, pairwise
from problems import CELLS, Problem, shapes

import jaxrnn

onnx_library = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from jaxrnn.interop import onnx  # noqa: E402

T, B, D, H, V = 5, 3, 4, 5, 6
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
LENGTHS = np.array([3, 5, 1], np.int32)
OPTIONS = {
    "cell": tuple(name for name in CELLS if name != "user"),
    "depth": (1, 2),
    "both_ways": (False, True),
    "merge": ("concatenate", "sum"),
    "bias": (True, False),
    "tokens": (False, True),
    "lengths": (False, True),
    "state": (False, True),
    "time_major": (True, False),
    "residual": (False, True),
    "last_step": (False, True),
    "learn_state": (False, True),
}


def allowed(row):
    """Says whether there can be such a network: directions are merged of two, and a residual path is between two."""
    return not (row.get("merge") == "sum" and not row.get("both_ways", True)) and not (
        row.get("residual") and row.get("depth", 2) == 1
    )


ROWS = pairwise(OPTIONS, allowed)
SAVED = ("tokens", "lengths", "state", "time_major")


def problem_of(row):
    options = {name: value for name, value in row.items() if name not in ("cell", "lengths", "state", "time_major")}
    return Problem(CELLS[row["cell"]], T=T, batch=(B,), D=D, H=H, V=V, stateful=row["state"], **options)


def by_onnxruntime(model, *inputs):
    """Runs a file or a model in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = model.SerializeToString() if hasattr(model, "SerializeToString") else str(model)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(zip([value.name for value in session.get_inputs()], inputs, strict=True)))


def rows_of_state(state):
    """Returns h (and c) of the state of one layer, [directions, B, H]."""
    parts = state if isinstance(state, tuple) and not hasattr(state, "s") else (state,)
    fields = zip(*(part if hasattr(part, "s") else (part,) for part in parts), strict=True)
    return [np.stack(field) for field in fields]


def assert_nothing_is_unused(graph):
    made = [name for node in graph.node for name in node.output if name]
    used = {value.name for value in graph.output}.union(*(node.input for node in graph.node))
    assert {*made, *(tensor.name for tensor in graph.initializer), *(value.name for value in graph.input)} <= used


@pytest.mark.parametrize("row", ROWS, ids=map(label, ROWS))
def test_a_saved_network_computes_the_same_in_onnxruntime_and_comes_back(row, tmp_path):
    problem, path = problem_of(row), tmp_path / "net.onnx"
    given = problem.arguments(jnp.float32)
    onnx.save(problem.net, given.params, path, **{name: row[name] for name in SAVED})
    onnx_library.checker.check_model(str(path), full_check=True)
    assert_nothing_is_unused(onnx_library.load(path).graph)
    model = onnx.load(path, problem.net.objective)
    learned = None if row["state"] else given.params.state  # a state that is given takes the place of the learned one
    assert model.net == dataclasses.replace(problem.net, learn_state=learned is not None)
    assert_same(model.params, jax.tree.map(np.asarray, given.params._replace(state=learned)))

    mask = jnp.asarray(np.arange(T)[:, None] < LENGTHS) if row["lengths"] else None
    outputs, final = jax.jit(problem.net.apply)(given.params, given.inputs, given.state, mask)
    exchange = lambda array: array if row["time_major"] or array.ndim < 2 else np.swapaxes(array, 0, 1)
    inputs = [exchange(np.asarray(given.inputs, np.int64 if row["tokens"] else np.float32))]
    inputs += [LENGTHS] if row["lengths"] else []
    inputs += [array for state in given.state or () for array in rows_of_state(state)]
    ours, theirs = jax.jit(model)(*inputs), by_onnxruntime(path, *inputs)
    assert relative_error(list(ours), theirs) <= 1e-5
    truth = np.asarray(outputs)
    if not row["last_step"]:
        there = np.ones((T, B, 1), bool) if mask is None else np.asarray(mask)[..., None]
        padding = 0 if given.params.readout.c is None else given.params.readout.c  # what a state of zeros gives
        truth = exchange(np.where(there, truth, padding))
    assert relative_error(theirs[0], truth) <= 1e-5
    if row["state"]:
        assert relative_error(theirs[1:], [array for state in final for array in rows_of_state(state)]) <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_dtypes_come_back(dtype, tmp_path):
    problem = Problem(CELLS["GRU"], depth=2, both_ways=True)
    params = problem.params(dtype)
    onnx.save(problem.net, params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert_same(model.params, jax.tree.map(np.asarray, params))
    with jax.enable_x64(dtype == "float64"):
        assert model(jnp.ones((2, 3, problem.D), dtype))[0].dtype == dtype


def test_a_loaded_network_goes_on_training(tmp_path):
    problem = Problem(CELLS["LSTM"], depth=2)
    given = problem.arguments(jnp.float32)
    onnx.save(problem.net, given.params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    E, grads = jax.jit(jaxrnn.value_and_grad(model.net))(model.params, given.inputs, given.targets)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, model.params, grads)
    onnx.save(model.net, params, tmp_path / "trained.onnx")
    assert model.net.loss(onnx.load(tmp_path / "trained.onnx").params, given.inputs, given.targets) < E


def test_a_learned_state_of_zeros_is_still_learned(tmp_path):
    net = jaxrnn.Network((jaxrnn.LSTM(D, H),), jaxrnn.Readout(H, V), jaxrnn.squared_error, learn_state=True)
    params = net.init(jax.random.key(0))
    onnx.save(net, params, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx", jaxrnn.squared_error)
    assert model.net == net
    assert_same(model.params, jax.tree.map(np.asarray, params))


def test_any_number_of_steps_and_sequences(tmp_path):
    problem = Problem(CELLS["GRU"], both_ways=True, learn_state=True)
    params = problem.params(jnp.float32)
    onnx.save(problem.net, params, tmp_path / "net.onnx")
    for steps, batch in ((1, 1), (7, 2)):
        x = np.random.default_rng(0).normal(size=(steps, batch, problem.D)).astype(np.float32)
        truth = by_onnxruntime(tmp_path / "net.onnx", x)[0]
        assert relative_error(problem.net.apply(params, x)[0], truth) <= 1e-5


# Models of others.


def graph_of(nodes, inputs, outputs, weights, opset=22):
    """Makes a model of (operator, inputs, outputs, attributes), shapes of inputs, names, and arrays."""
    nodes = [helper.make_node(*node[:3], f"{node[0].lower()}_{i}", **node[3]) for i, node in enumerate(nodes)]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    rank = len(next(iter(inputs.values()))[1])
    made = [helper.make_tensor_value_info(name, FLOAT, [None] * (4 if name == "Y" else rank)) for name in outputs]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "graph", given, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def one_layer(operator="GRU", inputs=(), attributes=None, opset=22, weights=None):
    """Makes a model of one operator whose further inputs have the names of the specification."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[operator]
    attributes = {"hidden_size": H} | (attributes or {})
    ways = 2 if attributes.get("direction") == "bidirectional" else 1
    shapes = {"W": (ways, gates * H, D), "R": (ways, gates * H, H), "B": (ways, 2 * gates * H), "P": (ways, 3 * H)}
    arrays = {name: numbers(*shapes[name]) for name in "WRBP" if name != "P" or "P" in inputs} | (weights or {})
    places = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
    names = [name if name in (*"XWRB", *inputs) else "" for name in places]
    while not names[-1]:
        names.pop()
    given = {"X": (FLOAT, ["T", "B", D])}
    given |= {name: (FLOAT, [ways, "B", H]) for name in inputs if name.startswith("initial") and name not in arrays}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if operator == "LSTM" else 2]
    return graph_of([(operator, names, outputs, attributes)], given, outputs, arrays, opset)


@pytest.mark.parametrize("opset", [13, 14, 21, 24])
@pytest.mark.parametrize("operator", ["RNN", "GRU", "LSTM"])
def test_operators_of_older_opsets(operator, opset):
    model = one_layer(operator, opset=opset)
    x = numbers(T, B, D)
    assert relative_error(list(onnx.load(model)(x)), by_onnxruntime(model, x)) <= 1e-5


def test_a_layer_without_a_readout_has_one_that_changes_nothing():
    x, model = numbers(T, B, D), onnx.load(one_layer("LSTM", attributes={"direction": "bidirectional"}))
    outputs, _ = model.net.apply(model.params, x)
    Y, _, _ = model(x)
    assert relative_error(outputs, jnp.moveaxis(Y, 1, 2).reshape(T, B, 2 * H)) <= 1e-6


def test_directions_that_are_split_and_joined_again():
    """As tf2onnx writes a Bidirectional of Keras, whose inputs are batch-major."""
    nodes = [
        ("Transpose", ["x"], ["X"], {"perm": [1, 0, 2]}),
        (
            "GRU",
            ["X", "W", "R", "B"],
            ["Y"],
            {"hidden_size": H, "direction": "bidirectional", "linear_before_reset": 1},
        ),
        ("Split", ["Y"], ["ahead", "back"], {"axis": 1, "num_outputs": 2}),
        ("Squeeze", ["ahead", "one"], ["a"], {}),
        ("Squeeze", ["back", "one"], ["b"], {}),
        ("Concat", ["a", "b"], ["both"], {"axis": 2}),
        ("Transpose", ["both"], ["steps"], {"perm": [1, 0, 2]}),
        ("MatMul", ["steps", "V"], ["product"], {}),
        ("Add", ["product", "c"], ["y"], {}),
    ]
    weights = {
        "W": numbers(2, 15, D),
        "R": numbers(2, 15, H),
        "B": numbers(2, 30),
        "V": numbers(10, V),
        "c": numbers(V),
    }
    proto = graph_of(nodes, {"x": (FLOAT, ["B", "T", D])}, ["y"], weights | {"one": np.array([1])})
    x, model = numbers(B, T, D), onnx.load(proto)
    assert relative_error(model(x)[0], by_onnxruntime(proto, x)[0]) <= 1e-5
    outputs, _ = model.net.apply(model.params, x.swapaxes(0, 1))
    assert relative_error(outputs.swapaxes(0, 1), model(x)[0]) <= 1e-5


def test_batch_first_is_what_the_reference_of_onnx_computes():
    """layout=1, which onnxruntime does not run."""
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model = one_layer("GRU", ["initial_h"], {"layout": 1, "linear_before_reset": 1})
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "B"
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 1
    x, h = numbers(B, T, D), numbers(B, 1, H, seed=1)
    assert relative_error(list(onnx.load(model)(x, h)), evaluator(model).run(None, {"X": x, "initial_h": h})) <= 1e-5


def test_a_sequence_without_steps_keeps_its_state():
    model = one_layer("GRU", ["initial_h"], {"direction": "bidirectional"})
    model.graph.node[0].input[4] = "lengths"
    model.graph.input.insert(1, helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]))
    x, h, lengths = numbers(T, B, D), numbers(2, B, H, seed=1), np.array([0, 2, 5], np.int32)
    Y, Y_h = onnx.load(model)(x, lengths, h)
    np.testing.assert_array_equal(Y[:, :, 0], 0)
    np.testing.assert_array_equal(Y_h[:, 0], h[:, 0])


def test_the_call_is_pure_jax():
    model, x = onnx.load(one_layer("GRU")), jnp.asarray(numbers(T, B, D))
    loss = lambda x: (model(x)[1] ** 2).sum()
    assert jax.jit(jax.grad(loss))(x).shape == x.shape
    mapped = jax.vmap(lambda x: model(x)[0])(jnp.stack([x, 2 * x]))
    assert relative_error(mapped[1], model(2 * x)[0]) <= 1e-6


def test_inputs_that_are_initialisers_are_defaults():
    """As in the files of older exporters, which list weights among the inputs."""
    model = one_layer("GRU")
    model.graph.input.append(helper.make_tensor_value_info("W", FLOAT, [1, 3 * H, D]))
    assert onnx.load(model).inputs == ("X",)


def module_of(torch, kind, options, last=False, embedding=False):
    """Makes a torch module of a recurrent one and a linear one, of all steps or the last."""

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(V, D) if embedding else torch.nn.Identity()
            self.rnn = getattr(torch.nn, kind)(D, H, **options)
            self.head = torch.nn.Linear(H * (1 + options.get("bidirectional", False)), V)

        def forward(self, x):
            hidden, _ = self.rnn(self.embedding(x))
            hidden = hidden[:, -1] if last and options.get("batch_first") else hidden[-1] if last else hidden
            return self.head(hidden)

    torch.manual_seed(0)
    return Module().eval()


def exported(torch, module, x, path, dynamic, dynamo=False):
    """Exports a module, by the exporter that is torch's default, or by the older one that needs no other package."""
    options = {"input_names": ["x"], "output_names": ["y"], "dynamo": dynamo}
    if dynamo:
        axes = {0: torch.export.Dim("T"), 1: torch.export.Dim("B")} if dynamic else {}
        options |= {"dynamic_shapes": (axes,), "external_data": False, "verbose": False}
    else:
        options |= {"dynamic_axes": {"x": {0: "T", 1: "B"}} if dynamic else {}, "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module, (x,), str(path), **options)
        except (TypeError, ImportError) as error:
            pytest.skip(f"torch.onnx.export does not work here: {error}")
    with torch.no_grad():
        return module(x).numpy()


BOTH_WAYS = {"num_layers": 2, "bidirectional": True}
DYNAMO = pytest.mark.slow  # torch.export takes seconds; needs onnxscript


@pytest.mark.parametrize(
    ("kind", "options", "last", "dynamic", "dynamo"),
    [
        ("RNN", {"nonlinearity": "relu", "num_layers": 2}, False, False, False),
        ("GRU", {"batch_first": True, **BOTH_WAYS}, False, True, False),
        ("LSTM", BOTH_WAYS, False, True, False),
        ("LSTM", {"batch_first": True, "bias": False}, True, False, False),
        ("GRU", {"num_layers": 3}, True, True, False),
        pytest.param("LSTM", {"batch_first": True, "num_layers": 2}, True, True, True, marks=DYNAMO),
        pytest.param("GRU", {"batch_first": True, **BOTH_WAYS}, False, True, True, marks=DYNAMO),
        pytest.param("GRU", {"batch_first": True, "bias": False}, False, False, True, marks=DYNAMO),
    ],
)
def test_models_that_torch_exports(kind, options, last, dynamic, dynamo, tmp_path):
    torch = pytest.importorskip("torch")
    module = module_of(torch, kind, options, last)
    x = torch.randn(T, B, D)
    truth = exported(torch, module, x, tmp_path / "torch.onnx", dynamic, dynamo)
    model = onnx.load(tmp_path / "torch.onnx")
    assert relative_error(model(x.numpy())[0], truth) <= 1e-5
    assert model.net.last_step == last
    assert len(model.net.layers) == options.get("num_layers", 1)
    batch_first = options.get("batch_first", False)
    inputs = np.swapaxes(x.numpy(), 0, 1) if batch_first else x.numpy()
    outputs, _ = model.net.apply(model.params, inputs)
    outputs = np.swapaxes(outputs, 0, 1) if batch_first and not last else outputs
    assert relative_error(outputs, truth) <= 1e-5


def test_an_embedding_runs_but_is_no_network(tmp_path):
    torch = pytest.importorskip("torch")
    module = module_of(torch, "LSTM", {}, embedding=True)
    x = torch.randint(0, V, (T, B))
    truth = exported(torch, module, x, tmp_path / "torch.onnx", True)
    model = onnx.load(tmp_path / "torch.onnx")
    assert relative_error(model(x.numpy())[0], truth) <= 1e-5
    with pytest.raises(ValueError, match=r"Gather .* has no place in a jaxrnn\.Network"):
        _ = model.net


# What is refused.


REFUSED = {
    "peepholes": (one_layer("LSTM", ["P"]), "P \\(peepholes\\), which no layer of jaxrnn has"),
    "clip": (one_layer("GRU", attributes={"clip": 3.0}), "GRU 'gru_0' has clip"),
    "input_forget": (one_layer("LSTM", attributes={"input_forget": 1}), "has input_forget"),
    "an activation": (one_layer("RNN", attributes={"activations": ["Sigmoid"]}), "or relu, as in jaxrnn, got sigmoid"),
    "activations of gates": (
        one_layer("GRU", attributes={"activations": ["HardSigmoid", "Tanh"]}),
        "activations of GRU 'gru_0' must be sigmoid, tanh for each direction",
    ),
    "alpha": (one_layer("RNN", attributes={"activation_alpha": [0.1]}), "has activation_alpha"),
    "two activations": (
        one_layer("RNN", attributes={"activations": ["Tanh", "Relu"], "direction": "bidirectional"}),
        "got tanh, relu",
    ),
    "a wrong hidden_size": (one_layer("GRU", attributes={"hidden_size": 4}), "hidden_size of GRU 'gru_0' must be 5"),
    "weights of integers": (one_layer("GRU", weights={"W": np.ones((1, 15, 4), np.int64)}), "W of GRU .* floating"),
    "weights of another size": (one_layer("GRU", weights={"B": numbers(1, 29)}), r"B of GRU .* shape \(1, 30\)"),
    "weights that are inputs": (
        graph_of([("GRU", ["X", "X", "X"], ["Y"], {"hidden_size": H})], {"X": (FLOAT, [1, 15, 4])}, ["Y"], {}),
        "W of GRU 'gru_0' must be weights in the file",
    ),
    "an operator": (
        graph_of([("Conv", ["X", "W"], ["Y"], {})], {"X": (FLOAT, [1, 1, 4])}, ["Y"], {"W": numbers(1, 1, 2)}),
        "Conv 'conv_0' is not supported; beside RNN, GRU and LSTM these are: Constant",
    ),
    "an old opset": (one_layer("GRU", opset=12), "opset 13 to 28, got 12"),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_what_jaxrnn_has_no_equal_of_is_named(model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        onnx.load(model)


WEIGHTS = {"V": numbers(H, V), "c": numbers(V), "W": numbers(1, H, D), "R": numbers(1, H, H), "one": np.array([1])}
LAYER = ("RNN", ["x", "W", "R"], ["Y", "Y_h"], {"hidden_size": H})
SQUEEZE = ("Squeeze", ["Y", "one"], ["s"], {})


PRODUCT = ("MatMul", ["s", "V"], ["y"], {})


def layer_on(below, made, *more):
    """Returns a second layer, on `below`, and the squeeze of what it makes."""
    layer = ("RNN", [below, "R", "R", *more], [f"Y of {made}"], {"hidden_size": H})
    return [layer, ("Squeeze", [f"Y of {made}", "one"], [made], {})]


NO_NETWORK = {
    "reverse": ([("RNN", *LAYER[1:3], {"hidden_size": H, "direction": "reverse"})], "Y", "its direction is reverse"),
    "an activation between": (
        [LAYER, SQUEEZE, ("Relu", ["s"], ["r"], {}), ("MatMul", ["r", "V"], ["y"], {})],
        "y",
        "Relu",
    ),
    "two readouts": (
        [LAYER, SQUEEZE, ("MatMul", ["s", "V"], ["y"], {}), ("MatMul", ["s", "V"], ["z"], {})],
        "z",
        "MatMul 'matmul_3' has no place .* stands behind a readout",
    ),
    "two biases": (
        [
            LAYER,
            SQUEEZE,
            ("MatMul", ["s", "V"], ["y"], {}),
            ("Add", ["c", "y"], ["z"], {}),
            ("Add", ["z", "c"], ["u"], {}),
        ],
        "u",
        "Add 'add_4' has no place",
    ),
    "scaled inputs": (
        [("Mul", ["x", "two"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "Mul 'mul_0'",
    ),
    "steps in another order": (
        [("Slice", ["x", "minus", "far", "zero", "minus"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "its X is not an input of the model as it is",
    ),
    "a product before": (
        [("MatMul", ["x", "square"], ["z"], {}), ("RNN", ["z", *LAYER[1][1:]], *LAYER[2:])],
        "Y",
        "MatMul 'matmul_0' has no place .* does not read what the top layer hands up",
    ),
    "a layer behind the readout": ([LAYER, SQUEEZE, PRODUCT, *layer_on("s", "z")], "z", "RNN 'rnn_3' has no place"),
    "two layers on one": ([LAYER, SQUEEZE, *layer_on("s", "a"), *layer_on("s", "b")], "b", "not what the layer below"),
    "a residual path of one layer": (
        [
            LAYER,
            SQUEEZE,
            *layer_on("s", "a"),
            ("Add", ["s", "a"], ["r"], {}),
            *layer_on("r", "b"),
            ("MatMul", ["b", "V"], ["y"], {}),
        ],
        "y",
        "some layers have a residual path",
    ),
    "lengths of one layer": (
        [LAYER, SQUEEZE, *layer_on("s", "a", "", "lengths")],
        "a",
        "sequence_lens must be one input of the model for all layers",
    ),
    "a state that a layer makes": (
        [LAYER, SQUEEZE, *layer_on("s", "a", "", "", "Y_h")],
        "a",
        "its initial state must be an input of the model",
    ),
    "a state by sequence": (
        [("RNN", [*LAYER[1], "", "", "h"], *LAYER[2:])],
        "Y",
        "differs from sequence to sequence",
    ),
    "no layer": ([("Relu", ["x"], ["y"], {})], "y", "Relu 'relu_0'"),
}


@pytest.mark.parametrize(("nodes", "output", "message"), NO_NETWORK.values(), ids=NO_NETWORK)
def test_a_graph_that_runs_and_is_no_network_says_why(nodes, output, message):
    constants = {
        "square": numbers(D, D),
        "lengths": LENGTHS,
        "minus": np.array([-1]),
        "far": np.array([-9]),
        "zero": np.array([0]),
        "h": numbers(1, B, H),
    }
    proto = graph_of(nodes, {"x": (FLOAT, [T, B, D])}, [output], WEIGHTS | constants | {"two": np.float32([2])})
    model, x = onnx.load(proto), numbers(T, B, D)
    assert relative_error(model(x)[0], by_onnxruntime(proto, x)[0]) <= 1e-5
    with pytest.raises(ValueError, match=message):
        _ = model.params


def test_a_readout_of_matmul_and_add_and_a_softmax():
    nodes = [
        LAYER,
        SQUEEZE,
        ("MatMul", ["s", "V"], ["y"], {}),
        ("Add", ["c", "y"], ["z"], {}),
        ("Softmax", ["z"], ["p"], {}),
    ]
    model = onnx.load(graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, ["p"], WEIGHTS))
    x = numbers(T, B, D)
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(model(x)[0], jax.nn.softmax(outputs)) <= 1e-6
    np.testing.assert_array_equal(model.params.readout.V, WEIGHTS["V"].T)


def test_lengths_of_all_steps_are_none():
    nodes = [("RNN", [*LAYER[1], "", "full"], *LAYER[2:])]
    proto = graph_of(nodes, {"x": (FLOAT, [T, B, D])}, ["Y"], WEIGHTS | {"full": np.full(B, T, np.int32)})
    x, model = numbers(T, B, D), onnx.load(proto)
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs[:, None], by_onnxruntime(proto, x)[0]) <= 1e-5


def test_wrong_inputs_are_told():
    model = onnx.load(one_layer("GRU"))
    with pytest.raises(ValueError, match="inputs must be X, in this order, got 2 arrays"):
        model(1, 2)
    with pytest.raises(ValueError, match=r"X must have shape \('T', 'B', 4\), as the model says, got \(5, 3, 3\)"):
        model(numbers(T, B, 3))
    with pytest.raises(TypeError, match="X must be float32, as the model says, got dtype int32"):
        model(np.ones((T, B, D), np.int32))


class Mine(jaxrnn.GRU):
    """A user's cell, which may compute anything."""


def network(layer, **options):
    return jaxrnn.Network((layer,), jaxrnn.Readout(layer.outputs, V), jaxrnn.squared_error, **options)


PLAIN = network(jaxrnn.Elman(D, H))
WRONG = {
    "a cell": ((jaxrnn.GRU(D, H), None), TypeError, "net must be a jaxrnn.Network, got GRU"),
    "a user's cell": ((network(Mine(D, H)), None), TypeError, r"layers\[0\] must be an Elman, GRU or LSTM cell"),
    "two kinds": (
        (network(jaxrnn.Bidirectional(jaxrnn.Elman(D, H), jaxrnn.GRU(D, H))), None),
        ValueError,
        "must have one kind, as the directions of an operator of ONNX do",
    ),
    "another's parameters": ((PLAIN, fill(shapes(network(jaxrnn.GRU(D, H)))[0])), TypeError, "params.layers"),
    "bfloat16": ((PLAIN, fill(shapes(PLAIN)[0], jnp.bfloat16)), ValueError, "got bfloat16"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_saved_is_told(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message):
        onnx.save(*arguments, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


# Damaged and hostile files.


def outside(location):
    """Makes a model whose W is in another file."""
    model = one_layer("GRU")
    onnx_library.external_data_helper.set_external_data(model.graph.initializer[0], location)
    model.graph.initializer[0].ClearField("raw_data")
    return model


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "link", "nothing", "folder/../../secret", ""])
def test_data_outside_of_the_folder_are_not_read(location, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4 * 15 * D))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "model.onnx").write_bytes(outside(location).SerializeToString())
    with pytest.raises(ValueError, match=r"must stand in a file of the model's own folder|cannot be read from"):
        onnx.load(folder / "model.onnx")


def test_data_in_the_folder_are_read(tmp_path):
    W = numbers(1, 15, D, seed=5)
    (tmp_path / "weights").write_bytes(W.tobytes())
    (tmp_path / "model.onnx").write_bytes(outside("weights").SerializeToString())
    np.testing.assert_array_equal(onnx.load(tmp_path / "model.onnx").params.layers[0].U[:H], W[0, H : 2 * H])
    with pytest.raises(ValueError, match="must be given by its path"):
        onnx.load(outside("weights"))
    (tmp_path / "weights").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"tensor name: W|'W'"):
        onnx.load(tmp_path / "model.onnx")


def huge(operator, names, weights, attributes=None):
    nodes = [(operator, names, ["huge"], attributes or {}), ("Identity", ["x"], ["y"], {})]
    return graph_of(nodes, {"x": (FLOAT, [1])}, ["y"], weights)


LARGE = np.array([2**20, 2**20, 2**20])
HUGE = {
    "ConstantOfShape": huge("ConstantOfShape", ["n"], {"n": LARGE}),
    "Expand": huge("Expand", ["a", "n"], {"a": numbers(1), "n": LARGE}),
    "OneHot": huge("OneHot", ["i", "n", "v"], {"i": np.array([1]), "n": np.array([2**40]), "v": np.array([0, 1])}),
    "Add": huge("Add", ["a", "b"], {"a": numbers(2**15, 1), "b": numbers(1, 2**15)}),
    "Gather": huge("Gather", ["a", "i"], {"a": numbers(2, 2**15), "i": np.zeros(2**15, np.int64)}),
    "MatMul": huge("MatMul", ["a", "b"], {"a": numbers(2**15, 1), "b": numbers(1, 2**15)}),
    "Gemm": huge("Gemm", ["a", "b"], {"a": numbers(1, 2**15), "b": numbers(1, 2**15)}, {"transA": 1}),
    "Concat": huge("Concat", ["a"] * 2**9, {"a": numbers(2**20)}, {"axis": 0}),
    "negative": huge("ConstantOfShape", ["n"], {"n": np.array([-1])}),
}


@pytest.mark.parametrize("model", HUGE.values(), ids=HUGE)
def test_huge_constants_are_not_made(model):
    with pytest.raises(ValueError, match="would make an array of shape"):
        onnx.load(model)


def test_constants_that_grow_are_told():
    """Each is twice as large as the one before."""
    nodes = [("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], {"axis": 0}) for i in range(40)]
    model = graph_of([*nodes, ("Identity", ["x"], ["y"], {})], {"x": (FLOAT, [1])}, ["y"], {"c0": numbers(2)})
    with pytest.raises(ValueError, match=r"Concat 'concat_\d+' is one constant too many"):
        onnx.load(model)


def test_shapes_that_lie_are_told():
    model = one_layer("GRU")
    model.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(ValueError, match=r"'W'|onnx.checker says"):
        onnx.load(model)
    model = one_layer("GRU")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**40
    with pytest.raises(ValueError, match="too large to be read"):
        _ = onnx.load(model).net


def test_damaged_files_are_told(tmp_path):
    """Whatever byte is lost or changed: a ValueError or TypeError, or a model of other numbers."""
    path, whole = tmp_path / "net.onnx", tmp_path / "whole.onnx"
    problem = Problem(CELLS["LSTM"], D=2, H=2, V=2, both_ways=True)
    onnx.save(problem.net, problem.params(jnp.float32), whole, state=True)
    data, random, told = whole.read_bytes(), np.random.default_rng(0), 0
    for trial in range(300):
        damaged = bytearray(data)
        if trial % 3:
            for place in random.integers(0, len(data), 1 + trial % 5):
                damaged[place] = random.integers(0, 256)
        else:
            del damaged[random.integers(0, len(data)) :]
        path.write_bytes(bytes(damaged))
        try:
            _ = onnx.load(path).net
        except (ValueError, TypeError):
            told += 1
    assert told > 100
    with pytest.raises(FileNotFoundError):
        onnx.load(tmp_path / "missing.onnx")
