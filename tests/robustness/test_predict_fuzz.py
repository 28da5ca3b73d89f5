"""``predict RUN FILE`` with damaged files: the right predictions, or a one-line error.

``pytest tests/robustness --fuzz 2000 -s`` tries a quarter as many of each kind, since models read
them, and prints how many.
"""

import csv
import io
import json
import re

import numpy as np
import pytest
import soundfile
from flax import nnx

from lstm_jax.config import config_from
from lstm_jax.data import midi_bytes
from lstm_jax.data.ink import read_inks
from lstm_jax.models import Compiled
from lstm_jax.train.predict import write_columns
from tests.ink import WORDS, write_ink
from tests.robustness import (
    hostile,
    test_data_fuzz,
    test_motion_fuzz,
    test_music_fuzz,
    test_signals_fuzz,
    test_text_fuzz,
)
from tests.robustness.hostile_text import encoded, mutated_lines
from tests.robustness.readers import csv_records, text_of
from tests.skeletons import write_skeletons

SMALL = {"hidden_size": 3, "embedding_size": 2}
REVIEWS = "text,label\n" + '"good, really",good\nbad film,bad\na fine one,good\nso dull,bad\n' * 4
TUNE = np.eye(6, 88, k=30, dtype=np.uint8)


def task_in(folder, name):
    """A small task, and its data."""
    sections = {
        "next_character": ({"text": "a.txt", "lanes": 2, "window": 4}, SMALL),
        "text_classification": (
            {"train": "a.csv", "batch_size": 2, "test_fraction": 0.25, "validation_fraction": 0.25},
            SMALL,
        ),
        "translation": (
            {"source": "a.en", "target": "a.de", "vocabulary_size": 300, "batch_size": 2,
             "validation_fraction": 0.25, "max_tokens": 20},
            SMALL | {"beam_size": 2},
        ),
        "forecasting": (
            {"table": "a.csv", "train_rows": 12, "validation_rows": 4, "test_rows": 4, "window": 4,
             "horizon": 2, "season": 2, "batch_size": 2},
            {"hidden_size": 3, "segment": 2},
        ),
        "classification": ({"train": "a.ts", "test": "a.ts", "batch_size": 2}, {"hidden_size": 3}),
        "music": ({"pieces": "tunes", "frames_per_beat": 4}, {"hidden_size": 3}),
        "speech": (
            {"recordings": "speech.csv", "sample_rate": 8000, "mel_bands": 8, "speed_change": 0.0,
             "batch_size": 2},
            {"hidden_size": 3, "num_layers": 1, "conv_features": 3, "beam_size": 2},
        ),
        "time_series": (
            {"table": "a.csv", "target_columns": "y", "window": 8, "horizon": 4, "season": 4,
             "validation": "8", "test": "8", "batch_size": 2},
            {"hidden_size": 3},
        ),
        "handwriting": ({"ink": "ink.csv", "batch_size": 2}, {"hidden_size": 3}),
        "handwriting_synthesis": (
            {"ink": "ink.csv", "batch_size": 2},
            {"hidden_size": 3, "num_layers": 1, "window_components": 2, "mixture_components": 2},
        ),
        "video": (
            {"videos": "a.npz", "observed": 1, "horizon": 2, "batch_size": 2},
            {"hidden_size": 3, "num_layers": 1, "patch": 1},
        ),
        "video_classification": (
            {"train": "a.npz", "test": "a.npz", "batch_size": 2, "validation_fraction": 0.4},
            {"channels": "2", "frame_features": 3, "hidden_size": 3},
        ),
        "action": (
            {"recordings": "skeletons", "train_subjects": "1,2", "batch_size": 2,
             "max_frames": 8},
            {"hidden_size": 3},
        ),
    }  # fmt: skip
    files = {
        "next_character": {"a.txt": test_data_fuzz.TEXT},
        "text_classification": {"a.csv": REVIEWS},
        "translation": {"a.en": "a dog\ntwo cats\n" * 4, "a.de": "ein Hund\nzwei Katzen\n" * 4},
        "forecasting": {"a.csv": test_data_fuzz.table_text()},
        "classification": {"a.ts": test_data_fuzz.ts_text()},
        "time_series": {"a.csv": test_signals_fuzz.table_text(np.random.default_rng(0))},
        "speech": {"speech.csv": "path,text\n" + "".join(f"{n}.wav,ab b\n" for n in range(4))},
    }.get(name, {})
    for file, text in files.items():
        (folder / file).write_text(text, "utf-8", newline="")
    (folder / "tunes").mkdir()
    for n in range(3):
        (folder / "tunes" / f"{n}.mid").write_bytes(midi_bytes(TUNE, 4, 90))
    numbers = np.random.default_rng(0)
    for n in range(4) if name == "speech" else ():
        soundfile.write(folder / f"{n}.wav", numbers.uniform(-0.5, 0.5, 3000), 8000)
    write_ink(folder / "ink.csv", pieces=36)
    write_skeletons(folder / "skeletons")
    frames = numbers.integers(0, 256, (6, 3, 2, 2, 1), np.uint8)
    np.savez(folder / "a.npz", frames=frames, labels=np.arange(6) % 2)
    data, model = sections[name]
    config = config_from({"task": name, "data": data, "model": model}, "config", {}, folder)
    return config.build_task()


# ---- files to predict on, and their content by an independent reader ----


def lines_of_text(folder, rng):
    text = "so fine\ngood film, really\n naïve 東京\n2.5\n"
    content = encoded(rng, mutated_lines(rng, text, " ") if rng.random() < 0.7 else text)
    if rng.random() < 0.3:
        content = hostile.mutated_bytes(rng, content)
    path = folder / "new.txt"
    path.write_bytes(rng.choice([content] * 20 + [b"", b"\n", b"x" * 10**5, b"\0" * 50]))
    return path


def reviews(folder, rng):
    """A table, a folder or a file of lines."""
    what = rng.randrange(3)
    if what == 0:
        return test_text_fuzz.labelled_folder(folder, rng)
    if what == 1:
        return lines_of_text(folder, rng)
    path = folder / "new.csv"
    content = encoded(rng, mutated_lines(rng, REVIEWS))
    path.write_bytes(hostile.mutated_bytes(rng, content) if rng.random() < 0.2 else content)
    return path


def sentences(folder, rng):
    path = folder / "new.en"
    path.write_bytes(test_text_fuzz.one_side(rng, "a dog\ntwo naïve cats\n"))
    return path


def tunes(folder, rng):
    make = {0: test_music_fuzz.mat, 1: test_music_fuzz.rolls_json}
    return make.get(rng.randrange(4), test_music_fuzz.midi)(folder, rng)


def same_texts(path, columns):
    if path.suffix == ".csv":
        expected = []
        for separator in ",;\t":
            records = csv_records(text_of(path), separator) or [[]]
            if "text" in records[0]:
                place = records[0].index("text")
                expected.append([row[place] if place < len(row) else None for row in records[1:]])
        assert columns["text"] in expected
    elif path.is_dir():
        assert columns["text"] == [text_of(file) for file in sorted(path.rglob("*.txt"))]
    else:
        text = text_of(path).removesuffix("\n").removesuffix("\r")
        assert columns["text"] == text.replace("\r\n", "\n").split("\n")
    probabilities = np.stack([columns[f"probability {name}"] for name in ("bad", "good")])
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    assert columns["class"] == [("bad", "good")[n] for n in probabilities.argmax(0)]


def same_sentences(path, columns):
    assert columns["source"] == test_text_fuzz.lines_in(path)
    assert set(columns["rank"]) == {1}


def same_lines(path, columns):
    assert sum(columns["characters"]) == len(text_of(path)) - 1


def every_piece(path, columns):
    count = len(json.loads(text_of(path))["test"]) if path.suffix == ".json" else None
    if path.suffix == ".mat":
        count = len(test_music_fuzz.variables(path)["testdata"])
    if path.suffix == ".mid":
        assert columns["frames"].tolist() == [len(test_music_fuzz.roll_of(path.read_bytes()))]
    assert count in (None, len(columns["frames"]))


def forecast(path, columns):
    assert list(columns) == ["row", "shop", "price", "sold"] and len(columns["row"]) == 2


def one_class_each(path, columns):
    names = [name.removeprefix("probability ") for name in columns if "probability" in name]
    probabilities = np.stack([columns[f"probability {name}"] for name in names])
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    assert columns["class"] == [names[n] for n in probabilities.argmax(0)]


def transcribed(path, columns):
    assert columns["file"] == [str(path)]
    assert {*columns["transcript"][0], *columns["greedy"][0]} <= {*"ab "}


def future(path, columns):
    days = np.array(columns["ds"], "datetime64[D]")
    assert len(days) == 4 and (np.diff(days) == np.timedelta64(1, "D")).all()
    text = path.read_bytes().decode("utf-8-sig")
    known = np.array(re.findall(r"\d{4}-\d\d-\d\d", text), "datetime64[D]")
    assert days[0] - 1 in known
    spreads = np.diff([columns[name] for name in columns if name.startswith("q")], axis=0)
    assert len(spreads) and (spreads >= 0).all()


def ink(folder, rng):
    kinds = [test_signals_fuzz.ink_csv, test_signals_fuzz.inkml, test_signals_fuzz.unipen]
    return rng.choice(kinds)(folder, rng)


def readings(path, columns):
    held = {".csv": test_signals_fuzz.held_by_csv, ".inkml": test_signals_fuzz.held_by_inkml}
    inks = read_inks(path)
    held.get(path.suffix, test_signals_fuzz.held_by_unipen)(path, inks)
    assert columns["ink"] == [each.name for each in inks]
    assert {*columns["word"]} <= {*WORDS} and {*"".join(columns["reading"])} <= {*"".join(WORDS)}
    assert ((columns["probability"] >= 0) & (columns["probability"] <= 1)).all()


def moves(path, columns):
    inks = read_inks(path)
    assert columns["ink"] == [each.name for each in inks]
    assert (columns["moves"] > 0).all()


def next_frames(path, columns):
    with np.load(path) as file:
        assert columns["frames"].shape == (len(file["frames.npy"]), 2, 2, 2, 1)


KINDS = {
    "next_character": (test_data_fuzz.of_text("d.txt", " "), same_lines),
    "text_classification": (reviews, same_texts),
    "translation": (sentences, same_sentences),
    "forecasting": (test_data_fuzz.of_text("a.csv", ",;"), forecast),
    "classification": (test_data_fuzz.of_text("c.ts", ",:"), one_class_each),
    "music": (tunes, every_piece),
    "speech": (test_signals_fuzz.audio, transcribed),
    "time_series": (test_signals_fuzz.table, future),
    "handwriting": (ink, readings),
    "handwriting_synthesis": (test_signals_fuzz.ink_csv, moves),
    "video": (test_motion_fuzz.video_file, next_frames),
    "video_classification": (test_motion_fuzz.video_file, one_class_each),
    "action": (test_motion_fuzz.archive, one_class_each),
}


@pytest.mark.filterwarnings("ignore")  # of scipy: duplicate variables
@pytest.mark.parametrize("name", KINDS)
def test_predictions_on_damaged_files(name, tmp_path, fuzz_budget):
    make, check = KINDS[name]
    (tmp_path / "data").mkdir()
    task = task_in(tmp_path / "data", name)
    model = Compiled(task.build(nnx.Rngs(0)))

    def predict(path):
        columns = task.predict(model, path)
        for suffix in ("csv", "json", "npz"):
            write_columns(columns, tmp_path / f"out.{suffix}")
        return columns

    def as_written(path, columns):
        check(path, columns)
        assert len({len(column) for column in columns.values()}) == 1
        rows = json.loads((tmp_path / "out.json").read_text("utf-8"))
        assert all(list(row) == list(columns) for row in rows)
        table = io.StringIO((tmp_path / "out.csv").read_bytes().decode("utf-8"), newline="")
        assert len([*csv.reader(table)]) == 1 + len(rows)
        with np.load(tmp_path / "out.npz") as arrays:
            for key, column in columns.items():
                if np.asarray(column).dtype.kind == "f":
                    np.testing.assert_array_equal(arrays[key], column)
                    # A mean over nothing: a piece of one frame, a line whose only token is given.
                    count = columns.get("frames", columns.get("characters", 2 + 0 * column))
                    known = count > (1 if name == "music" else 0)
                    np.testing.assert_array_equal(np.isfinite(column), known)
                    found = [np.nan if row[key] is None else row[key] for row in rows]
                    np.testing.assert_allclose(found, column, rtol=1e-6)
                else:
                    plain = [x.tolist() if isinstance(x, np.ndarray) else x for x in column]
                    assert [row[key] for row in rows] == plain

    outcomes = hostile.tried(
        f"predict, {name}", max(1, fuzz_budget // 4), lambda rng: make(tmp_path, rng), predict,
        as_written, around=hostile.limited, names=r"\w",
    )  # fmt: skip
    assert sum(outcomes.values()) == max(1, fuzz_budget // 4)
