"""MIDI files as piano rolls, and piano rolls as MIDI files."""

import io
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.errors import UserError, expect, first_line

LOWEST, PITCHES = 21, 88
"""The MIDI number of the lowest pitch, A0, and the number of pitches of a piano."""

MAX_FRAMES = 1_000_000  # of one file: a damaged file may claim a duration of years
TICKS = 120  # per frame, in the files written here
VELOCITY = 80
PERCUSSION = 9  # the numbers of this channel are instruments, not pitches
NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


class Note(NamedTuple):
    """A pitch that sounds from ``start`` up to, but not including, ``end``.

    Attributes:
      start: its first frame.
      end: the frame after its last one.
      pitch: its column in a piano roll, from 0 (A0) to 87 (C8).

    >>> Note(0, 2, 39)
    Note(start=0, end=2, pitch=39)
    """

    start: int
    end: int
    pitch: int


def pitch_name(pitch: int) -> str:
    """The name of a piano roll's column, in scientific pitch notation.

    >>> pitch_name(0), pitch_name(39), pitch_name(87)
    ('A0', 'C4', 'C8')
    """
    octave, step = divmod(pitch + LOWEST, 12)
    return f"{NAMES[step]}{octave - 1}"


def notes_of(roll: np.ndarray) -> list[Note]:
    """The notes of a piano roll ``[T, 88]``, sorted by start and pitch.

    A roll does not show repeated notes: a pitch in successive frames is one note.

    >>> roll = np.zeros((3, 88), np.uint8)
    >>> roll[:2, 39] = roll[2, 51] = 1
    >>> notes_of(roll)
    [Note(start=0, end=2, pitch=39), Note(start=2, end=3, pitch=51)]
    """
    silence = np.zeros((1, roll.shape[1]), np.int8)
    change = np.diff(roll.astype(np.int8), axis=0, prepend=silence, append=silence)
    pitches, starts = np.nonzero(change.T == 1)  # pitch by pitch, both in time order
    _, ends = np.nonzero(change.T == -1)
    return sorted(map(Note, starts.tolist(), ends.tolist(), pitches.tolist()))


def read_midi(path: str | pathlib.Path, frames_per_beat: int) -> np.ndarray:
    """The piano roll of a MIDI file: the pitches that sound in each frame, uint8 ``[T, 88]``.

    All tracks and channels are merged; percussion is ignored. Starts and ends of notes are rounded
    to whole frames; a note lasts at least one frame. A beat is a quarter note.

    Args:
      path: the file.
      frames_per_beat: the time resolution.

    Raises:
      UserError: the file is missing, is not a MIDI file, measures time in seconds, has no notes,
        a pitch outside the piano's 88 keys, or more than a million frames.

    >>> read_midi("/no/such/tune.mid", 4)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/tune.mid: no such file
    """
    import mido

    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as content:
            file, rest = mido.MidiFile(file=content), content.read(4)
    except Exception as error:  # mido raises many kinds of errors for damaged files
        what = first_line(error)
        raise UserError(f"{path}: not a MIDI file, or a damaged one ({what})") from error
    beats = "a MIDI file of type 0 or 1 with a number of ticks for each beat"
    found = f"type {file.type} with time division {file.ticks_per_beat}"
    expect(file.type in (0, 1) and file.ticks_per_beat > 0, str(path), beats, found)
    tracks = len(file.tracks)
    expect(rest != b"MTrk", str(path), f"{tracks} tracks, as its header states", "more")

    notes = []
    for start, end, number in _sounding(mido.merge_tracks(file.tracks)):
        start, end = (_frame(tick, frames_per_beat, file.ticks_per_beat) for tick in (start, end))
        beat = start // frames_per_beat + 1
        keys = f"pitches from {LOWEST} (A0) to {LOWEST + PITCHES - 1} (C8)"
        expect(0 <= number - LOWEST < PITCHES, f"{path}: beat {beat}", keys, number)
        expect(end <= MAX_FRAMES, f"{path}", f"at most {MAX_FRAMES:,} frames", f"{end:,}")
        notes.append(Note(start, max(end, start + 1), number - LOWEST))
    expect(notes, f"{path}", "a MIDI file with notes", "none")
    roll = np.zeros((max(note.end for note in notes), PITCHES), np.uint8)
    for note in notes:
        roll[note.start : note.end, note.pitch] = 1
    return roll


def _frame(tick: int, frames_per_beat: int, ticks_per_beat: int) -> int:
    """The frame nearest to a tick, in exact integers: a damaged file can hold enormous ones."""
    return (2 * tick * frames_per_beat + ticks_per_beat) // (2 * ticks_per_beat)


def _sounding(messages: Any) -> Iterator[tuple[int, int, int]]:
    """Start, end (in ticks) and number of each note."""
    tick, started = 0, {}
    for message in messages:
        tick += message.time
        if message.type not in ("note_on", "note_off") or message.channel == PERCUSSION:
            continue
        key = message.channel, message.note
        if key in started:  # a repeated pitch ends its previous note
            yield started.pop(key), tick, message.note
        if message.type == "note_on" and message.velocity:
            started[key] = tick
    for (_, number), start in started.items():
        yield start, tick, number


def midi_bytes(roll: np.ndarray, frames_per_beat: int, tempo: float, program: int = 0) -> bytes:
    """A piano roll as a MIDI file with one track.

    Args:
      roll: booleans or 0 and 1, ``[T, 88]``.
      frames_per_beat: the number of frames per quarter note.
      tempo: beats per minute.
      program: the instrument's number in General MIDI, from 0; 0 is a grand piano.

    >>> import tempfile
    >>> roll = np.zeros((4, 88), np.uint8)
    >>> roll[1:, 39] = 1
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "tune.mid"
    >>> _ = path.write_bytes(midi_bytes(roll, frames_per_beat=2, tempo=90))
    >>> bool((read_midi(path, frames_per_beat=2) == roll).all())
    True
    """
    import mido

    events = []
    for start, end, pitch in notes_of(roll):
        number = pitch + LOWEST
        events.append((start, 1, mido.Message("note_on", note=number, velocity=VELOCITY)))
        events.append((end, 0, mido.Message("note_off", note=number)))
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo)),
            mido.Message("program_change", program=program),
        ]
    )
    before = 0
    for frame, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=(frame - before) * TICKS))
        before = frame
    file = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=TICKS * frames_per_beat, tracks=[track]).save(file=file)
    return file.getvalue()
