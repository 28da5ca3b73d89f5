"""Log-mel features, compared with scipy's Fourier transform and values published by librosa."""

import numpy as np
import pytest
import scipy.signal

from lstm_jax.data.log_mel import (
    FLOOR,
    frame_count,
    hz_to_mel,
    log_mel,
    log_mels,
    mel_filters,
    mel_to_hz,
)

SAMPLES = np.random.default_rng(0).normal(size=3000).astype(np.float32) * 0.1


def test_mel_scale():
    """The examples in the documentation of librosa.hz_to_mel, mel_to_hz and mel_frequencies."""
    np.testing.assert_allclose(hz_to_mel([60, 110, 220, 440]), [0.9, 1.65, 3.3, 6.6])
    expected = [66.667, 133.333, 200.0, 266.667, 333.333]
    np.testing.assert_allclose(mel_to_hz([1, 2, 3, 4, 5]), expected, atol=5e-4)
    edges = mel_to_hz(np.linspace(0, hz_to_mel(11025.0), 40))
    expected = [
        0.0, 85.317, 170.635, 255.952, 341.269, 426.586, 511.904, 597.221, 682.538, 767.855,
        853.173, 938.49, 1024.856, 1119.114, 1222.042, 1334.436, 1457.167, 1591.187, 1737.532,
        1897.337, 2071.84, 2262.393, 2470.47, 2697.686, 2945.799, 3216.731, 3512.582, 3835.643,
        4188.417, 4573.636, 4994.285, 5453.621, 5955.205, 6502.92, 7101.009, 7754.107, 8467.272,
        9246.028, 10096.408, 11025.0,
    ]  # fmt: skip
    np.testing.assert_allclose(edges, expected, atol=1e-3)


def test_filters():
    """Each triangle peaks at its middle edge, and has the area 1 over frequency."""
    filters = mel_filters(16000, 8192, 20)
    edges = mel_to_hz(np.linspace(0, hz_to_mel(8000.0), 22))
    hz = np.arange(4097) * 16000 / 8192
    for band in range(20):
        expected = np.interp(
            hz, edges[band : band + 3], [0, 2 / (edges[band + 2] - edges[band]), 0]
        )
        np.testing.assert_allclose(filters[:, band], expected, atol=1e-12)
        assert filters[:, band].sum() * 16000 / 8192 == pytest.approx(1, abs=0.01)


def expected_features(samples, rate, bands, window, hop):
    hann = scipy.signal.windows.hann(window, sym=False)
    size = 1 << (window - 1).bit_length()
    _, _, spectra = scipy.signal.stft(
        samples.astype(np.float64), rate, hann, window, window - hop, size, boundary=None,
        padded=False,
    )  # fmt: skip
    power = np.abs(spectra.T * hann.sum()) ** 2 / (hann**2).sum()
    return np.log(power @ mel_filters(rate, size, bands) + FLOOR)


@pytest.mark.parametrize(("rate", "window", "hop"), [(16000, 400, 160), (8000, 200, 80)])
def test_features(rate, window, hop):
    found = log_mel(SAMPLES, rate=rate, bands=30, window=window, hop=hop)
    expected = expected_features(SAMPLES, rate, 30, window, hop)
    assert len(found) == frame_count(len(SAMPLES), window, hop)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_padding_does_not_change_features():
    options = {"rate": 8000, "bands": 12, "window": 200, "hop": 80}
    several = log_mels([SAMPLES, SAMPLES[:1000], SAMPLES[:50]], **options)
    for found, count in zip(several, (3000, 1000, 50), strict=True):
        np.testing.assert_allclose(found, log_mel(SAMPLES[:count], **options), atol=1e-5)
    assert len(several[2]) == 1


def test_silence_is_finite():
    found = log_mel(np.zeros(1000, np.float32), rate=8000, bands=12, window=200, hop=80)
    np.testing.assert_allclose(found, np.log(FLOOR), rtol=1e-6)
