"""Weights from and to other libraries, as NumPy arrays: PyTorch, Keras, flax, haiku, and safetensors files.

Drop-ins for the recurrent layers of other libraries are modules of this room that import their library:
`jaxrnn.interop.flax`, `jaxrnn.interop.equinox` (with its weights) and `jaxrnn.interop.haiku`; so is
`jaxrnn.interop.onnx`, for models in ONNX files. The functions here import none: arrays have the names, or the order,
that they have there, and all results are copies. Every direction of every layer is

    jaxrnn     U [G H, D]         W [G H, H]                b [G H], and for the GRU d [H]
    torch      weight_ih = U      weight_hh = W             bias_ih = b, bias_hh = 0            GRU: bias_hh = (0, 0, d)
    Keras      kernel = U^T       recurrent_kernel = W^T    bias = b                            GRU: bias = (b; 0, 0, d)

where G is 1 for Elman, 4 for the LSTM (rows i, f, g, o), 3 for the GRU (rows r, z, n, in Keras z, r, n). Only the
sum of two biases counts, except for n in a GRU that resets after the product, where the reset stands between them;
`from_torch` and `from_keras` add them. A GRU that resets before the product has no d, and in Keras one bias, bias = b;
torch has no such GRU. So a conversion from jaxrnn to torch or Keras and back is exact, bit for bit, and so is every
round trip from there after the first. Arrays keep their dtype, but JAX computes with float64 only if `jax_enable_x64`
is on.

The other way round, parameters of jaxrnn in the model of another library, where its optimiser finds them:

    equinox       self.params = cell.init(key), a field of an eqx.Module
    flax linen    params = self.param("rnn", cell.init)
    flax nnx      self.params = nnx.data(jax.tree.map(nnx.Param, cell.init(key))), a Param for each array; the call then
                  takes nnx.as_pure(self.params), of which flax before 0.12.7 says nnx.pure
    haiku         params = jaxrnn.interop.haiku.get_parameters("rnn", cell)

In nnx a single Param of all parameters fails at the second update of an nnx.Optimizer with moments, such as adam: flax
makes a State of what was a NamedTuple.
"""

from jaxrnn.interop.files import load, save
from jaxrnn.interop.flax_weights import from_flax, to_flax
from jaxrnn.interop.haiku_weights import from_haiku, to_haiku
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.torch import from_torch, to_torch

__all__ = [
    "from_flax",
    "from_haiku",
    "from_keras",
    "from_torch",
    "load",
    "save",
    "to_flax",
    "to_haiku",
    "to_keras",
    "to_torch",
]
