"""Running cells over time: one cell, stacks of them, both directions, step by step."""

from lstm_jax.sequence.bidirectional import MERGES, Bidirectional, BidirectionalState
from lstm_jax.sequence.engines import ENGINES, MEMORIES, Choice, choose_engine
from lstm_jax.sequence.fused import fused_scan
from lstm_jax.sequence.layers import LSTM
from lstm_jax.sequence.packing import Packed, pack, unpack
from lstm_jax.sequence.protocol import Layer
from lstm_jax.sequence.regularizers import (
    DropConnect,
    RecurrentDropout,
    VariationalDropout,
    Zoneout,
)
from lstm_jax.sequence.resets import resets_from_dones, resets_from_segments, reversed_resets
from lstm_jax.sequence.stack import Stack, dropout
from lstm_jax.sequence.stream import Stream, stream
from lstm_jax.sequence.truncated import truncated
from lstm_jax.sequence.unroll import initial_state, unroll

__all__ = [
    "ENGINES",
    "LSTM",
    "MEMORIES",
    "MERGES",
    "Bidirectional",
    "BidirectionalState",
    "Choice",
    "DropConnect",
    "Layer",
    "Packed",
    "RecurrentDropout",
    "Stack",
    "Stream",
    "VariationalDropout",
    "Zoneout",
    "choose_engine",
    "dropout",
    "fused_scan",
    "initial_state",
    "pack",
    "resets_from_dones",
    "resets_from_segments",
    "reversed_resets",
    "stream",
    "truncated",
    "unpack",
    "unroll",
]
