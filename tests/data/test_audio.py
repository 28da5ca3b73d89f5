"""Samples of audio files: formats, rates, speeds, and errors for damaged files."""

import io
import wave

import numpy as np
import pytest
import soundfile

from lstm_jax.data.audio import at_speed, clipped_share, read_samples, resampled
from lstm_jax.errors import UserError


def tone(frequency, rate, seconds=0.5):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(rate * seconds) / rate)).astype(
        "float32"
    )


def test_wav_written_by_the_standard_library(tmp_path):
    samples = np.array([0, 16384, -32768, 32767], "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    np.testing.assert_array_equal(read_samples(tmp_path / "a.wav", 8000), samples / 32768)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_channels_are_averaged(tmp_path, suffix):
    both = np.stack([tone(200, 8000), tone(300, 8000)], 1)
    soundfile.write(tmp_path / f"a.{suffix}", both, 8000, subtype="PCM_16")
    found = read_samples(tmp_path / f"a.{suffix}", 8000)
    np.testing.assert_allclose(found, both.mean(1), atol=2**-15)


@pytest.mark.parametrize("rate", [8000, 11025, 48000])
def test_samples_are_resampled_to_any_rate(tmp_path, rate):
    """The frequency of a tone does not change."""
    soundfile.write(tmp_path / "a.wav", tone(440, rate), rate, subtype="FLOAT")
    found = read_samples(tmp_path / "a.wav", 16000)
    inner = slice(1000, 7000)  # away from the filter's ends
    np.testing.assert_allclose(found[inner], tone(440, 16000)[inner], atol=2e-3)


def test_frequencies_above_the_new_nyquist_rate_are_removed():
    found = resampled(tone(6000, 16000), 16000, 8000)
    assert np.abs(found[100:-100]).max() < 0.01


def test_speed_changes_the_pitch():
    faster = at_speed(tone(400, 8000, 1.0), 1.1)
    assert len(faster) == pytest.approx(8000 / 1.1, abs=1)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    assert spectrum.argmax() * 8000 / len(faster) == pytest.approx(440, abs=2)
    assert at_speed(faster, 1.0) is faster


def test_clipping():
    loud = np.clip(3 * tone(100, 8000), -1, 1)
    assert clipped_share(loud) > 0.3
    assert clipped_share(tone(100, 8000)) == 0


def test_mistakes_give_one_line(tmp_path):
    def message(path):
        with pytest.raises(UserError) as caught:
            read_samples(path, 8000)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    (tmp_path / "a.mp3").write_bytes(b"ID3")
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    assert "expected a .wav, .flac or .sph file, got .mp3" in message(tmp_path / "a.mp3")
    assert "expected WAV, FLAC or SPHERE audio, got another" in message(tmp_path / "text.wav")
    assert "expected an audio file, got an empty file" in message(tmp_path / "empty.wav")
    assert "expected samples, got none" in message(tmp_path / "silent.wav")
    assert "expected finite samples, got NaN or infinity" in message(tmp_path / "nan.wav")
    assert "expected an audio file, got no such file" in message(tmp_path / "missing.wav")


def test_headers_that_announce_too_much_are_reported(tmp_path):
    def message(name, content):
        with pytest.raises(UserError) as caught:
            read_samples(content, 8000, name)
        assert name in str(caught.value)
        return str(caught.value)

    def written(suffix, rate=8000, factor=1.0, **options):
        content = io.BytesIO()
        soundfile.write(content, factor * tone(440, 8000), rate, format=suffix, **options)
        return content.getvalue()

    wav, flac = written("wav"), bytearray(written("flac"))
    assert "expected 8000 bytes of samples as in the header, got 3956" in message("a", wav[:4000])
    sphere = written("nist", subtype="PCM_16")
    assert "expected 8000 bytes of samples as in the header, got 2976" in message(
        "s", sphere[:4000]
    )
    np.testing.assert_array_equal(read_samples(sphere, 8000, "s"), read_samples(wav, 8000, "a"))
    piped = wav[:40] + b"\xff\xff\xff\xff" + wav[44:]  # its size was not known when it began
    np.testing.assert_array_equal(read_samples(piped, 8000, "a"), read_samples(wav, 8000, "a"))
    flac[21] |= 0x0F  # 2^36 samples
    flac[22:26] = b"\xff" * 4
    assert "expected WAV, FLAC or SPHERE audio" in message("b", bytes(flac))
    for rate in (1, 10**9):
        expected = f"expected 1000 to 768000 samples a second, got {rate}"
        assert expected in message("c", written("wav", rate))
    loud = written("wav", factor=2e30, subtype="FLOAT")
    assert "expected samples up to 1e+06, 1 being full scale, got 1e+30" in message("d", loud)


def test_long_recordings_are_read_in_blocks(tmp_path):
    samples = tone(440, 8000, 20)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(read_samples(tmp_path / "a.wav", 8000), samples)
