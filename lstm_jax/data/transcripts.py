"""Recordings of speech with their transcripts: tables, AN4, spoken digits."""

import pathlib
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lstm_jax.data.audio import is_audio, read_samples
from lstm_jax.data.fetch import cache_folder
from lstm_jax.data.fields import read_rows
from lstm_jax.errors import UserError, expect

NAMED_SPEECH = ("an4", "spoken_digits")
"""Named sets: folders of the cache folder."""

SPLITS = ("train", "validation", "test")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WHERE = {
    "an4": "http://www.speech.cs.cmu.edu/databases/an4 (folders etc and wav, .sph or .flac), there "
    "as files or as one .tar archive of the folder an4",
    "spoken_digits": "https://github.com/Jakobovski/free-spoken-digit-dataset and put the .zip "
    "archive of the repository there",
}


class Recording(NamedTuple):
    """A recording and its transcript.

    Attributes:
      name: its file, for messages.
      text: its transcript; words are separated by single spaces.
      speaker: the speaker; empty if unknown.
      samples: float32 ``[N]``.
    """

    name: str
    text: str
    speaker: str
    samples: np.ndarray


Recordings = dict[str, list[Recording]]  # by split


def read_recordings(source: str, rate: int, validation: float, test: float) -> Recordings:
    """The recordings of each split.

    Args:
      source: a name in ``NAMED_SPEECH``, or the path of a table as in :func:`read_transcribed`.
      rate: samples per second.
      validation: the fraction of speakers (or of recordings, if speakers are unknown) for
        validation, if the data define no split.
      test: the same for the test.

    Raises:
      UserError: a file is missing or broken, or a transcript or a recording has no counterpart.

    >>> read_recordings("/no/such/table.csv", 16000, 0.1, 0.1)
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/table.csv: no such file
    """
    if source == "an4":
        return read_an4(find(source), rate)
    if source == "spoken_digits":
        return read_spoken_digits(find(source), rate)
    return read_transcribed(pathlib.Path(source), rate, validation, test)


def find(name: str) -> pathlib.Path:
    """The location of a named set in the cache folder: an archive in its folder, or the folder.

    Raises:
      UserError: it is missing; the message says where to get it.
    """
    folder = cache_folder() / name
    for pattern in ("*.tar*", "*.zip"):
        if archives := sorted(folder.glob(pattern)):
            return archives[0]
    if any(folder.glob("**/*.*")):
        return folder
    raise UserError(f"{folder}: no recordings there: get them from {WHERE[name]}")


# ---- tables ----


def read_transcribed(path: pathlib.Path, rate: int, validation: float, test: float) -> Recordings:
    """The recordings listed in a table.

    The table is a CSV or TSV file with the columns ``path`` and ``text``, and optionally
    ``speaker`` and ``split`` (train, validation or test). Paths are relative to the table's folder.
    Every audio file in this folder and its subfolders must be in the table.

    Args:
      path: the table.
      rate, validation, test: as in :func:`read_recordings`.

    Raises:
      UserError: as :func:`read_recordings`.
    """
    header, *rows = read_rows(path)
    found = ", ".join(header)[:200]
    for name in ("path", "text"):
        expect(name in header, f"{path}: line 1", f"a column {name!r}", f"the columns {found}")
    expect(rows, str(path), "lines below the header", "none")
    columns = {name: [row[n].strip() for row in rows] for n, name in enumerate(header)}
    folder, recordings, files = path.parent, [], set()
    speakers = columns.get("speaker", [""] * len(rows))
    for line, (file, text, speaker) in enumerate(
        zip(columns["path"], columns["text"], speakers, strict=True), start=2
    ):
        place, full = f"{path}: line {line}", (folder / file).resolve()
        inside = file and full.is_relative_to(folder.resolve())
        expect(inside, place, f"a path inside {folder}", repr(file))
        expect(full.is_file(), place, "a path of a recording", f"{file!r}, which does not exist")
        expect(full not in files, place, "another recording", f"{file!r} again")
        expect(text, f"{place}: {file}", "a transcript", "an empty field")
        files.add(full)
        recordings.append(
            Recording(file, " ".join(text.split()), speaker, read_samples(full, rate))
        )
    for full in sorted(folder.rglob("*")):
        listed = full.resolve() in files or not is_audio(full)
        expect(listed, str(full), f"a line with its transcript in {path}", "none")
    if "split" in columns:
        return _by_name(recordings, columns["split"], path)
    return held_out(recordings, validation, test)


def _by_name(
    recordings: Sequence[Recording], splits: Sequence[str], path: pathlib.Path
) -> Recordings:
    found: Recordings = {split: [] for split in SPLITS}
    for line, (recording, split) in enumerate(zip(recordings, splits, strict=True), start=2):
        expect(split in SPLITS, f"{path}: line {line}", f"one of {', '.join(SPLITS)}", repr(split))
        found[split].append(recording)
    return found


def held_out(recordings: Sequence[Recording], validation: float, test: float) -> Recordings:
    """A random split of recordings; each speaker is in only one split.

    Args:
      recordings: the recordings; one without a speaker counts as a separate speaker.
      validation: the fraction of speakers for validation, at least one speaker.
      test: the fraction of speakers for the test.

    >>> clips = [Recording(f"{n}.wav", "a", f"{n // 2}", np.zeros(1)) for n in range(20)]
    >>> {split: len(part) for split, part in held_out(clips, 0.2, 0.1).items()}
    {'train': 14, 'validation': 4, 'test': 2}
    """
    groups = [recording.speaker or recording.name for recording in recordings]
    names = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(names))
    sizes = [max(1, round(share * len(names))) for share in (validation, test)]
    chosen = {names[n]: "validation" for n in order[: sizes[0]]}
    chosen |= {names[n]: "test" for n in order[sizes[0] : sum(sizes)]}
    found: Recordings = {split: [] for split in SPLITS}
    for group, recording in zip(groups, recordings, strict=True):
        found[chosen.get(group, "train")].append(recording)
    return found


# ---- AN4 ----


def read_an4(path: pathlib.Path, rate: int) -> Recordings:
    """CMU AN4: 948 recordings for training and validation, 130 for the test.

    The test transcripts are in ``an4_test.transcription`` and, for recordings missing there, in
    ``an4_test.*.transcription``. Eight speakers, every ninth of the sorted 74, are for validation.

    Args:
      path: the folder ``an4`` of the published archive, or a .tar archive of it.
      rate: samples per second.

    Raises:
      UserError: a file is missing or broken, or a transcript or a recording has no counterpart.

    References:
      Alejandro Acero, Richard Stern, "Environmental Robustness in Automatic Speech Recognition",
      ICASSP 1990 (the census, or alphanumeric, database).
    """
    files = dict(_contents(path))
    train = _an4_part(files, path, "an4_train", "an4_clstk", rate)
    speakers = sorted({recording.speaker for recording in train})[4::9]
    return {
        "train": [each for each in train if each.speaker not in speakers],
        "validation": [each for each in train if each.speaker in speakers],
        "test": _an4_part(files, path, "an4_test", "an4test_clstk", rate),
    }


def _an4_part(
    files: dict[str, bytes], path: pathlib.Path, name: str, folder: str, rate: int
) -> list[Recording]:
    texts: dict[str, str] = {}
    lists = [each for each in files if re.search(rf"etc/{name}(\..*)?\.transcription$", each)]
    expect(lists, str(path), f"a file etc/{name}.transcription", "none")
    for each in sorted(lists, key=len):  # the official one first
        for number, line in enumerate(files[each].decode("latin-1").splitlines(), start=1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(?:<s>)?([^<>()]+)(?:</s>)?\s*\((\S+)\)", line.strip())
            if match is None:
                raise UserError(f"{path}: {each}: line {number}: expected words and (name)")
            texts.setdefault(match[2], " ".join(match[1].split()))
    recordings = {pathlib.PurePath(each).stem: each for each in files if f"/{folder}/" in each}
    for key, each in recordings.items():
        expect(key in texts, f"{path}: {each}", "a transcript", "none")
    found = []
    for key, text in sorted(texts.items()):
        expect(key in recordings, f"{path}: transcript of {key}", "a recording", "none")
        file = recordings[key]
        samples = read_samples(files[file], rate, f"{path}: {file}")
        found.append(Recording(file, text, pathlib.PurePath(file).parent.name, samples))
    return found


def _contents(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    """The transcripts and recordings of a folder or a .tar or .zip archive, by their paths."""

    def wanted(name: str) -> bool:
        return is_audio(name) or name.endswith(".transcription")

    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if wanted(file.name) and file.is_file():
                yield f"{path.name}/{file.relative_to(path).as_posix()}", file.read_bytes()
        return
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(filter(wanted, archive.namelist())):
                    yield name, archive.read(name)
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    content = tar.extractfile(member) if wanted(member.name) else None
                    if content is not None:
                        yield member.name, content.read()
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: expected a whole .tar or .zip archive ({error})") from error


# ---- spoken digits ----


def read_spoken_digits(path: pathlib.Path, rate: int) -> Recordings:
    """The free spoken digit dataset: 3,000 recordings of ten digits by six speakers.

    For each digit and speaker, recordings 0 to 4 are for the test, as published, and 5 to 9 are for
    validation.

    Args:
      path: the .zip archive of the repository, or its folder.
      rate: samples per second.

    Raises:
      UserError: there are no recordings, or one is broken.
    """
    found: Recordings = {split: [] for split in SPLITS}
    for name, content in _contents(path):
        match = re.search(r"(?:^|/)recordings/(\d)_(\w+)_(\d+)\.wav$", name)
        if match is not None:
            digit, speaker, index = int(match[1]), match[2], int(match[3])
            split = "test" if index < 5 else "validation" if index < 10 else "train"
            samples = read_samples(content, rate, f"{path}: {name}")
            found[split].append(Recording(name, DIGITS[digit], speaker, samples))
    for split, recordings in found.items():
        expect(
            recordings, str(path), f"recordings for {split}, such as recordings/0_a_0.wav", "none"
        )
    return found
