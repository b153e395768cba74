"""ONNX models of others: onnxruntime's outputs, the networks that they are, and why some are none."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interop.onnx_models import FLOAT, LENGTHS, B, D, H, T, V, by_onnxruntime, graph_of, numbers, one_layer
from oracles import relative_error

import jaxrnn

pytest.importorskip("onnx")

from onnx import TensorProto, helper

from jaxrnn.interop import onnx


@pytest.mark.parametrize("opset", [13, 14, 21, 22])
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
    pytest.importorskip("onnx", "1.23")  # older ones do not run it as they specify it
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    model, x = one_layer("GRU", attributes={"layout": 1, "linear_before_reset": 1}), numbers(B, T, D)
    assert relative_error(list(onnx.load(model)(x)), evaluator(model).run(None, {"X": x})) <= 1e-5


def test_axes_of_any_size_need_no_names():
    model = one_layer("LSTM", ["initial_h"], {"direction": "bidirectional"})
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.Clear()
    loaded = onnx.load(model)
    x, h = numbers(T, B, D), numbers(2, B, H, seed=1)
    state = tuple(jaxrnn.LSTMState(row, jnp.zeros_like(row)) for row in h)
    outputs, _ = loaded.net.apply(loaded.params, x, (state,))
    Y, _, _ = loaded(x, h)
    assert relative_error(outputs, jnp.moveaxis(Y, 1, 2).reshape(T, B, 2 * H)) <= 1e-6


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


def exported(torch, module, arguments, path, dynamic=("T", "B"), dynamo=False):
    """Exports a module, by the exporter that is torch's default, or by the older one that needs no other package.

    Returns what the module computes.
    """
    names = [f"x{i}" for i in range(len(arguments))]
    options = {"input_names": names, "dynamo": dynamo}
    if dynamo:
        axes = {i: torch.export.Dim(name) for i, name in enumerate(dynamic)}
        options |= {"dynamic_shapes": (axes,), "external_data": False, "verbose": False}
    else:
        of_states = {1: "B"} if dynamic else {}
        axes = [dict(enumerate(dynamic)), *({0: "B"} if x.ndim == 1 else of_states for x in arguments[1:])]
        options |= {"dynamic_axes": dict(zip(names, axes, strict=True)), "opset_version": 17}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(module, arguments, str(path), **options)
        except (TypeError, ImportError) as error:
            pytest.skip(f"torch.onnx.export does not work here: {error}")
    with torch.no_grad():
        outputs = module(*arguments)
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


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
    (truth,) = exported(torch, module, (x,), tmp_path / "torch.onnx", ("T", "B") if dynamic else (), dynamo)
    model = onnx.load(tmp_path / "torch.onnx")
    assert relative_error(model(x.numpy())[0], truth) <= 1e-5
    assert model.net.last_step == last
    assert len(model.net.layers) == options.get("num_layers", 1)
    batch_first = options.get("batch_first", False)
    inputs = np.swapaxes(x.numpy(), 0, 1) if batch_first else x.numpy()
    outputs, _ = model.net.apply(model.params, inputs)
    outputs = np.swapaxes(outputs, 0, 1) if batch_first and not last else outputs
    assert relative_error(outputs, truth) <= 1e-5


def test_packed_sequences_that_torch_exports(tmp_path):
    torch = pytest.importorskip("torch")

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = torch.nn.GRU(D, H, **BOTH_WAYS), torch.nn.Linear(2 * H, V)

        def forward(self, x, lengths):
            packed, _ = self.rnn(torch.nn.utils.rnn.pack_padded_sequence(x, lengths))
            return torch.log_softmax(self.head(torch.nn.utils.rnn.pad_packed_sequence(packed)[0]), -1)

    x, lengths = torch.randn(T, B, D), torch.tensor([5, 3, 1])
    (truth,) = exported(torch, Packed().eval(), (x, lengths), tmp_path / "torch.onnx")
    model, mask = onnx.load(tmp_path / "torch.onnx"), jaxrnn.lengths_to_mask(lengths.numpy(), T)
    assert relative_error(model(x.numpy(), lengths.numpy())[0], truth) <= 1e-5
    outputs, _ = model.net.apply(model.params, x.numpy(), mask=mask)
    assert relative_error(jax.nn.log_softmax(outputs)[mask], truth[np.asarray(mask)]) <= 1e-5


@pytest.mark.parametrize("learned", [False, True])
def test_states_that_torch_exports(learned, tmp_path):
    """Given to the call, all layers in one array, or parameters of the module."""
    torch = pytest.importorskip("torch")

    class Stateful(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = torch.nn.GRU(D, H, 2), torch.nn.Linear(H, V)
            self.state = torch.nn.Parameter(torch.randn(2, 1, H))

        def forward(self, x, *state):
            hidden, final = self.rnn(x, self.state.expand(-1, x.shape[1], -1).contiguous() if learned else state[0])
            return self.head(hidden), final

    x, state = torch.randn(T, B, D), () if learned else (torch.randn(2, B, H),)
    truth = exported(torch, Stateful().eval(), (x, *state), tmp_path / "torch.onnx")
    model = onnx.load(tmp_path / "torch.onnx")
    assert relative_error(list(model(x.numpy(), *(array.numpy() for array in state))), truth) <= 1e-5
    assert model.net.learn_state == learned
    outputs, _ = model.net.apply(model.params, x.numpy(), None if learned else tuple(state[0].numpy()))
    assert relative_error(outputs, truth[0]) <= 1e-5


def test_an_embedding_runs_but_is_no_network(tmp_path):
    torch = pytest.importorskip("torch")
    module = module_of(torch, "LSTM", {}, embedding=True)
    x = torch.randint(0, V, (T, B))
    (truth,) = exported(torch, module, (x,), tmp_path / "torch.onnx")
    model = onnx.load(tmp_path / "torch.onnx")
    assert relative_error(model(x.numpy())[0], truth) <= 1e-5
    with pytest.raises(ValueError, match=r"Gather .* has no place in a jaxrnn\.Network"):
        _ = model.net


# What runs, and is no network.


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
    "a softmax between": (
        [LAYER, SQUEEZE, ("Softmax", ["s"], ["r"], {}), ("MatMul", ["r", "V"], ["y"], {})],
        "y",
        "Softmax 'softmax_2'",
    ),
    "lengths that are weights": (
        [("RNN", [*LAYER[1], "", "lengths"], *LAYER[2:])],
        "Y",
        "sequence_lens must be one input of the model for all layers",
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


def test_steps_and_sequences_that_are_mixed_up_are_told():
    """A reshape where a transpose is meant: it runs, and trains something else."""
    nodes = [
        ("Shape", ["x"], ["B"], {"start": 0, "end": 1}),
        ("Shape", ["x"], ["TD"], {"start": 1}),
        ("Split", ["TD", "ones"], ["T", "D"], {}),
        ("Concat", ["T", "B", "D"], ["shape"], {"axis": 0}),
        ("Reshape", ["x", "shape"], ["X"], {}),
        ("RNN", ["X", *LAYER[1][1:]], *LAYER[2:]),
    ]
    weights = WEIGHTS | {"ones": np.array([1, 1])}
    model = onnx.load(graph_of(nodes, {"x": (FLOAT, ["B", "T", D])}, ["Y"], weights))
    assert model(numbers(B, T, D))[0].shape == (T, 1, B, H)
    with pytest.raises(ValueError, match="its X is not an input of the model as it is"):
        _ = model.net


@pytest.mark.parametrize("ends", [False, True])
def test_the_last_row_of_both_directions_is_the_end_of_one_only(ends):
    """The backward direction ends at the first step; at the last row it has seen one step."""
    nodes = [
        ("GRU", ["x", "W2", "R2"], ["Y"], {"hidden_size": H, "direction": "bidirectional", "linear_before_reset": 1}),
        ("Split", ["Y"], ["ahead", "back"], {"axis": 1, "num_outputs": 2}),
        ("Gather", ["ahead", "minus"], ["a"], {"axis": 0}),
        ("Gather", ["back", "zero" if ends else "minus"], ["b"], {"axis": 0}),
        ("Concat", ["a", "b"], ["both"], {"axis": -1}),
        ("Squeeze", ["both", "axis"], ["s"], {}),
        ("MatMul", ["s", "V2"], ["y"], {}),
    ]
    weights = {"W2": numbers(2, 3 * H, D), "R2": numbers(2, 3 * H, H), "V2": numbers(2 * H, V)}
    weights |= {"minus": np.array(-1), "zero": np.array(0), "axis": np.array([0])}
    proto = graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, [], weights)
    proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["B", V]))
    x, model = numbers(T, B, D), onnx.load(proto)
    assert relative_error(list(model(x)), by_onnxruntime(proto, x)) <= 1e-5
    if not ends:
        with pytest.raises(ValueError, match="does not read what the top layer hands up"):
            _ = model.net
        return
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs, model(x)[0]) <= 1e-6


def test_a_readout_with_factors():
    """alpha, beta, one bias for all outputs, and a V that lies as a product takes it."""
    flat = ("Reshape", ["s", "rows"], ["r"], {})
    nodes = [LAYER, SQUEEZE, flat, ("Gemm", ["r", "V", "one bias"], ["y"], {"alpha": 0.5, "beta": 3.0})]
    weights = WEIGHTS | {"rows": np.array([-1, H]), "one bias": np.float32([0.25])}
    proto = graph_of(nodes, {"x": (FLOAT, ["T", "B", D])}, [], weights)
    proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, [None, V]))
    x, model = numbers(T, B, D), onnx.load(proto)
    (truth,) = by_onnxruntime(proto, x)
    assert relative_error(model(x)[0], truth) <= 1e-5
    outputs, _ = model.net.apply(model.params, x)
    assert relative_error(outputs.reshape(-1, V), truth) <= 1e-5


def test_the_last_step_of_padded_sequences_is_not_their_last_states():
    """With lengths, a readout of the last row of Y sees zeros, which no network does; one of Y_h is a network's."""
    last = ("Gather", ["Y", "minus"], ["a"], {"axis": 0})
    nodes = {"y": [last, ("Squeeze", ["a", "zero one"], ["s"], {})], "h": [("Squeeze", ["Y_h", "zero"], ["s"], {})]}
    weights = WEIGHTS | {"minus": np.array([-1]), "zero": np.array([0]), "zero one": np.array([0, 1])}
    models = []
    for between in nodes.values():
        layer = ("RNN", [*LAYER[1], "", "lengths"], *LAYER[2:])
        inputs = {"x": (FLOAT, ["T", "B", D]), "lengths": (TensorProto.INT32, ["B"])}
        proto = graph_of([layer, *between, PRODUCT], inputs, [], WEIGHTS | weights)
        proto.graph.output.append(helper.make_tensor_value_info("y", FLOAT, ["B", V]))
        models.append(onnx.load(proto))
        truth = by_onnxruntime(proto, numbers(T, B, D), LENGTHS)
        assert relative_error(list(models[-1](numbers(T, B, D), LENGTHS)), truth) <= 1e-5
    with pytest.raises(ValueError, match=r"MatMul .* does not read what the top layer hands up"):
        _ = models[0].net
    net, mask = models[1].net, jaxrnn.lengths_to_mask(LENGTHS, T)
    outputs, _ = net.apply(models[1].params, numbers(T, B, D), mask=mask)
    assert relative_error(outputs, models[1](numbers(T, B, D), LENGTHS)[0]) <= 1e-6


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
