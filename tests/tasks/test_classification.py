"""Classification of sequences of different lengths, against NumPy on each row separately."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.classification import Classification, ClassifierConfig, SequencesData
from tests.arrays import in_float64, params_of, with_params

CLASSES = ("ah", "eh", "oh")
# Sums of ten terms in float32 (eps 1.2e-7), through ten steps.
TOLERANCE = 5e-6


def logits(model, xs, lengths, seed=None):
    """The scores from one compiled call; in training mode if a seed is given."""
    inputs, first = {"xs": xs, "lengths": lengths}, model.initial_carry(len(xs))
    if seed is None:
        return Compiled(model)(first, **inputs)[1]["logits"]
    graph, state = nnx.split(model)

    @jax.jit
    def call(state):
        return nnx.merge(graph, state)(first, **inputs, rngs=nnx.Rngs(seed))[1]["logits"]

    return call(state)


def loss_and_gradient(task, model, batch, seed=1):
    """The task's loss in training mode and its gradient."""

    @jax.jit
    def both(params, batch):
        def loss(params):
            return task.loss(with_params(model, params), (), batch, nnx.Rngs(seed))[0]

        return jax.value_and_grad(loss)(params)

    return both(params_of(model), batch)


def sequences(seed: int, rows: int, dimensions: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Sequences of 1 to 9 steps whose level depends on their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % 3
    lengths = rng.integers(1, 10, rows)
    xs = [
        (10 * rng.normal(size=(t, dimensions)) + 5 * label + 100).astype(np.float32)
        for t, label in zip(lengths, labels, strict=True)
    ]
    return xs, labels


def content(xs, labels, classes=CLASSES) -> str:
    lines = [
        ":".join([*(",".join(map(str, column.tolist())) for column in x.T), classes[label]])
        for x, label in zip(xs, labels, strict=True)
    ]
    return "\n".join([f"@classLabel true {' '.join(classes)}", "@data", *lines])


TRAIN, TEST = sequences(0, 30), sequences(1, 20)


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a small task of two small files."""
    folder = tmp_path_factory.mktemp("sequences")

    def task(train=None, test=None, data=None, **model) -> Classification:
        paths = {}
        for part, default, given in (("train", TRAIN, train), ("test", TEST, test)):
            text = content(*default) if given is None else given
            paths[part] = folder / f"{part}-{hash(text)}.ts"
            paths[part].write_text(text)
        model = {"hidden_size": 5, "num_layers": 2, "dropout": 0.0, "input_noise": 0.0} | model
        options = {"batch_size": 4} | {part: str(path) for part, path in paths.items()}
        return Classification(SequencesData(**options | (data or {})), ClassifierConfig(**model))

    return task


def built(task):
    """A model whose parameters are large enough that classes differ, with a bias."""
    model = task.build(nnx.Rngs(0))
    params = params_of(model)
    params["readout"]["bias"] = jnp.array([0.3, -0.2, 0.1])
    return with_params(model, jax.tree.map(lambda leaf: 2 * leaf, params))


def standardised(xs) -> list[np.ndarray]:
    steps = np.concatenate(TRAIN[0]).astype(np.float64)
    return [(x - steps.mean(0)) / steps.std(0) for x in xs]


def network(params, xs, pooling: str) -> np.ndarray:
    """The scores of one row without padding, in float64."""
    params = in_float64(params)
    for _, weights in sorted(params["lstm"].items()):
        h = c = np.zeros(len(weights["w_hh"]))
        ys = []
        for x in xs:
            z = (x @ weights["w_ih"] + h @ weights["w_hh"] + weights["b"]).reshape(4, -1)
            i, f, o = (1 / (1 + np.exp(-z[gate])) for gate in (0, 1, 3))
            c = f * c + i * np.tanh(z[2])
            h = o * np.tanh(c)
            ys.append(h)
        xs = ys
    pooled = np.mean(xs, 0) if pooling == "mean" else xs[-1]
    return pooled @ params["readout"]["kernel"] + params["readout"]["bias"]


def cross_entropy(scores, label: int, smoothing: float = 0.0) -> float:
    log_shares = scores - np.logaddexp.reduce(scores)
    return -(1 - smoothing) * log_shares[label] - smoothing * log_shares.mean()


def with_padding(batch, value: float):
    """The batch with ``value`` past each row's end."""
    past = np.arange(batch["xs"].shape[1]) >= batch["lengths"][:, None]
    return {**batch, "xs": np.where(past[..., None], np.float32(value), batch["xs"])}


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_scores_equal_those_of_each_row_separately(make, pooling):
    task = make(pooling=pooling)
    model = built(task)
    test = task._splits["test"]
    scores = logits(model, test.xs, test.lengths)
    for got, x in zip(scores, standardised(TEST[0]), strict=True):
        np.testing.assert_allclose(
            got, network(params_of(model), x, pooling), rtol=0, atol=TOLERANCE
        )


@pytest.mark.parametrize(("pooling", "noise"), [("mean", 0.5), ("last", 0.0)])
def test_the_content_of_padding_affects_neither_scores_nor_gradients(make, pooling, noise):
    """Equal bit for bit with garbage, infinities or NaN, with and without noise and dropout."""
    task = make(pooling=pooling, input_noise=noise, dropout=noise, num_layers=1)
    model, batch = built(task), task.batches(seed=0)[0]
    zeros = with_padding(batch, 0.0)
    assert zeros["lengths"].min() < zeros["xs"].shape[1]
    scores = logits(model, zeros["xs"], zeros["lengths"], seed=1)
    loss, grads = loss_and_gradient(task, model, zeros)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(grads))
    for value in (-1e30, np.inf, np.nan):
        other = with_padding(batch, value)
        got = logits(model, other["xs"], other["lengths"], seed=1)
        np.testing.assert_array_equal(got, scores)
        jax.tree.map(
            np.testing.assert_array_equal, loss_and_gradient(task, model, other), (loss, grads)
        )


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_more_padding_changes_nothing(make, pooling):
    """The gradient is the mean over the separate rows; for scores see above."""
    task = make(pooling=pooling, num_layers=1)
    model = built(task)
    rng = np.random.default_rng(0)
    rows = [
        {
            "xs": rng.normal(size=(1, length, 2)).astype(np.float32),
            "lengths": np.array([length], np.int32),
            "labels": np.array([label], np.int32),
        }
        for length, label in ((3, 1), (6, 2))
    ]
    batch = {
        "xs": np.stack(
            [np.pad(row["xs"][0], ((0, 9 - len(row["xs"][0])), (0, 0))) for row in rows]
        ),
        "lengths": np.array([3, 6], np.int32),
        "labels": np.array([1, 2], np.int32),
    }
    batch = with_padding(batch, np.nan)
    grads = [loss_and_gradient(task, model, row)[1] for row in rows]
    jax.tree.map(
        lambda got, *alone: np.testing.assert_allclose(
            got, np.mean(alone, 0), rtol=0, atol=TOLERANCE
        ),
        loss_and_gradient(task, model, batch)[1],
        *grads,
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_cross_entropy_of_the_numpy_scores(make, smoothing):
    task = make(label_smoothing=smoothing)
    model, batch = built(task), task.batches(seed=0)[0]
    expected = [
        cross_entropy(
            network(params_of(model), x[:length].astype(np.float64), "mean"), label, smoothing
        )
        for x, length, label in zip(batch["xs"], batch["lengths"], batch["labels"], strict=True)
    ]
    loss, _ = loss_and_gradient(task, model, batch)
    assert float(loss) == pytest.approx(np.mean(expected), rel=TOLERANCE)


def test_evaluate_counts_the_rows_that_numpy_classifies_correctly(make):
    """Label smoothing and dropout apply only in training."""
    task = make(label_smoothing=0.3, dropout=0.5, input_noise=1.0)
    model = built(task)
    scores = [network(params_of(model), x, "mean") for x in standardised(TEST[0])]
    right = np.mean([s.argmax() == label for s, label in zip(scores, TEST[1], strict=True)])
    loss = np.mean([cross_entropy(s, label) for s, label in zip(scores, TEST[1], strict=True)])
    figures = task.evaluate(Compiled(model), "test")
    assert 0 < right < 1
    assert figures["accuracy"] == pytest.approx(100 * right)
    assert figures["loss"] == pytest.approx(loss, rel=TOLERANCE)


def test_noise_and_dropout_are_active_only_in_training(make):
    plain = make(num_layers=1)
    model, batch = built(plain), plain.batches(seed=0)[0]
    scores = logits(model, batch["xs"], batch["lengths"])
    loss, _ = loss_and_gradient(plain, model, batch)
    for options in ({"dropout": 0.5}, {"input_noise": 0.5}):
        task = make(**options, num_layers=1)
        other = with_params(task.build(nnx.Rngs(0)), params_of(model))
        np.testing.assert_array_equal(logits(other, batch["xs"], batch["lengths"]), scores)
        losses = [float(loss_and_gradient(task, other, batch, seed)[0]) for seed in (0, 0, 1)]
        assert losses[0] == losses[1] != losses[2]
        assert abs(losses[0] - float(loss)) > 1e-3


def test_bfloat16_is_close_to_float32(make):
    task, coarse = make(), make(dtype="bfloat16")
    model, batch = built(task), task.batches(seed=0)[0]
    narrow = with_params(coarse.build(nnx.Rngs(0)), params_of(model))
    scores = logits(model, batch["xs"], batch["lengths"])
    other = logits(narrow, batch["xs"], batch["lengths"])
    assert other.dtype == jnp.float32
    # bfloat16 rounds each factor to 2**-9; scores are of order one.
    np.testing.assert_allclose(other, scores, rtol=0, atol=0.05)
    assert np.abs(other - scores).max() > 0


def test_predictions_for_a_new_file_equal_those_of_an_evaluation(make, tmp_path):
    task = make()
    model = Compiled(built(task))
    (tmp_path / "new.ts").write_text(content(*TEST))
    columns = task.predict(model, tmp_path / "new.ts")
    assert columns["sequence"].tolist() == list(range(1, 21))
    truth = [CLASSES[label] for label in TEST[1]]
    right = np.mean([a == b for a, b in zip(columns["class"], truth, strict=True)])
    metrics = task.evaluate(model, "test")
    assert metrics["accuracy"] == 100 * right
    probabilities = np.stack([columns[f"probability {c}"] for c in CLASSES], 1)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    assert [CLASSES[n] for n in probabilities.argmax(1)] == columns["class"]
    losses = -np.log(probabilities[np.arange(20), TEST[1]].astype(np.float64))
    # Probabilities and losses are rounded to float32 separately.
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_a_new_file_that_does_not_fit_is_named(make, tmp_path):
    task = make()
    (tmp_path / "new.ts").write_text(content(*sequences(1, 6, dimensions=3)))
    with pytest.raises(
        UserError, match=r"new\.ts: expected 2 dimensions as in the training file, g"
    ):
        task.predict(None, tmp_path / "new.ts")


def by_row(split) -> list[tuple]:
    return sorted(
        (int(label), np.round(x[:length], 4).tolist())
        for x, length, label in zip(split.xs, split.lengths, split.labels, strict=True)
    )


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_validation_takes_a_fraction_of_each_class(make, fraction):
    """10 sequences per class; the splits are disjoint and standardised by the training part."""
    task = make(data={"validation_fraction": fraction})
    assert task.splits == ("validation", "test")
    train, validation = task._splits["train"], task._splits["validation"]
    share = round(10 * fraction)
    np.testing.assert_array_equal(np.bincount(validation.labels), [share] * 3)
    np.testing.assert_array_equal(np.bincount(train.labels), [10 - share] * 3)
    steps = np.concatenate([x[:n] for x, n in zip(train.xs, train.lengths, strict=True)])
    np.testing.assert_allclose(steps.mean(0), 0, rtol=0, atol=1e-5)
    np.testing.assert_allclose(steps.std(0), 1, rtol=1e-5)
    # On the original scale, the two splits together equal the file.
    whole = np.concatenate(TRAIN[0])
    both = np.concatenate(
        [steps, *(x[:n] for x, n in zip(validation.xs, validation.lengths, strict=True))]
    )
    z = [(s - s.mean(0)) / s.std(0) for s in (both, whole)]
    np.testing.assert_allclose(np.sort(z[0], 0), np.sort(z[1], 0), rtol=0, atol=1e-4)
    train_rows = [row for _, row in by_row(train)]
    assert not any(row in train_rows for _, row in by_row(validation))


def test_a_validation_split_is_not_empty(make):
    """A fraction that rounds to zero sequences could not select the best checkpoint."""
    try:
        task = make(data={"validation_fraction": 0.04})
    except UserError as error:
        assert "data.validation_fraction" in str(error)
    else:
        assert "validation" not in task.splits or len(task._splits["validation"].labels)


def test_without_a_validation_fraction_there_is_no_such_split(make):
    task = make()
    assert task.splits == ("test",)
    assert len(task._splits["train"].labels) == 30


def test_the_baseline_is_the_frequency_of_the_most_common_training_class(make):
    xs, _ = TRAIN
    task = make(train=content(xs, [2] * 12 + [0] * 9 + [1] * 9))
    ((_, figures),) = task.baselines("test").items()
    assert figures["accuracy"] == pytest.approx(100 * np.mean(TEST[1] == 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"test": content(*sequences(1, 6, dimensions=3))},
            "expected 2 dimensions as in the training file, got 3",
        ),
        (
            {"test": content(*TEST, classes=("ah", "oh", "eh"))},
            "expected the classes ah, eh, oh of the training file, got ah, oh, eh",
        ),
        (
            {"data": {"batch_size": 31}},
            "data.batch_size: expected at most the 30 training sequences, got 31",
        ),
        (
            {"data": {"batch_size": 28, "validation_fraction": 0.1}},
            "data.batch_size: expected at most the 27 training sequences, got 28",
        ),
        (
            {"train": content([np.insert(x, 1, 2.0, 1) for x in TRAIN[0]], TRAIN[1])},
            "dimension 1 is constant",
        ),
        (
            # The float32 mean of many values 0.1 is not 0.1, so their deviation is not zero.
            {"train": content([np.insert(x, 1, 0.1, 1) for x in TRAIN[0]], TRAIN[1])},
            "dimension 1 is constant",
        ),
    ],
)
def test_files_and_options_that_do_not_fit_are_named(make, options, message):
    if "constant" in message:
        options = {**options, "test": content(*sequences(1, 6, dimensions=3))}
    with pytest.raises(UserError) as caught:
        make(**options)
    assert message in str(caught.value)


def test_a_fraction_that_leaves_no_training_data_names_the_batch_size(make):
    with pytest.raises(UserError, match=r"expected at most the 0 training sequences, got 4"):
        make(data={"validation_fraction": 0.99})


def test_the_fingerprint_changes_with_either_file(make):
    task, (xs, labels) = make(), TEST
    assert task.fingerprint == make().fingerprint
    assert task.fingerprint != make(test=content(xs, (labels + 1) % 3)).fingerprint
    assert task.fingerprint != make(train=content(*sequences(2, 30))).fingerprint


def csv_content(xs, labels, labelled=True) -> str:
    """The rows of all sequences, the last step first, with columns that are not features."""
    rows = [
        f"s{n};{t};{CLASSES[label]};{x[t, 0]};{x[t, 1]};a note"
        for n, (x, label) in enumerate(zip(xs, labels, strict=True))
        for t in range(len(x) - 1, -1, -1)
    ]
    text = "\n".join(["who;t;class;one;two;remark", *rows])
    if labelled:
        return text
    return "\n".join(";".join(np.delete(row.split(";"), 2)) for row in text.split("\n"))


def save_npz(path, xs, **arrays):
    """Saves sequences with garbage past their ends."""
    lengths = np.array([len(x) for x in xs])
    padded = np.full((len(xs), lengths.max(), xs[0].shape[1]), np.nan)
    for row, x in zip(padded, xs, strict=True):
        row[: len(x)] = x
    np.savez(path, xs=padded, lengths=lengths, **arrays)


def of_files(train, test="", **options) -> Classification:
    columns = {"id_column": "who", "label_column": "class", "order_column": "t"}
    data = {"train": str(train), "test": str(test or ""), "batch_size": 4, **columns, **options}
    return Classification(SequencesData(**data), ClassifierConfig(hidden_size=5))


def test_csv_and_npz_contain_the_same_data_as_ts(make, tmp_path):
    """The same batches, splits and predictions, and new files need no labels."""
    for part, (xs, labels) in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"{part}.csv").write_text(csv_content(xs, labels))
        (tmp_path / f"{part}.ts").write_text(content(xs, labels))
        save_npz(tmp_path / f"{part}.npz", xs, labels=np.array(CLASSES)[labels])
    (tmp_path / "new.csv").write_text(csv_content(*TEST, labelled=False))
    save_npz(tmp_path / "new.npz", TEST[0])
    unlabelled = [line.rpartition(":")[0] for line in content(*TEST).split("\n")[2:]]
    (tmp_path / "new.ts").write_text("\n".join(["@classLabel false", "@data", *unlabelled]))
    expected = make(num_layers=1)
    model = Compiled(built(expected))
    predicted = expected.predict(model, None)
    for kind in ("ts", "csv", "npz"):
        task = of_files(tmp_path / f"train.{kind}", tmp_path / f"test.{kind}")
        for name in ("train", "test"):
            one, other = task._splits[name], expected._splits[name]
            np.testing.assert_array_equal(one.labels, other.labels)
            np.testing.assert_array_equal(one.lengths, other.lengths)
            np.testing.assert_array_equal(one.steps, other.steps)
        assert task.known["classes"] == list(CLASSES)
        columns = task.predict(model, tmp_path / f"new.{kind}")
        np.testing.assert_array_equal(columns["class"], predicted["class"])
        ids = [f"s{n}" for n in range(20)] if kind == "csv" else list(range(1, 21))
        assert columns["sequence"].tolist() == ids
    assert of_files(tmp_path / "train.csv").known["features"] == ["one", "two"]


def test_without_a_test_file_a_fraction_of_each_class_is_the_test(tmp_path):
    (tmp_path / "train.csv").write_text(csv_content(*TRAIN))
    task = of_files(tmp_path / "train.csv", test_fraction=0.3, validation_fraction=0.2)
    counts = {name: np.bincount(split.labels).tolist() for name, split in task._splits.items()}
    assert counts == {"train": [6] * 3, "validation": [1] * 3, "test": [3] * 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("who;", "name;"), "who is missing in 'name, t, class"),
        ((";oh;", ";;"), "column 'class': expected a label, got a missing value"),
        (("s29;1;oh", "s29;1;ah"), "expected the label 'oh' of sequence s29, got ah"),
        (("s29;1;", "s29;0;"), "expected different values in sequence s29, got 0 twice"),
        (("s5;0;oh;", "s5;0;oh;x"), "column 'one': expected a number, got 'x"),
        (("s5;0;oh;", "s5;0;oh;1e39;#"), "expected 6 fields as in the header, got 7"),
    ],
)
def test_a_csv_file_that_does_not_fit_is_named(tmp_path, change, message):
    path = tmp_path / "train.csv"
    text = csv_content(*TRAIN)
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError) as caught:
        of_files(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_another_kind_of_file_is_reported_with_the_expected_kinds(tmp_path):
    path = tmp_path / "data.bin"
    for data, message in (
        (b"\x89PNG\r\n\0\0", "expected a .ts, CSV or .npz file, got another kind of file"),
        (
            b"Once upon a time\n",
            "expected a .ts or .npz file, or a CSV file whose first line names who,",
        ),
        (b"PK\x03\x04 half", "not a .npz file of numbers and strings"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError) as caught:
            of_files(path)
        assert str(caught.value).startswith(f"{path}: {message}")


def test_a_test_value_that_float32_cannot_hold_is_named(tmp_path):
    (tmp_path / "train.csv").write_text(csv_content(*TRAIN))
    xs = [x.astype(np.float64) for x in TEST[0]]
    xs[3][0, 1] = 1e30
    (tmp_path / "test.csv").write_text(csv_content(xs, TEST[1]))
    with pytest.raises(UserError, match=r"test\.csv: sequence s3, step 1, column 'two': expected"):
        of_files(tmp_path / "train.csv", tmp_path / "test.csv")


@pytest.mark.data
def test_padding_changes_nothing_in_the_japanese_vowels(public_data):
    public_data(*(f"japanese_vowels/JapaneseVowels_{part}.ts" for part in ("TRAIN", "TEST")))
    task = Classification(SequencesData(), ClassifierConfig(hidden_size=8))
    model = task.build(nnx.Rngs(0))
    test = task._splits["test"]
    batch = {"xs": test.xs, "lengths": test.lengths, "labels": test.labels}
    zeros, nans = with_padding(batch, 0.0), with_padding(batch, np.nan)
    scores = logits(model, zeros["xs"], test.lengths)
    np.testing.assert_array_equal(logits(model, nans["xs"], test.lengths), scores)
    for row in range(0, 370, 37):
        x = test.xs[row, : test.lengths[row]].astype(np.float64)
        np.testing.assert_allclose(
            scores[row], network(params_of(model), x, "mean"), rtol=0, atol=4 * TOLERANCE
        )
    # 88 of the 370 test utterances are by one speaker; in training, each speaker has 30.
    assert task.baselines("test")["always the most common class"]["accuracy"] == pytest.approx(
        100 * 31 / 370
    )
