"""Weights in and out of other libraries, as plain NumPy arrays: PyTorch, Keras, and files of safetensors.

Neither PyTorch nor Keras is imported: arrays come and go under the names, or in the order, that they have there, and
all that come back are copies. Every direction of every layer is

    jaxrnn     U [G H, D]         W [G H, H]                b [G H], and for the GRU d [H]
    torch      weight_ih = U      weight_hh = W             bias_ih = b, bias_hh = 0            GRU: bias_hh = (0, 0, d)
    Keras      kernel = U^T       recurrent_kernel = W^T    bias = b                            GRU: bias = (b; 0, 0, d)

where G is 1 for Elman, 4 for the LSTM (rows i, f, g, o), 3 for the GRU (rows r, z, n, in Keras z, r, n). Of two biases
only the sum counts, but for n in a GRU, where the reset stands between them: coming in, they are summed. So the way
from jaxrnn to torch or Keras and back is exact, bit for bit, and so is every round trip after the first from there.
Arrays of float64 stay what they are on these ways, but JAX computes with them in float32 unless `jax_enable_x64` is on.
"""

from jaxrnn.interop.files import load, save
from jaxrnn.interop.keras import from_keras, to_keras
from jaxrnn.interop.torch import from_torch, to_torch

__all__ = ["from_keras", "from_torch", "load", "save", "to_keras", "to_torch"]
