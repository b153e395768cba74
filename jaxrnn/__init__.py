"""Recurrent networks in JAX whose back-propagation through time is written by hand."""

from jaxrnn import flow, online
from jaxrnn.bidirectional import Bidirectional, BidirectionalParams
from jaxrnn.breaks import lengths_to_mask
from jaxrnn.cell import Cell
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.deer import Convergence, deer
from jaxrnn.gradient import value_and_grad
from jaxrnn.layer import unroll
from jaxrnn.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from jaxrnn.network import Network, NetworkParams
from jaxrnn.plan import Plan, plan
from jaxrnn.readout import Readout, ReadoutParams
from jaxrnn.streaming import Chunk, value_and_grad_of_chunks
from jaxrnn.truncation import Carried, Tail, Window

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "Bidirectional",
    "BidirectionalParams",
    "Carried",
    "Cell",
    "Chunk",
    "Convergence",
    "Elman",
    "ElmanParams",
    "GRUParams",
    "LSTMParams",
    "LSTMState",
    "Network",
    "NetworkParams",
    "Plan",
    "Readout",
    "ReadoutParams",
    "Tail",
    "Window",
    "deer",
    "flow",
    "lengths_to_mask",
    "online",
    "plan",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "unroll",
    "value_and_grad",
    "value_and_grad_of_chunks",
]
