"""Text classification from small files, against computations for one text at a time."""

import csv
import itertools
import json
import math
import re

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from lstm_jax.cli import main
from lstm_jax.config import load_config
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.ngrams import ngram_classifier
from lstm_jax.tasks.scores import class_metrics, logits_of
from lstm_jax.tasks.text_classification import TextClassification
from lstm_jax.tasks.text_options import LabelledTextData, TextClassifierConfig
from lstm_jax.train import Report, TrainConfig, load_run, train
from tests.arrays import params_of, with_params

GOOD, BAD = ("great", "lovely", "fine"), ("dull", "awful", "poor")
SMALL = {"embedding_size": 4, "hidden_size": 5}
MODEL = {**SMALL, "word_dropout": 0.0, "embedding_dropout": 0.0, "dropout": 0.0}


def rows(seed: int, count: int) -> list[tuple[str, str]]:
    """Texts of 1 to 12 words, one of which determines the class; two of three are good."""
    rng = np.random.default_rng(seed)
    made = []
    for n in range(count):
        label, words = ("bad", BAD) if n % 3 == 2 else ("good", GOOD)
        text = [*rng.choice(["it", "was", "a", "film", "isn't"], rng.integers(0, 12))]
        text.insert(rng.integers(len(text) + 1), rng.choice(words))
        made.append((" ".join(text), label))
    return made


def table(path, content):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *content])
    return path


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a small task of two small files."""
    folder = tmp_path_factory.mktemp("texts")

    def task(train=None, test=None, model=None, **data) -> TextClassification:
        numbers = itertools.count(len(list(folder.iterdir())))
        paths = [
            str(table(folder / f"{next(numbers)}.csv", content))
            for content in (train or rows(0, 40), test or rows(1, 20))
        ]
        data = {"train": paths[0], "test": paths[1], "batch_size": 4, **data}
        return TextClassification(
            LabelledTextData(**data), TextClassifierConfig(**{**MODEL, **(model or {})})
        )

    return task


# ---- data ----


def test_splits_are_stratified_and_share_no_text(make):
    content = [(f"text {n}", "bad" if n % 3 == 2 else "good") for n in range(60)]
    path = make(content).data.train
    task = TextClassification(
        LabelledTextData(train=path, test_fraction=0.2, validation_fraction=0.25, batch_size=4),
        TextClassifierConfig(**MODEL),
    )
    parts = task.data.read()
    assert {name: len(part.texts) for name, part in parts.items()} == {
        "train": 36, "validation": 12, "test": 12,
    }  # fmt: skip
    assert all(
        np.bincount(part.labels)[1] == 2 * (part.labels == 0).sum() for part in parts.values()
    )
    assert len({text for part in parts.values() for text in part.texts}) == 60
    assert task.splits == ("validation", "test")
    assert make(content, validation_fraction=0.0).splits == ("test",)


def test_a_batch_contains_the_texts_and_their_classes(make):
    task = make()
    known = {}
    for text, label in rows(0, 40):
        (ids,) = task.tokenizer.encode([text])
        known[tuple(ids.tolist())] = label
    batches, shapes = task.batches(seed=0), set()
    for k in range(20):
        batch = batches[k]
        shapes.add(batch["tokens"].shape[1])
        for row, length, label in zip(
            *(batch[name] for name in ("tokens", "lengths", "labels")), strict=True
        ):
            assert known[tuple(row[:length].tolist())] == task.known["classes"][label]
            assert not row[length:].any()
    assert shapes <= {4, 8, 16} and len(shapes) > 1


@pytest.mark.parametrize(("tokens", "size"), [("words", 40), ("subwords", 290), ("characters", 40)])
def test_the_model_reads_words_subwords_or_characters(make, tokens, size):
    task = make(tokens=tokens, vocabulary_size=size, max_length=100)
    assert len(task.tokenizer) <= size
    text = "a great film"
    (ids,) = task.data.encode(task.tokenizer, task.data.read_new([text]))
    assert task.tokenizer.decode(ids) == text
    columns = task.predict(Compiled(task.build(nnx.Rngs(0))), [text, "a zebra"])
    assert (columns["unknown"] > 0).tolist() == [False, tokens != "subwords"]


def test_notes_describe_the_data(make, tmp_path):
    (tmp_path / "vectors.txt").write_text("film 1 2 3 4\ngreat 1 1 1 1\nzebra 0 0 0 1\n")
    task = make(test=[("a zebra", "good"), ("great", "good")], validation_fraction=0.0,
                model={"vectors": str(tmp_path / "vectors.txt")})  # fmt: skip
    assert task.notes() == [
        "40 training texts: 13 bad, 27 good",
        f"{len(task.tokenizer)} words; unknown: 33.3 % of test",
        f"2 of {len(task.tokenizer)} words have a vector in {tmp_path / 'vectors.txt'}",
    ]
    table = task.build(nnx.Rngs(0)).embedding.embedding[...]
    assert table[task.tokenizer.tokens.index("film")].tolist() == [1, 2, 3, 4]


# ---- loss and metrics ----


def losses(scores, labels):
    return [-(row - np.logaddexp.reduce(row))[c] for row, c in zip(scores, labels, strict=True)]


def alone(model, texts) -> list[np.ndarray]:
    """The scores of each text, read separately."""
    calls = ((ids[None], np.array([len(ids)], np.int32)) for ids in texts)
    outputs = [model((), tokens=tokens, lengths=lengths)[1] for tokens, lengths in calls]
    return [np.asarray(each["logits"][0], np.float64) for each in outputs]


@pytest.mark.parametrize("weights", ["equal", "balanced"])
def test_the_loss_is_a_weighted_cross_entropy(make, weights):
    task = make(class_weights=weights, validation_fraction=0.0)
    model, batch = task.build(nnx.Rngs(0)), task.batches(0)[0]
    loss = jax.jit(lambda batch: task.loss(model, (), batch, nnx.Rngs(1))[0])(batch)
    counts, labels = {"bad": 13, "good": 27}, batch["labels"]
    weight = [40 / (2 * counts[c]) if weights == "balanced" else 1.0 for c in ("bad", "good")]
    whole = zip(batch["tokens"], batch["lengths"], strict=True)
    scores = alone(Compiled(model), [row[:length] for row, length in whole])
    each = [weight[c] * x for c, x in zip(labels, losses(scores, labels), strict=True)]
    # Sums of a few terms in float32 (eps 1.2e-7), through twelve steps.
    assert float(loss) == pytest.approx(np.mean(each), rel=5e-6)


def test_metrics_equal_those_of_each_text_separately(make):
    task = make(test=rows(1, 6))
    model = Compiled(task.build(nnx.Rngs(3)))
    texts, labels = zip(*rows(1, 6), strict=True)
    labels = [("bad", "good").index(label) for label in labels]
    scores = alone(model, task.tokenizer.encode(texts))
    metrics, predicted = task.evaluate(model, "test"), np.argmax(scores, 1)
    assert metrics["loss"] == pytest.approx(np.mean(losses(scores, labels)), rel=5e-6)
    assert metrics["accuracy"] == 100 * np.mean(predicted == labels)


def test_many_texts_are_read_in_calls_of_few_shapes():
    calls = []

    class Summing:
        def initial_carry(self, rows):
            return ()

        def __call__(self, carry, *, tokens, lengths):
            calls.append(tokens.shape)
            inside = np.arange(tokens.shape[1]) < lengths[:, None]
            return carry, {"logits": np.stack([(tokens * inside).sum(1), lengths], 1)}

    rng = np.random.default_rng(0)
    texts = [rng.integers(1, 99, n).astype(np.int32) for n in rng.integers(1, 15, 700)]
    expected = [[text.sum(), len(text)] for text in texts]
    np.testing.assert_array_equal(logits_of(Summing(), texts), expected)
    assert len(set(calls)) <= 3 and max(shape[0] for shape in calls) == 256


def test_macro_f1_is_the_mean_over_classes():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2, 2, 0])
    f1 = []
    for c in range(3):
        precision = np.mean(labels[predicted == c] == c)
        recall = np.mean(predicted[labels == c] == c)
        f1.append(2 * precision * recall / (precision + recall))
    metrics = class_metrics(np.eye(4)[predicted], labels)  # class 3 never occurs
    assert metrics["macro F1"] == pytest.approx(100 * np.mean(f1), rel=1e-12)
    assert metrics["accuracy"] == 100 * 5 / 8


def test_logistic_regression_is_at_the_minimum_and_follows_its_equations():
    """At the minimum the gradient is zero: W = strength X^T (Y - P), with hand-written features."""
    train, others = (
        ["good film", "a bad film", "good good", "bad"],
        ["good film a", "zebra bad bad"],
    )
    labels = np.array([1, 0, 1, 0])

    def grams(text):
        return [*text.split(), *itertools.pairwise(text.split())]

    known = sorted({gram for text in train for gram in grams(text)}, key=str)
    idf = [1 + math.log(5 / (1 + sum(gram in grams(text) for text in train))) for gram in known]

    def features(text):
        counts = np.array([grams(text).count(gram) for gram in known]) * np.array(idf)
        return counts / np.linalg.norm(counts)

    xs = np.array([features(text) for text in train])
    weights, bias = np.zeros((len(known), 2)), np.zeros(2)
    for _ in range(20_000):  # plain gradient descent
        shares = np.exp(xs @ weights + bias)
        errors = shares / shares.sum(1, keepdims=True) - np.eye(2)[labels]
        weights -= 0.1 * (xs.T @ errors + weights / 3.0)
        bias -= 0.1 * errors.sum(0)
    expected = np.array([features(text) for text in others]) @ weights + bias
    found = ngram_classifier(train, labels, 2, strength=3.0)(others)
    # L-BFGS-B stops when the relative change of the loss is below about 1e-9.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert found.argmax(1).tolist() == [1, 0]


def test_baselines_are_measured_on_the_same_split(make):
    task = make(rows(0, 400))
    for split in task.splits:
        always, regression = task.baselines(split).values()
        share = 100 * np.mean(task.data.read()[split].labels == 1)
        assert always["accuracy"] == share and "loss" not in always
        # Six words determine the class, and all are in the training texts.
        assert regression["accuracy"] > 90 > share


# ---- a run, as a user sees it ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run; its training data are gone."""
    folder = tmp_path_factory.mktemp("run")
    for n, (text, label) in enumerate(rows(0, 60)):
        (folder / "texts" / label).mkdir(parents=True, exist_ok=True)
        (folder / "texts" / label / f"{n:02}.txt").write_text(text + " <b>é")
    (folder / "run.toml").write_text(
        'task = "text_classification"\n[data]\ntrain = "texts"\ntest_fraction = 0.2\n'
        "validation_fraction = 0.2\nbatch_size = 8\nmax_length = 14\n[model]\nembedding_size = 8\n"
        'hidden_size = 8\npooling = "attention"\nword_dropout = 0.1\n[optimizer]\n'
        "learning_rate = 0.02\nwarmup_steps = 5\n[train]\nnum_steps = 120\neval_every = 30\n"
    )
    config = load_config(folder / "run.toml")
    assert main(["train", str(folder / "run.toml"), "--workdir", str(folder / "run")]) == 0
    assert config.data.train == str(folder / "texts")
    (folder / "texts").rename(folder / "gone")
    return folder / "run"


def test_it_learns_and_writes_its_page(run):
    results = json.loads((run / "results.json").read_text())
    assert results["test"]["accuracy"] > 80  # two of three are good
    page = (run / "plots" / "texts.html").read_text("utf-8")
    assert "<b>é" not in page and "&lt;" in page and "prefers-color-scheme: dark" in page
    words = re.findall(r'<b style="background:rgb\([\d ]+ / ([\d.]+)\)">([^<]+)</b>', page)
    strongest = {word for strength, word in words if strength == "0.75"}
    assert strongest & {*GOOD, *BAD}
    assert (run / "plots" / "confusion.png").exists()


def test_text_is_predicted_from_the_command_line_and_from_files(run, tmp_path, capsys):
    texts = ["it was a GREAT film <b>é", "it was a awful film <b>é"]
    found = load_run(run).predict(texts)
    assert found["class"] == ["good", "bad"]
    shares = np.stack([found["probability bad"], found["probability good"]])
    np.testing.assert_allclose(shares.sum(0), 1, rtol=1e-6)
    assert main(["predict", str(run), *itertools.chain(*(("--text", t) for t in texts))]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:2] == ["text", "class"] and out[1].startswith(texts[0]) and len(out) == 3
    (tmp_path / "a.txt").write_text("\n".join(texts) + "\n", "utf-8")
    (tmp_path / "a.csv").write_text('text\n"{}"\n"{}"\n'.format(*texts), "utf-8")
    for name in ("a.txt", "a.csv"):
        output = tmp_path / "out.csv"
        assert main(["predict", str(run), str(tmp_path / name), "--output", str(output)]) == 0
        with output.open(encoding="utf-8") as file:
            written = list(csv.DictReader(file))
        assert [row["text"] for row in written] == texts
        assert [row["class"] for row in written] == ["good", "bad"]
        assert list(written[0]) == list(found)


def test_a_long_text_is_cut_and_counted(run):
    found = load_run(run).predict(["it was a film " * 5])
    assert found["cut"].tolist() == [20 - 14] and found["unknown"].tolist() == [0]


@pytest.mark.parametrize("format", ["stablehlo", "onnx"])
def test_an_exported_model_has_the_scores_of_the_run(run, format, capsys):
    pytest.importorskip("onnxruntime")
    from lstm_jax.export.runner import Model

    (run.parent / "gone").rename(run.parent / "texts")
    try:
        assert main(["export", str(run), "--format", format]) == 0
    finally:
        (run.parent / "texts").rename(run.parent / "gone")
    loaded = load_run(run)
    exported = Model(run / "export" / f"{format}-float32")
    ids = loaded.task.tokenizer.encode(["it was a great film", "awful", "a poor , dull film"])
    # Sums of eight terms in float32, in another order.
    np.testing.assert_allclose(
        logits_of(exported, ids), logits_of(loaded.model, ids), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--text", ""), "text 1: expected text, got an empty string"),
        (("--text", "ok", "--text", " \n"), "text 2: expected text, got an empty string"),
        (("empty.txt",), "empty.txt: expected text, got an empty file"),
        (("gap.txt",), "gap.txt: line 2: expected text, got an empty string"),
        (("latin.csv",), "latin.csv: expected UTF-8 text, got byte 0xe9 at position 5"),
        (("review.csv",), "review.csv: line 1: expected a column 'text', got the columns review"),
        (("a.pdf",), "a.pdf: expected a .csv or .tsv file, a .txt file or a folder of .txt files"),
    ],
)
def test_mistakes_in_new_text_give_one_line(run, tmp_path, monkeypatch, capsys, args, message):
    monkeypatch.chdir(tmp_path)
    files = {"empty.txt": b"", "gap.txt": b"a\n\nb\n", "latin.csv": "text\né\n".encode("latin-1")}
    for name, content in {**files, "review.csv": b"review\nx\n", "a.pdf": b"%PDF"}.items():
        (tmp_path / name).write_bytes(content)
    assert main(["predict", str(run), *args]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_mistakes_in_the_data_are_named(make, tmp_path):
    many = rows(0, 40)
    (tmp_path / "vectors.txt").write_text("film 1 2 3\n")
    cases = [
        (
            {"train": [("a", "x")] * 9, "test": [("a", "x")]},
            "data.train: {train}: expected at least two classes, got x",
        ),
        ({"batch_size": 50}, "data.batch_size: expected at most the 36 training texts, got 50"),
        ({"test": [("a", "ugly")]}, "{test}: line 2: expected a label among bad, good, got 'ugly'"),
        ({"train": [*many, (" ", "bad")]}, "{train}: line 42: expected text, got an empty string"),
        (
            {"test": [("a " * 31, "bad")], "max_length": 30, "too_long": "error"},
            "{test}: line 2: expected at most data.max_length = 30 tokens, got 31",
        ),
        (
            {"validation_fraction": 0.001},
            "data.validation_fraction: expected a share that holds out",
        ),
        (
            {"model": {"vectors": str(tmp_path / "vectors.txt")}},
            "model.vectors: expected vectors of 4 numbers, got 3",
        ),
        (
            {"tokens": "subwords", "vocabulary_size": 99},
            "data.vocabulary_size: expected at least 260",
        ),
    ]
    for options, message in cases:
        with pytest.raises(UserError) as info:
            make(
                validation_fraction=0.1, **options
            ) if "validation_fraction" not in options else make(**options)
        got = re.sub(r"\S*/\d+\.csv", "FILE", str(info.value))
        assert message.replace("{train}", "FILE").replace("{test}", "FILE") in got
        assert "\n" not in got


def test_batches_of_different_lengths_are_not_accumulated(make, tmp_path):
    options = TrainConfig(num_steps=5, accumulate=4)
    with pytest.raises(UserError, match=r"^train.accumulate: expected 1, since batches of text_"):
        train(make(), tmp_path / "run", Report(Console(quiet=True)), options=options)


def test_labels_of_a_test_file_are_positions_among_the_training_classes(make):
    task = make(test=[("great", "good"), ("a great film", "good")])
    assert task.data.read()["test"].labels.tolist() == [1, 1]
    params = params_of(task.build(nnx.Rngs(0)))
    params["readout"]["bias"] = jax.numpy.array([-9.0, 9.0])
    model = Compiled(with_params(task.build(nnx.Rngs(0)), params))
    assert task.evaluate(model, "test")["accuracy"] == 100.0
