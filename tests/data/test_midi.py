"""MIDI files and sound, compared with explicit bytes and the spectrum of a sine."""

import io
import struct
import wave

import numpy as np
import pytest

from lstm_jax.data import Note, midi_bytes, notes_of, pitch_name, read_midi, wav_bytes
from lstm_jax.errors import UserError

END = b"\x00\xff\x2f\x00"


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack(">L", len(content)) + content


def midi(*tracks: bytes, kind: int = 1, division: int = 96) -> bytes:
    """A MIDI file of tracks without their end marks."""
    header = chunk(b"MThd", struct.pack(">HHh", kind, len(tracks), division))
    return header + b"".join(chunk(b"MTrk", track + END) for track in tracks)


@pytest.fixture
def read(tmp_path):
    def roll(content: bytes, frames_per_beat: int = 2) -> np.ndarray:
        path = tmp_path / "tune.mid"
        path.write_bytes(content)
        return read_midi(path, frames_per_beat)

    return roll


def test_events_of_all_tracks_and_channels_are_read_on_the_grid(read):
    # 96 ticks a beat, two frames a beat: 48 ticks a frame.
    melody = bytes([0, 0x90, 60, 64])  # C4 starts at tick 0
    melody += bytes([96, 60, 0])  # running status; velocity 0 ends it at tick 96
    melody += bytes([0, 62, 64, 10, 0x80, 62, 0])  # D4 for 10 ticks lasts for one frame
    melody += bytes([30, 0x90, 64, 64, 60, 0x80, 64, 0])  # E4 from tick 136 to 196: 2.8 to 4.1
    bass = bytes([48, 0x91, 48, 64, 0, 0x99, 35, 64, 96, 0x81, 48, 0])  # channel 9 is percussion
    roll = read(midi(melody, bass))
    assert notes_of(roll) == [Note(0, 2, 39), Note(1, 3, 27), Note(2, 3, 41), Note(3, 4, 43)]


def test_repeated_and_unended_notes_are_read(read):
    track = bytes([0, 0x90, 60, 64, 48, 60, 64, 48, 0x80, 60, 0, 0, 0x90, 72, 64])
    track += b"\x30\xff\x01\x00"  # an empty text, 48 ticks later
    assert notes_of(read(midi(track))) == [Note(0, 2, 39), Note(2, 3, 51)]


def test_written_bytes_follow_the_midi_standard():
    roll = np.zeros((3, 88), np.uint8)
    roll[:2, 39], roll[1:, 43] = 1, 1
    track = b"\x00\xff\x51\x03" + (666_667).to_bytes(3, "big") + bytes([0, 0xC0, 19])
    track += bytes([0, 0x90, 60, 80, 120, 64, 80, 120, 0x80, 60, 64, 120, 64, 64])
    assert midi_bytes(roll, 2, 90.0, 19) == midi(track, kind=0, division=240)


def test_written_file_reads_back_identically(read):
    roll = (np.random.default_rng(0).random((40, 88)) < 0.1).astype(np.uint8)
    roll[-1, 0] = 1
    for frames_per_beat in (1, 4):
        content = midi_bytes(roll, frames_per_beat, 120.0)
        np.testing.assert_array_equal(read(content, frames_per_beat), roll)


NOTE = bytes([0, 0x90, 60, 64, 96, 60, 0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a MIDI file, or a damaged one"),
        (b"RIFF" + bytes(100), "not a MIDI file, or a damaged one"),
        (midi(NOTE)[:-6], "not a MIDI file, or a damaged one"),
        (midi(b""), "expected a MIDI file with notes, got none"),
        (midi(bytes([0, 0x99, 35, 64])), "expected a MIDI file with notes, got none"),
        (midi(NOTE, kind=2), "expected a MIDI file of type 0 or 1 with a number of ticks"),
        (midi(NOTE, division=-(25 << 8) + 40), "got type 1 with time division -6360"),
        (
            midi(bytes([96, 0x90, 110, 64, 96, 110, 0])),
            "beat 2: expected pitches from 21 (A0) to 108 (C8), got 110",
        ),
        (midi(bytes([0, 0x90, 60, 64]) + b"\xff\xff\xff\x7f\x80\x3c\x00"), "at most 1,000,000"),
    ],
)
def test_invalid_file_gives_one_line(read, content, message):
    with pytest.raises(UserError) as error:
        read(content)
    assert message in str(error.value) and "tune.mid" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_file_gives_an_error_or_music(read, fuzz_budget):
    whole = midi_bytes(np.eye(6, 88, k=40, dtype=np.uint8), 1, 90.0)
    rng = np.random.default_rng(0)
    for _ in range(fuzz_budget):
        damaged = bytearray(whole[: rng.integers(len(whole)) if rng.random() < 0.3 else None])
        for place in rng.integers(0, max(len(damaged), 1), 3):
            damaged[place : place + 1] = rng.bytes(1) if damaged else b""
        try:
            roll = read(bytes(damaged))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert roll.any() and roll.shape[1] == 88


def test_names_of_pitches():
    names = [pitch_name(pitch) for pitch in range(88)]
    assert len(set(names)) == 88
    assert (names[39], names[48], names[49], names[86]) == ("C4", "A4", "A#4", "B7")


def test_the_sound_of_a_note_has_its_frequency_and_length():
    roll = np.zeros((3, 88), np.uint8)
    roll[1:, 48] = 1  # A4, 440 Hz
    with wave.open(io.BytesIO(wav_bytes(roll, seconds=0.5))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(float)
    assert len(sound) == round(1.65 * 22050)
    assert not sound[:11025].any()
    spectrum = np.abs(np.fft.rfft(sound[11025 : 11025 + 22050]))  # a bin each Hz
    assert abs(spectrum.argmax() - 440) <= 1
    assert np.abs(sound).max() == pytest.approx(0.9 * 32767, abs=1)


def test_silence_is_silent():
    with wave.open(io.BytesIO(wav_bytes(np.zeros((2, 88)), seconds=0.1))) as file:
        assert not any(file.readframes(file.getnframes()))


def test_enormous_times_and_surplus_tracks_are_rejected(read):
    with pytest.raises(UserError, match=r"tune\.mid: expected at most 1,000,000 frames, got"):
        read(midi(b"\x00\x90\x3c\x40" + b"\xff" * 400 + b"\x00\x80\x3c\x40"))
    one = b"\x00\x90\x3c\x40\x60\x80\x3c\x40"
    content = midi(one, one)
    with pytest.raises(UserError, match="expected 1 tracks, as its header states, got more"):
        read(content[:10] + b"\x00\x01" + content[12:])
    assert len(read(content + b"XFIH\x00\x00\x00\x00")) == 2  # other chunks are ignored
