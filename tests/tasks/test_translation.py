"""Translation: training on an artificial language, BLEU, beams, attention maps, errors."""

import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

from lstm_jax.cli import main
from lstm_jax.data.tokens import END, START
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled, TransformerSeq2Seq
from lstm_jax.tasks.translating import (
    Search,
    attention,
    begun,
    bleu,
    searched,
    smoothed_cross_entropy,
    target_losses,
    translations,
)
from lstm_jax.tasks.translation import Translation
from lstm_jax.tasks.translation_config import ParallelData, TranslationConfig
from lstm_jax.train import load_config, load_run, read_metrics

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

WORDS = {
    "one": "eins", "two": "zwei", "three": "drei", "four": "vier", "five": "fünf", "six": "sechs"
}  # fmt: skip


def sentences(count, seed):
    """Numbers, and their translations in the reverse order."""
    rng = np.random.default_rng(seed)
    source = [[*rng.choice(list(WORDS), rng.integers(1, 5))] for _ in range(count)]
    target = [[WORDS[word] for word in reversed(words)] for words in source]
    return [" ".join(words) + "." for words in source], [" ".join(words) + "." for words in target]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    for part, seed in (("train", 0), ("test", 1)):
        for side, lines in zip("ab", sentences(300 if part == "train" else 20, seed), strict=True):
            (folder / f"{part}.{side}").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder


SMALL = {"hidden_size": 8, "embedding_size": 8}
TRANSFORMER = {"kind": "transformer", "num_heads": 2}


def made(files, model=None, **data):
    data = {"vocabulary_size": 300, "batch_size": 16, "buckets": 2} | data
    data = ParallelData(str(files / "train.a"), str(files / "train.b"), **data)
    return Translation(data, TranslationConfig(**SMALL | (model or {})))


@pytest.fixture(scope="module")
def task(files):
    return made(files)


@pytest.fixture(scope="module", params=[{}, TRANSFORMER], ids=["lstm", "transformer"])
def model(request, files):
    return Compiled(made(files, request.param).build(nnx.Rngs(0)))


def test_smoothed_cross_entropy_equals_that_of_smoothed_labels():
    logits, labels = np.random.default_rng(0).normal(size=(3, 5)), np.array([0, 4, 2])
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smoothed = 0.9 * np.eye(5)[labels] + 0.1 / 5
    expected = -(smoothed * log_probs).sum(-1)
    found = smoothed_cross_entropy(logits.astype(np.float32), labels, 0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_losses_of_given_targets(task, model):
    """Losses in padded batches equal those of each sentence separately."""
    source, target = (task.tokenizer.encode(side) for side in sentences(5, seed=3))
    order = np.argsort([len(tokens) for tokens in source], kind="stable")
    expected = []
    for n in order:
        labels = np.append(target[n], END)[None]
        lengths = np.array([len(source[n]) + 1], np.int32)
        carry = model.encode(source=np.append(source[n], END)[None], lengths=lengths)
        logits = np.asarray(model(carry, tokens=begun(labels))[1]["logits"], np.float64)[0]
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected += [-log_probs[t, token] for t, token in enumerate(labels[0])]
    np.testing.assert_allclose(target_losses(model, source, target), expected, rtol=1e-4)


@pytest.mark.parametrize("beam", [1, 3])
def test_scores_equal_those_of_the_found_targets(task, model, beam):
    """Log probabilities, divided by the length penalty."""
    source = task.tokenizer.encode(["one two.", "six.", "four three two."])
    found = translations(model, source, Search(beam, 0.7, 0.0))
    assert [len(each) for each in found] == [beam] * 3
    for tokens, hypotheses in zip(source, found, strict=True):
        scores = [each.score for each in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for each in hypotheses:
            if len(each.tokens) >= 16:
                continue  # it was cut
            losses = target_losses(model, [tokens], [each.tokens])
            penalty = ((5 + len(losses)) / 6) ** 0.7 if beam > 1 else 1.0
            np.testing.assert_allclose(each.score, -losses.sum() / penalty, rtol=1e-4)


def test_coverage_changes_the_score(task, model):
    source = task.tokenizer.encode(["one two three."])
    plain, covered = (translations(model, source, Search(2, 0.0, b))[0] for b in (0.0, 0.5))
    by_tokens = {tuple(each.tokens): each.score for each in covered}
    compared = 0
    for each in plain:
        if tuple(each.tokens) in by_tokens:
            weights = attention(model, np.append(source[0], END), each.tokens)
            weights = weights[: 2 * 8]  # as many steps as the search takes
            expected = each.score + 0.5 * np.log(np.minimum(weights.sum(0), 1)).sum()
            np.testing.assert_allclose(by_tokens[tuple(each.tokens)], expected, rtol=1e-3)
            compared += 1
    assert compared


def test_the_search_of_a_batch_equals_that_of_each_row(task, model):
    source = task.tokenizer.encode(["one two.", "six five four three."])
    together = translations(model, source, Search(2))
    for tokens, expected in zip(source, together, strict=True):
        (alone,) = translations(model, [tokens], Search(2))
        assert [each.tokens.tolist() for each in alone] == [
            each.tokens.tolist() for each in expected
        ]


def test_greedy_search_is_one_program(task, model):
    source = np.full((2, 8), 5, np.int32)
    found = searched(model, source, np.array([8, 3], np.int32), Search(1))
    assert found.tokens.shape == (2, 1, 16)


def test_the_inputs_of_the_decoder():
    assert begun(np.array([[7, 8, END]])).tolist() == [[START, 7, 8]]


def test_bleu():
    lines = ["ein Hund rennt über die Wiese ."]
    score, signature = bleu(lines, lines)
    assert score == pytest.approx(100)
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.")
    assert bleu(["EIN HUND"], lines)[0] < 10


def test_splits(files):
    pairs = made(files, validation_fraction=0.1).data.read()
    assert {name: len(each.source) for name, each in pairs.items()} == {
        "train": 270, "validation": 30
    }  # fmt: skip
    test = {"test_source": str(files / "test.a"), "test_target": str(files / "test.b")}
    assert made(files, **test).splits == ("validation", "test")


def test_long_pairs_are_left_out_and_counted(files, tmp_path):
    for side in "ab":
        lines = (files / f"train.{side}").read_text("utf-8").splitlines()
        long = [" ".join(lines[n : n + 20]) for n in range(7)]
        (tmp_path / f"long.{side}").write_text("\n".join(long + lines), "utf-8")
    data = ParallelData(
        str(tmp_path / "long.a"), str(tmp_path / "long.b"), vocabulary_size=300, max_tokens=12,
        validation_fraction=0.1,
    )  # fmt: skip
    task = Translation(data, TranslationConfig(**SMALL))
    assert task.notes()[1] == ("data.max_tokens: 7 of 276 training pairs are longer and left out")
    assert max(task.batches(0)[n]["source"].shape[1] for n in range(20)) <= 13


@pytest.mark.parametrize(
    "data, message",
    [
        ({"validation_source": "x.a"}, "data.validation_target: expected a file, got none for"),
        ({"test_target": "x.b"}, "data.test_source: expected a file, got none for x.b"),
        ({"batch_size": 1000}, "data.batch_size: pairs of at most .* expected at least 1000, got"),
        ({"max_tokens": 3}, r"validation split: sentence \d: expected at most data.max_tokens = 3"),
    ],
)  # fmt: skip
def test_data_that_are_rejected(files, data, message):
    with pytest.raises(UserError, match=message):
        made(files, **data)


def test_sentences_that_are_rejected(task, model, tmp_path):
    for source, message in (
        ([" "], "--text: sentence 1: expected words, got ' '"),
        (["one", "one " * 99], "--text: sentence 2: expected at most data.max_tokens = 80"),
    ):
        with pytest.raises(UserError, match=message):
            task.predict(model, source)
    path = tmp_path / "lines.txt"
    path.write_text("one.\n\n")
    with pytest.raises(UserError, match=r"lines\.txt: sentence 2: expected words, got ''"):
        task.predict(model, path)


def test_the_config_selects_the_model(files):
    model = made(files, {"num_layers": 3, **TRANSFORMER}).build(nnx.Rngs(0))
    assert isinstance(model, TransformerSeq2Seq)
    assert (model.features, len(model.encoder), len(model.decoder)) == (8, 3, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_heads": 2, "kind": "lstm"}, 'num_heads: expected 0 with model.kind "lstm", got 2'),
        ({"num_heads": 0}, 'num_heads: expected at least 1 with model.kind "transformer", got 0'),
        (
            {"num_heads": 3},
            r"hidden_size: expected a multiple of 2 \* model.num_heads = 6 .* got 8",
        ),
        ({"embedding_size": 4}, "embedding_size: expected model.hidden_size = 8 with .* got 4"),
        ({"cell": "gru"}, "cell: expected 'lstm' with model.kind \"transformer\", got 'gru'"),
        ({"attention": "additive"}, "attention: expected 'multiplicative' with .*, got 'additive'"),
        ({"input_feeding": False}, "input_feeding: expected True with .*, got False"),
        ({"tied_embeddings": False}, "tied_embeddings: expected True with .*, got False"),
    ],
    ids=str,
)
def test_options_of_the_other_kind_are_named(files, model, message):
    with pytest.raises(UserError, match=rf"^model\.{message}"):
        made(files, TRANSFORMER | model)


def test_both_kinds_of_model_have_as_many_parameters():
    """With the number of subwords of the configs, which Multi30k reaches."""
    sizes = []
    for name in ("multi30k", "multi30k_transformer"):
        config = load_config(CONFIGS / f"{name}.toml")
        build = functools.partial(config.model.build, config.data.vocabulary_size)
        params = nnx.state(nnx.eval_shape(lambda build=build: build(nnx.Rngs(0))), nnx.Param)
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


KINDS = {
    "lstm": "hidden_size = 32\nembedding_size = 32\ndropout = 0.1",
    "transformer": """
kind = "transformer"
num_heads = 4
hidden_size = 64
embedding_size = 64
dropout = 0.0""",
}


@pytest.fixture(scope="module", params=KINDS)
def run(request, files, tmp_path_factory):
    """A short training from the command line; the model memorises the language."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = files / "small.toml"
    config.write_text(
        """
task = "translation"
[data]
source = "train.a"
target = "train.b"
test_source = "test.a"
test_target = "test.b"
vocabulary_size = 300
batch_size = 32
buckets = 2
[optimizer]
name = "adam"
learning_rate = 5e-3
warmup_steps = 60
[train]
num_steps = 240
eval_every = 80
[model]
input_dropout = 0.0
beam_size = 2
"""
        + KINDS[request.param]
    )
    assert main(["train", str(config), "--workdir", str(folder)]) == 0
    return folder


def test_a_short_training(run, capsys):
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert results["test"]["BLEU"] > 50  # word by word: 18
    assert results["notes"][0].startswith("BLEU: sacreBLEU nrefs:1|case:mixed")
    assert np.exp(results["test"]["loss"]) == pytest.approx(results["test"]["perplexity"])
    # The best checkpoint is that with the highest BLEU, the first of equal ones.
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "validation/BLEU" in line]
    assert [line["step"] for line in lines] == [80, 160, 240]
    best = max(lines, key=lambda line: (line["validation/BLEU"], -line["step"]))
    assert results["step"] == best["step"]
    assert results["validation"]["BLEU"] == pytest.approx(best["validation/BLEU"])
    plots = {path.name for path in (run / "plots").iterdir()}
    assert plots == {"loss.png", *(f"attention_{n}.png" for n in range(4))}


def test_predict(run, tmp_path, capsys):
    assert main(["predict", str(run), "--text", "two one.", "--text", "six."]) == 0
    printed = capsys.readouterr().out
    assert "eins zwei." in printed and "sechs." in printed
    loaded = load_run(run)
    columns = loaded.predict(["two one."])
    assert columns["rank"] == [1, 2] and columns["translation"][0] == "eins zwei."
    assert columns["score"][0] > columns["score"][1]
    (tmp_path / "lines.txt").write_text("three.\nfive four.\n")
    columns = loaded.predict(tmp_path / "lines.txt")
    assert columns["translation"] == ["drei.", "vier fünf."]
    assert len(loaded.predict()["translation"]) == 20


def test_a_plot_of_one_sentence(run, tmp_path, capsys):
    path = tmp_path / "map.png"
    assert main(["predict", str(run), "--text", "two one.", "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    texts = ["--text", "one.", "--text", "two."]
    assert main(["predict", str(run), *texts, "--plot", str(path)]) == 1
    assert (
        capsys.readouterr().err == "lstm-jax: error: --plot: expected exactly one --text, got 2\n"
    )
    assert main(["predict", str(run), "--text", "one.", "--plot", "map.txt"]) == 1
    assert "expected a .png or .svg file, got map.txt" in capsys.readouterr().err


def test_attention_of_the_trained_model(run):
    """It reads the source from its end, where the target begins."""
    loaded = load_run(run)
    (source,) = loaded.task.tokenizer.encode(["six two one."])
    target = translations(loaded.model, [source], Search(2))[0][0].tokens
    assert loaded.task.tokenizer.decode(target) == "eins zwei sechs."
    weights = attention(loaded.model, np.append(source, END), target)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    figure = loaded.task.plot(loaded.model, "six two one.")
    assert len(figure.axes[0].get_yticks()) == len(target) + 1
