"""Models that torch exports: run as functions they give what the modules do, and so do their networks."""

import warnings

import jax
import numpy as np
import pytest
from interop.onnx_models import B, D, H, T, V
from oracles import relative_error

import jaxrnn

pytest.importorskip("onnx")


from jaxrnn.interop import onnx


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
