"""Data: named files with a checked digest, their readers, and endless Grain pipelines."""

from lstm_jax.data.fetch import CACHE_VARIABLE, Entry, cache_folder, fetch, registry
from lstm_jax.data.midi import LOWEST, PITCHES, Note, midi_bytes, notes_of, pitch_name, read_midi
from lstm_jax.data.moving_digits import DIRECTIONS, Digits, moving_digits, read_digits
from lstm_jax.data.parallel import bucketed_pairs, read_lines, read_parallel
from lstm_jax.data.piano_rolls import (
    NAMED_MUSIC,
    Piece,
    frequencies,
    read_collection,
    read_pieces,
    roll_windows,
    transitions,
)
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
from lstm_jax.data.skeleton_motion import motion_features, resampled, varied
from lstm_jax.data.skeletons import (
    ACTION3D,
    ACTIONS,
    BONES,
    JOINTS,
    Recording,
    find_action3d,
    read_recordings,
    read_skeleton,
)
from lstm_jax.data.synthesis import wav_bytes
from lstm_jax.data.tables import Table, dates, read_csv
from lstm_jax.data.text import cut_text, encode, ngram_loss, python_reference, read_text
from lstm_jax.data.tokens import Tokenizer, padded
from lstm_jax.data.videos import Videos, check_size, read_videos, unit_range
from lstm_jax.data.word_by_word import translated, word_translations

__all__ = [
    "ACTION3D",
    "ACTIONS",
    "BONES",
    "CACHE_VARIABLE",
    "DIRECTIONS",
    "JOINTS",
    "LOWEST",
    "NAMED_MUSIC",
    "PITCHES",
    "Batch",
    "Digits",
    "Entry",
    "LabelledSequences",
    "Note",
    "Piece",
    "Recording",
    "Scaling",
    "SequenceColumns",
    "Table",
    "Tokenizer",
    "Videos",
    "bucketed",
    "bucketed_pairs",
    "cache_folder",
    "check_size",
    "cut_text",
    "dates",
    "digest",
    "encode",
    "fetch",
    "find_action3d",
    "frequencies",
    "last_of_each",
    "length_bounds",
    "midi_bytes",
    "motion_features",
    "moving_digits",
    "ngram_loss",
    "notes_of",
    "padded",
    "pitch_name",
    "python_reference",
    "read_collection",
    "read_csv",
    "read_digits",
    "read_lines",
    "read_midi",
    "read_npz",
    "read_parallel",
    "read_pieces",
    "read_recordings",
    "read_sequences",
    "read_skeleton",
    "read_text",
    "read_ts",
    "read_videos",
    "registry",
    "resampled",
    "roll_windows",
    "scaling_of",
    "shuffled",
    "sliding_windows",
    "standardised",
    "stream_windows",
    "transitions",
    "translated",
    "unit_range",
    "unscaled",
    "varied",
    "wav_bytes",
    "word_translations",
]
