"""Log-mel features: the inputs of speech models."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

FLOOR = 1e-8  # energy of silence; samples are between -1 and 1
SHORTEST = 8000  # samples are padded to SHORTEST * 2**n, so that few programs are compiled


def hz_to_mel(frequencies: np.ndarray | float) -> np.ndarray:
    """Frequencies on the mel scale of Slaney's Auditory Toolbox.

    ::

        mel(f) = 3 f / 200                          below 1000 Hz
        mel(f) = 15 + 27 log(f / 1000) / log(6.4)   from there

    >>> hz_to_mel(60.0).round(3).tolist()
    0.9

    References:
      Malcolm Slaney, "Auditory Toolbox, version 2", Technical Report 1998-010, Interval Research,
      1998; as implemented in librosa.
    """
    hz = np.asarray(frequencies, np.float64)
    above = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(hz < 1000, 3 * hz / 200, above)


def mel_to_hz(mels: np.ndarray | float) -> np.ndarray:
    """The inverse of :func:`hz_to_mel`.

    >>> mel_to_hz(3.0).round(3).tolist()
    200.0
    """
    mel = np.asarray(mels, np.float64)
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


def mel_filters(rate: int, size: int, bands: int) -> np.ndarray:
    """Triangular filters over the frequencies of a discrete Fourier transform.

    Band m rises from the edge f_m to f_{m+1} and falls to f_{m+2}. The edges are equally spaced on
    the mel scale between 0 and half the rate. Each filter has area 1 over frequency in Hz.

    Args:
      rate: samples per second.
      size: samples of the transform.
      bands: M.

    Returns:
      float64 ``[size // 2 + 1, M]``.

    >>> mel_filters(16000, 512, 40).shape
    (257, 40)
    """
    edges = mel_to_hz(np.linspace(0, hz_to_mel(rate / 2), bands + 2))
    hz = np.arange(size // 2 + 1)[:, None] * rate / size
    rise = (hz - edges[:-2]) / np.diff(edges)[:-1]
    fall = (edges[2:] - hz) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rise, fall)) * 2 / (edges[2:] - edges[:-2])


def frame_count(samples: int, window: int, hop: int) -> int:
    """The number of frames in a number of samples; at least one.

    >>> frame_count(800, window=400, hop=160)
    3
    """
    return 1 + max(0, samples - window) // hop


@functools.partial(jax.jit, static_argnames=("rate", "bands", "window", "hop"))
def log_mel(
    samples: jax.Array, *, rate: int, bands: int = 80, window: int = 400, hop: int = 160
) -> jax.Array:
    """The logarithm of the energy of each band in each frame.

    ::

        E_tm = Σ_k F_km |Σ_n w_n x_{t hop + n} exp(-2πi k n / N)|^2 / Σ_n w_n^2
        y_tm = log(E_tm + 1e-8)

    with w the periodic Hann window, N its length rounded up to a power of two and F the
    :func:`mel_filters`.  Each frame covers exactly one window: frame t does not depend on samples
    from ``t hop + window`` on.

    Args:
      samples: from -1 to 1, float32 ``[..., N]``; padded with zeros if shorter than a window.
      rate: samples per second.
      bands: M.
      window: samples of a frame.
      hop: samples from one frame to the next.

    Returns:
      float32 ``[..., T, M]`` with T from :func:`frame_count`.

    >>> log_mel(jnp.zeros(16000), rate=16000).shape
    (98, 80)

    References:
      Steven Davis, Paul Mermelstein, "Comparison of parametric representations for monosyllabic
      word recognition in continuously spoken sentences", IEEE Transactions on Acoustics, Speech,
      and Signal Processing 28, 1980.
    """
    size = 1 << (window - 1).bit_length()
    count = frame_count(samples.shape[-1], window, hop)
    missing = max(0, window - samples.shape[-1])
    samples = jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, missing)])
    places = np.arange(count)[:, None] * hop + np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    spectra = jnp.fft.rfft(samples[..., places] * hann.astype(np.float32), size)
    power = (spectra.real**2 + spectra.imag**2) / np.float32((hann**2).sum())
    filters = jnp.asarray(mel_filters(rate, size, bands), jnp.float32)
    energies = jnp.matmul(power, filters, precision="highest")
    return jnp.log(energies + FLOOR)


def log_mels(
    recordings: Sequence[np.ndarray], *, rate: int, bands: int, window: int, hop: int
) -> list[np.ndarray]:
    """:func:`log_mel` of recordings of different lengths, each ``[T_n, M]``.

    Samples are padded to one of a few lengths, so that few programs are compiled.
    """
    found = []
    for samples in recordings:
        size = SHORTEST
        while size < len(samples):
            size *= 2
        padded = np.pad(samples, (0, size - len(samples)))
        frames = log_mel(padded, rate=rate, bands=bands, window=window, hop=hop)
        found.append(np.asarray(frames)[: frame_count(len(samples), window, hop)])
    return found
