"""Recordings with transcripts: tables, the published layout of AN4, and spoken digits."""

import io
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile

from lstm_jax.data.fetch import cache_folder
from lstm_jax.data.transcripts import (
    DIGITS,
    Recording,
    find,
    held_out,
    read_an4,
    read_recordings,
    read_spoken_digits,
)
from lstm_jax.errors import UserError

RATE = 8000


def clip(seed=0):
    return np.random.default_rng(seed).uniform(-0.1, 0.1, 400)


@pytest.fixture
def folder(tmp_path):
    """Six recordings by three speakers, in two formats and rates."""
    (tmp_path / "clips").mkdir()
    lines = ["path,text,speaker"]
    for n in range(6):
        name = f"clips/{n}.{'flac' if n % 2 else 'wav'}"
        soundfile.write(tmp_path / name, clip(n), RATE * (1 + n % 2))
        lines.append(f'{name}," word  {n} ",s{n // 2}')
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def read(folder):
    return read_recordings(str(folder / "table.csv"), RATE, 0.34, 0.34)


def message(folder, change=lambda text: text):
    table = folder / "table.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(UserError) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_table(folder):
    splits = read(folder)
    assert {split: len(part) for split, part in splits.items()} == {
        "train": 2, "validation": 2, "test": 2
    }  # fmt: skip
    speakers = [{each.speaker for each in part} for part in splits.values()]
    assert sorted(map(sorted, speakers)) == [["s0"], ["s1"], ["s2"]]
    every = sorted((each for part in splits.values() for each in part), key=lambda x: x.name)
    assert [each.text for each in every] == [f"word {n}" for n in range(6)]
    assert [len(each.samples) for each in every] == [400, 200] * 3


def test_splits_of_a_table(folder):
    def change(text):
        lines = text.splitlines()
        splits = ["split", "train", "test", "train", "validation", "train", "train"]
        return "\n".join(f"{a},{b}" for a, b in zip(lines, splits, strict=True))

    table = folder / "table.csv"
    table.write_text(change(table.read_text()))
    splits = read(folder)
    assert [each.text for each in splits["test"]] == ["word 1"]
    assert [each.text for each in splits["validation"]] == ["word 3"]
    found = message(folder, lambda text: text.replace("validation", "dev"))
    assert "table.csv: line 5: expected one of train, validation, test, got 'dev'" in found


def test_without_speakers():
    clips = [Recording(f"{n}", "a", "", np.zeros(1)) for n in range(10)]
    parts = held_out(clips, 0.2, 0.1)
    assert [len(part) for part in parts.values()] == [7, 2, 1]


def test_mistakes_give_one_line(folder):
    assert "expected a column 'path'" in message(folder, lambda t: t.replace("path,", "file,", 1))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("clips/3.flac", "clips/9.flac"), "line 5: expected a path of a recording, got"),
        (('" word  3 "', ""), "line 5: clips/3.flac: expected a transcript, got an empty field"),
        (("clips/3.flac", "../x.wav"), "line 5: expected a path inside"),
        (("clips/3.flac", "clips/1.flac"), "line 5: expected another recording, got"),
        (
            ('clips/3.flac," word  3 ",s1\n', ""),
            "clips/3.flac: expected a line with its transcript",
        ),
    ],
)
def test_transcripts_and_recordings_that_do_not_match(folder, change, expected):
    assert expected in message(folder, lambda text: text.replace(*change))


def test_a_broken_recording(folder):
    (folder / "clips/4.wav").write_bytes(b"RIFF nothing")
    assert "clips/4.wav: expected WAV, FLAC or SPHERE audio" in message(folder)


# ---- AN4 ----


@pytest.fixture
def an4(tmp_path):
    """The published layout: nine speakers with one recording each, and two for the test."""
    etc, wav = tmp_path / "an4/etc", tmp_path / "an4/wav"
    etc.mkdir(parents=True)
    lines = []
    for n in range(9):
        (wav / f"an4_clstk/s{n}").mkdir(parents=True)
        soundfile.write(wav / f"an4_clstk/s{n}/an1-s{n}-b.flac", clip(n), 16000)
        lines.append(f"<s> YES {'NO ' * n}</s> (an1-s{n}-b)")
    (etc / "an4_train.transcription").write_text("\n".join(lines))
    (wav / "an4test_clstk/t").mkdir(parents=True)
    for n in range(2):
        soundfile.write(wav / f"an4test_clstk/t/an{n}-t-b.flac", clip(n), 16000)
    (etc / "an4_test.transcription").write_text("\nGO (an0-t-b)\n")
    (etc / "an4_test.ICHY.transcription").write_text("WRONG (an0-t-b)\nSTOP (an1-t-b)\n")
    return tmp_path / "an4"


def test_an4_merges_the_test_transcripts(an4, tmp_path):
    with tarfile.open(tmp_path / "an4.tar", "w") as archive:
        archive.add(an4, "an4")
    for path in (an4, tmp_path / "an4.tar"):
        splits = read_an4(path, RATE)
        assert [each.text for each in splits["test"]] == ["GO", "STOP"]
        assert [each.text for each in splits["validation"]] == ["YES NO NO NO NO"]
        assert [len(part) for part in splits.values()] == [8, 1, 2]
        assert splits["train"][1].speaker == "s1" and len(splits["train"][1].samples) == 200


def test_an4_that_does_not_match(an4):
    (an4 / "etc/an4_test.ICHY.transcription").unlink()
    with pytest.raises(UserError, match=r"an1-t-b\.flac: expected a transcript, got none"):
        read_an4(an4, RATE)
    (an4 / "wav/an4test_clstk/t/an1-t-b.flac").unlink()
    (an4 / "wav/an4_clstk/s3/an1-s3-b.flac").unlink()
    with pytest.raises(UserError, match="transcript of an1-s3-b: expected a recording, got none"):
        read_an4(an4, RATE)


@pytest.mark.data
def test_an4_as_published():
    """The counts that ESPnet reports for the test set."""
    if not (cache_folder() / "an4").is_dir():
        pytest.skip("needs public data: an4")
    splits = read_an4(find("an4"), RATE)
    test = splits["test"]
    assert len(test) == 130
    assert sum(len(each.text.split()) for each in test) == 773
    assert sum(len(each.text) for each in test) == 2565
    assert len(splits["train"]) + len(splits["validation"]) == 948
    assert len(splits["validation"]) == 100
    speakers = [{each.speaker for each in part} for part in splits.values()]
    assert len(speakers[0] | speakers[1]) == 74 and not speakers[0] & speakers[1]


# ---- spoken digits ----


def test_spoken_digits(tmp_path):
    content = io.BytesIO()
    soundfile.write(content, clip(), RATE, format="WAV")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for digit in range(10):
            for index in range(12):
                name = f"repository/recordings/{digit}_ann_{index}.wav"
                archive.writestr(name, content.getvalue())
    splits = read_spoken_digits(tmp_path / "a.zip", RATE)
    assert [len(part) for part in splits.values()] == [20, 50, 50]
    assert {each.text for each in splits["test"]} == set(DIGITS)


def test_missing_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("LSTM_JAX_DATA", str(tmp_path))
    for name in ("an4", "spoken_digits"):
        with pytest.raises(UserError, match="no recordings there: get them from http"):
            read_recordings(name, RATE, 0.1, 0.1)
    (tmp_path / "an4").mkdir()
    (tmp_path / "an4/an4.tar").write_bytes(b"no archive")
    with pytest.raises(UserError, match="expected a whole"):
        read_recordings("an4", RATE, 0.1, 0.1)
