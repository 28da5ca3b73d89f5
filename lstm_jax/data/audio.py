"""Audio files as samples, at a given rate and speed."""

import io
import math
import pathlib

import numpy as np

from lstm_jax.errors import UserError, expect

SUFFIXES = (".wav", ".flac", ".sph")
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
      UserError: the file is missing, is not audio, has an unsupported format, has no samples, or
        has a sample that is not finite.

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
        samples, original = soundfile.read(file, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(
            f"{name}: expected WAV, FLAC or SPHERE audio, got another ({reason})"
        ) from (error)
    expect(len(samples), name, "samples", "none")
    expect(np.isfinite(samples).all(), name, "finite samples", "NaN or infinity")
    return resampled(samples.mean(1), original, rate)


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
