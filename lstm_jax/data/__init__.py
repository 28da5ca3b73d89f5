"""Data: named files with a checked digest, their readers, and endless Grain pipelines."""

from lstm_jax.data.fetch import CACHE_VARIABLE, Entry, cache_folder, fetch, registry
from lstm_jax.data.pipelines import (
    Batch,
    bucketed,
    length_bounds,
    shuffled,
    sliding_windows,
    stream_windows,
)
from lstm_jax.data.scaling import Scaling, digest, scaling_of, standardised, unscaled
from lstm_jax.data.sequences import (
    LabelledSequences,
    SequenceColumns,
    last_of_each,
    read_npz,
    read_sequences,
    read_ts,
)
from lstm_jax.data.tables import Table, dates, read_csv
from lstm_jax.data.text import encode, ngram_loss, python_reference, read_text
from lstm_jax.data.tokens import Tokenizer, padded

__all__ = [
    "CACHE_VARIABLE",
    "Batch",
    "Entry",
    "LabelledSequences",
    "Scaling",
    "SequenceColumns",
    "Table",
    "Tokenizer",
    "bucketed",
    "cache_folder",
    "dates",
    "digest",
    "encode",
    "fetch",
    "last_of_each",
    "length_bounds",
    "ngram_loss",
    "padded",
    "python_reference",
    "read_csv",
    "read_npz",
    "read_sequences",
    "read_text",
    "read_ts",
    "registry",
    "scaling_of",
    "shuffled",
    "sliding_windows",
    "standardised",
    "stream_windows",
    "unscaled",
]
