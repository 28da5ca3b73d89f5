"""A small synthesiser that turns piano rolls into sound."""

import io
import wave

import numpy as np

from lstm_jax.data.midi import LOWEST, notes_of

RATE = 22050  # samples per second
HARMONICS = 8
RELEASE = 0.15  # seconds of decay after the end of a note
ATTACK = 0.01


def wav_bytes(roll: np.ndarray, seconds: float) -> bytes:
    """A piano roll as a WAV file: mono, 16 bits, 22,050 samples per second.

    Each note of frequency f is a sum of decaying harmonics::

        y(t) = a(t) sum_{n=1..8} n^-1.5 exp(-(0.8 + 0.4 n) t) sin(2 pi n f t)

    with f = 440 * 2^((number - 69) / 12) of equal temperament, and a(t) the envelope, which rises
    in 10 ms and falls in 150 ms after the end of the note. The loudest sample is 0.9 of full scale.

    Args:
      roll: booleans or 0 and 1, ``[T, 88]``.
      seconds: the duration of a frame.

    >>> roll = np.zeros((2, 88), np.uint8)
    >>> roll[0, 48] = 1
    >>> with wave.open(io.BytesIO(wav_bytes(roll, seconds=0.5))) as file:
    ...     file.getframerate(), round(file.getnframes() / RATE, 2)
    (22050, 1.15)
    """
    sound = np.zeros(round((len(roll) * seconds + RELEASE) * RATE), np.float32)
    for start, end, pitch in notes_of(roll):
        first = round(start * seconds * RATE)
        sample = _note(pitch, (end - start) * seconds)[: len(sound) - first]
        sound[first : first + len(sample)] += sample
    sound *= 0.9 * 32767 / max(float(np.abs(sound).max(initial=0)), 1e-9)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.rint(sound).astype("<i2").tobytes())
    return content.getvalue()


def _note(pitch: int, seconds: float) -> np.ndarray:
    """The samples of one note."""
    t = np.arange(round((seconds + RELEASE) * RATE)) / RATE
    frequency = 440 * 2 ** ((pitch + LOWEST - 69) / 12)
    tone = np.zeros_like(t)
    for n in range(1, HARMONICS + 1):
        if n * frequency < RATE / 2:  # a higher one would alias
            tone += n**-1.5 * np.exp(-(0.8 + 0.4 * n) * t) * np.sin(2 * np.pi * n * frequency * t)
    envelope = np.minimum(t / ATTACK, 1) * np.clip((seconds - t) / RELEASE + 1, 0, 1)
    return (envelope * tone).astype(np.float32)
