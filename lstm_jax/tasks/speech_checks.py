"""Checks of recordings: a summary, labels, clipping, and sufficient length."""

from collections.abc import Sequence

import numpy as np

from lstm_jax.data.audio import clipped_share
from lstm_jax.data.transcripts import Recording, Recordings
from lstm_jax.errors import expect
from lstm_jax.tasks.ctc import steps_needed
from lstm_jax.tasks.speech_data import SpeechData

CLIPPED = 0.001  # a recording with at least this fraction of samples at full scale is clipped


def remark(samples: np.ndarray) -> str:
    """A warning if a recording is clipped; otherwise an empty string.

    >>> remark(np.array([0.5, 1.0])), remark(np.array([0.5, 0.9]))
    ('clipped: 50.0% of samples', '')
    """
    share = clipped_share(samples)
    return f"clipped: {share:.1%} of samples" if share >= CLIPPED else ""


def summary_lines(recordings: Recordings, rate: int) -> list[str]:
    """Lines that summarise each split, and warnings about clipped recordings."""
    lines = []
    for split, found in recordings.items():
        minutes = sum(len(each.samples) for each in found) / rate / 60
        speakers = len({each.speaker for each in found} - {""})
        by = f" by {speakers} speakers" if speakers else ""
        lines.append(f"{split}: {len(found):,} recordings{by}, {minutes:.1f} minutes")
        if clipped := [each.name for each in found if remark(each.samples)]:
            lines.append(f"warning: {split}: {len(clipped)} are clipped, such as {clipped[0]}")
    return lines


def labels_of(recordings: Sequence[Recording], characters: str, split: str) -> list[np.ndarray]:
    """The labels of each transcript: character n is label n + 1.

    Raises:
      UserError: a character is not among them.
    """
    places = {character: n for n, character in enumerate(characters, start=1)}
    for each in recordings:
        strange = "".join(sorted(set(each.text) - places.keys()))
        name = f"data.recordings: {split} split: {each.name}"
        expected = f"characters of the training transcripts ({characters!r})"
        expect(not strange, name, expected, repr(strange))
    return [np.array([places[c] for c in each.text], np.int32) for each in recordings]


def check_lengths(
    recordings: Sequence[Recording],
    labels: Sequence[np.ndarray],
    split: str,
    data: SpeechData,
    speed: float,
    stride: int,
) -> None:
    """Raises an error if a split is empty, or a recording has too few steps for its transcript."""
    expect(recordings, f"data.recordings: {split} split", "recordings", "none")
    for recording, mine in zip(recordings, labels, strict=True):
        steps = -(-data.frames(recording.samples, speed) // stride)
        needed = f"at least {steps_needed(mine)} steps of {stride} frames for its transcript"
        name = f"data.recordings: {split} split: {recording.name}"
        expect(steps >= steps_needed(mine), name, needed, steps)
