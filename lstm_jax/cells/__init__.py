"""Gate equations: pure functions and the dataclasses that hold their sizes and options."""

import functools
from collections.abc import Callable
from typing import Any

from lstm_jax.cells.activations import ACTIVATIONS, Activations
from lstm_jax.cells.base import (
    BaseCell,
    Cell,
    GatedCell,
    LSTMFamilyCell,
    Parameter,
    affine,
    blocks,
    dot,
    like,
    named,
)
from lstm_jax.cells.conv_lstm import ConvLSTMCell, conv_lstm_cell
from lstm_jax.cells.coupled import CoupledLSTMCell, coupled_cell
from lstm_jax.cells.ea_lstm import EntityAwareLSTMCell, ea_lstm_cell
from lstm_jax.cells.gru import GRUCell, gru_cell, gru_reset_after_cell
from lstm_jax.cells.ind_rnn import IndRNNCell, ind_rnn_cell
from lstm_jax.cells.initializers import INITIALIZERS, Joint
from lstm_jax.cells.layer_norm import LayerNormLSTMCell, layer_norm_cell
from lstm_jax.cells.lstm import LSTMCell, LSTMState, lstm_cell
from lstm_jax.cells.lstm_1997 import LSTM1997Cell, lstm_1997_cell
from lstm_jax.cells.mgu import MGUCell, mgu_cell
from lstm_jax.cells.min_gru import MinGRUCell, min_gru_cell
from lstm_jax.cells.min_lstm import MinLSTMCell, min_lstm_cell
from lstm_jax.cells.mogrifier import MogrifierLSTMCell, mogrifier_cell
from lstm_jax.cells.multiplicative import MultiplicativeLSTMCell, multiplicative_cell
from lstm_jax.cells.odyssey import FGRState, OdysseyLSTMCell, odyssey_cell
from lstm_jax.cells.peephole import PeepholeLSTMCell, peephole_cell
from lstm_jax.cells.projected import ProjectedLSTMCell, projected_cell
from lstm_jax.cells.rnn import RNNCell, RNNState, rnn_cell
from lstm_jax.cells.slstm import SLSTMCell, SLSTMState, slstm_cell

CELLS: dict[str, Callable[..., Any]] = {
    "lstm": LSTMCell,
    "lstm_1997": LSTM1997Cell,
    "peephole": PeepholeLSTMCell,
    "coupled": CoupledLSTMCell,
    "nig": functools.partial(OdysseyLSTMCell, variant="nig"),
    "nfg": functools.partial(OdysseyLSTMCell, variant="nfg"),
    "nog": functools.partial(OdysseyLSTMCell, variant="nog"),
    "niaf": functools.partial(OdysseyLSTMCell, variant="niaf"),
    "noaf": functools.partial(OdysseyLSTMCell, variant="noaf"),
    "np": functools.partial(OdysseyLSTMCell, variant="np"),
    "fgr": functools.partial(OdysseyLSTMCell, variant="fgr"),
    "projected": ProjectedLSTMCell,
    "layer_norm": LayerNormLSTMCell,
    "multiplicative": MultiplicativeLSTMCell,
    "mogrifier": MogrifierLSTMCell,
    "slstm": SLSTMCell,
    "min_lstm": MinLSTMCell,
    "min_gru": MinGRUCell,
    "gru": GRUCell,
    "mgu": MGUCell,
    "rnn": RNNCell,
    "ind_rnn": IndRNNCell,
    "ea_lstm": EntityAwareLSTMCell,
    "conv_lstm": ConvLSTMCell,
}
"""Cell classes by their name in configs; each can be constructed with only ``hidden_size=``."""

__all__ = [
    "ACTIVATIONS",
    "CELLS",
    "INITIALIZERS",
    "Activations",
    "BaseCell",
    "Cell",
    "ConvLSTMCell",
    "CoupledLSTMCell",
    "EntityAwareLSTMCell",
    "FGRState",
    "GRUCell",
    "GatedCell",
    "IndRNNCell",
    "Joint",
    "LSTM1997Cell",
    "LSTMCell",
    "LSTMFamilyCell",
    "LSTMState",
    "LayerNormLSTMCell",
    "MGUCell",
    "MinGRUCell",
    "MinLSTMCell",
    "MogrifierLSTMCell",
    "MultiplicativeLSTMCell",
    "OdysseyLSTMCell",
    "Parameter",
    "PeepholeLSTMCell",
    "ProjectedLSTMCell",
    "RNNCell",
    "RNNState",
    "SLSTMCell",
    "SLSTMState",
    "affine",
    "blocks",
    "conv_lstm_cell",
    "coupled_cell",
    "dot",
    "ea_lstm_cell",
    "gru_cell",
    "gru_reset_after_cell",
    "ind_rnn_cell",
    "layer_norm_cell",
    "like",
    "lstm_1997_cell",
    "lstm_cell",
    "mgu_cell",
    "min_gru_cell",
    "min_lstm_cell",
    "mogrifier_cell",
    "multiplicative_cell",
    "named",
    "odyssey_cell",
    "peephole_cell",
    "projected_cell",
    "rnn_cell",
    "slstm_cell",
]
