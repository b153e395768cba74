"""Recurrent networks in JAX whose back-propagation through time is written by hand."""

from jaxrnn import flow
from jaxrnn.cells.base import Cell
from jaxrnn.cells.elman import Elman, ElmanParams
from jaxrnn.cells.gru import GRU, GRUParams
from jaxrnn.cells.lstm import LSTM, LSTMParams, LSTMState
from jaxrnn.gradients import online
from jaxrnn.gradients.parallel import data_parallel
from jaxrnn.gradients.plan import Plan
from jaxrnn.gradients.streaming import Chunk, value_and_grad_of_chunks
from jaxrnn.gradients.truncation import Carried, Tail, Window
from jaxrnn.gradients.tune import Tuned, tune
from jaxrnn.gradients.value_and_grad import plan, value_and_grad
from jaxrnn.layer.bidirectional import Bidirectional, BidirectionalParams
from jaxrnn.layer.deer import Convergence, deer
from jaxrnn.layer.masking import lengths_to_mask
from jaxrnn.layer.unroll import unroll
from jaxrnn.network.losses import sigmoid_cross_entropy, softmax_cross_entropy, squared_error
from jaxrnn.network.network import Network, NetworkParams
from jaxrnn.network.readout import Readout, ReadoutParams
from jaxrnn.network.summary import summary

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
    "Tuned",
    "Window",
    "data_parallel",
    "deer",
    "flow",
    "lengths_to_mask",
    "online",
    "plan",
    "sigmoid_cross_entropy",
    "softmax_cross_entropy",
    "squared_error",
    "summary",
    "tune",
    "unroll",
    "value_and_grad",
    "value_and_grad_of_chunks",
]
