"""Audio files as samples, at a given rate and speed."""

import io
import math
import pathlib
import re
from typing import Any

import numpy as np

from lstm_jax.errors import UserError, expect

SUFFIXES = (".wav", ".flac", ".sph")
RATES = (1000, 768_000)  # samples a second; at others, resampling takes too much time and memory
BLOCK = 2**16  # samples that are read at once, since a damaged header can announce any number
ENDLESS = 2**31 - 2**16  # bytes; WAV files written to a pipe announce at least so many
LOUDEST = 1e6  # recordings of floats can exceed full scale; models need squares of sums of samples
FULL_SCALE = 1 - 2**-14  # 16 bits reach 1 - 2^-15; one step of rounding is allowed


def is_audio(path: str | pathlib.Path) -> bool:
    """Whether a file name has the suffix of an audio file.

    >>> is_audio("a/b.FLAC"), is_audio("a/b.mp3")
    (True, False)
    """
    return pathlib.PurePath(path).suffix.lower() in SUFFIXES


def read_samples(source: str | pathlib.Path | bytes, rate: int, name: str = "") -> np.ndarray:
    """The resampled samples of a WAV, FLAC or NIST SPHERE file; several channels are averaged.

    Args:
      source: a file, or its content.
      rate: samples per second of the result.
      name: the name of the content in error messages.

    Returns:
      Samples from -1 to 1, float32 ``[N]``.

    Raises:
      UserError: the file is missing, is not audio, has an unsupported format or rate, has no
        samples or fewer than its header says, or has a sample that is not finite or is far above
        full scale.

    >>> read_samples("song.mp3", 16000)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: song.mp3: expected a .wav, .flac or .sph file, got .mp3
    """
    import soundfile

    if isinstance(source, bytes):
        file: pathlib.Path | io.BytesIO = io.BytesIO(source)
    else:
        name, file = str(source), pathlib.Path(source)
        suffix = file.suffix or "a file without a suffix"
        expect(is_audio(file), name, "a .wav, .flac or .sph file", suffix)
        expect(file.is_file(), name, "an audio file", "no such file")
        expect(file.stat().st_size, name, "an audio file", "an empty file")
    try:
        with soundfile.SoundFile(file) as sound:
            original = sound.samplerate
            expected = f"{RATES[0]} to {RATES[1]} samples a second"
            expect(RATES[0] <= original <= RATES[1], name, expected, original)
            blocks = [_block(sound)]
            while len(blocks[-1]) == BLOCK:
                blocks.append(_block(sound))
            samples = np.concatenate(blocks)
            expected, found = _announced(sound, _beginning(file))
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(
            f"{name}: expected WAV, FLAC or SPHERE audio, got another ({reason})"
        ) from (error)
    expect(len(samples), name, "samples", "none")
    expect(found >= expected, name, f"{expected} bytes of samples as in the header", found)
    expect(np.isfinite(samples).all(), name, "finite samples", "NaN or infinity")
    loudest = np.abs(samples).max()
    expect(
        loudest <= LOUDEST, name, f"samples up to {LOUDEST:g}, 1 being full scale", f"{loudest:g}"
    )
    return resampled(samples.mean(1), original, rate)


def _block(sound: Any) -> np.ndarray:
    return sound.read(BLOCK, dtype="float32", always_2d=True)


def _beginning(file: pathlib.Path | io.BytesIO) -> bytes:
    """The first 1024 bytes, the header of a SPHERE file."""
    if isinstance(file, io.BytesIO):
        return file.getvalue()[:1024]
    with file.open("rb") as opened:
        return opened.read(1024)


def _announced(sound: Any, beginning: bytes) -> tuple[int, int]:
    """The bytes of samples that the header of a WAV or SPHERE file announces, and those found.

    libsndfile reads a truncated file without an error. It notes both numbers of a WAV file in its
    log.
    """
    if beginning.startswith(b"NIST_1A"):
        fields = re.findall(rb"^(\w+) -i (\d{1,18})\s*$", beginning, re.MULTILINE)
        sizes = {name: int(number) for name, number in fields}
        width = sizes.get(b"sample_n_bytes", 1) * sound.channels
        return sizes.get(b"sample_count", 0) * width, sound.frames * width
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    announced, found = map(int, sizes.groups()) if sizes else (0, 0)
    return (announced, found) if announced < ENDLESS else (0, 0)


def resampled(samples: np.ndarray, original: int, rate: int) -> np.ndarray:
    """Samples at another rate, by a polyphase low-pass filter.

    Args:
      samples: float32 ``[N]``.
      original: samples per second of ``samples``.
      rate: samples per second of the result.

    Returns:
      float32 ``[ceil(N rate / original)]``.

    >>> resampled(np.ones(100, np.float32), 8000, 16000).shape
    (200,)
    """
    import scipy.signal

    if original == rate:
        return samples
    divisor = math.gcd(original, rate)
    found = scipy.signal.resample_poly(samples, rate // divisor, original // divisor)
    return found.astype(np.float32)


def at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Samples as if they were played faster or slower; the pitch changes with the speed.

    Args:
      samples: float32 ``[N]``.
      speed: 1.1 is 10 % faster; rounded to a multiple of 0.01.

    Returns:
      float32 ``[ceil(N / speed)]``.

    >>> at_speed(np.zeros(90, np.float32), 0.9).shape
    (100,)

    References:
      Tom Ko, Vijayaditya Peddinti, Daniel Povey, Sanjeev Khudanpur, "Audio Augmentation for Speech
      Recognition", Interspeech 2015.
    """
    return resampled(samples, round(100 * speed), 100)


def clipped_share(samples: np.ndarray) -> float:
    """The fraction of samples at full scale, which is high if a recording was too loud.

    >>> clipped_share(np.array([0.5, 1.0, -1.0, 0.2], np.float32))
    0.5
    """
    return float((np.abs(samples) >= FULL_SCALE).mean())
