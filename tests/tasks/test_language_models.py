"""Language models of words and subwords, regularised, or by a Transformer."""

import dataclasses
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lstm_jax.config import load_config
from lstm_jax.data import cut_text
from lstm_jax.data.tokens import UNKNOWN
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled, LanguageModel, TransformerLanguageModel
from lstm_jax.tasks import NextCharacter
from lstm_jax.tasks.language import stream_losses
from lstm_jax.tasks.language_config import LanguageModelConfig, TextData
from tests.arrays import doubled

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
WORDS = ["the", "quick", "brown", "fox,", "a", "lazy", "dög\n"]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 600)) + " unheard of\nin training"
TRANSFORMER = {"kind": "transformer", "num_heads": 2, "context": 6, "embedding_size": 8}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a small task."""
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT, "utf-8")

    def task(tokens="characters", **model) -> NextCharacter:
        model = {"hidden_size": 8, "embedding_size": 4, "dropout": 0.0} | model
        data = TextData(str(path), tokens, vocabulary_size=270, lanes=3, window=7)
        return NextCharacter(data, LanguageModelConfig(**model))

    return task


def built(task):
    return doubled(task.build(nnx.Rngs(0)), 1.5)


def generated(task, model, prompt="", **options):
    how = {"length": 12, "temperature": 1.0, "seed": 0} | options
    return "".join(task.generate(model, prompt=prompt, **how))


# ---- words and subwords ----


@pytest.mark.parametrize("tokens", ["words", "subwords"])
@pytest.mark.parametrize("model", [{}, TRANSFORMER], ids=["lstm", "transformer"])
def test_metrics_follow_from_the_probability_of_the_text(make, tokens, model):
    task = make(tokens, **model)
    model = Compiled(built(task))
    metrics = task.evaluate(model, "validation")
    validation = cut_text(TEXT, 0.1, whole_words=True)[1]
    encoded = task.codec.encode(validation)
    carry, nats = model.initial_carry(1), 0.0
    for token, target in itertools.pairwise(encoded.tolist()):
        carry, outputs = model(carry, tokens=np.array([[token]], np.int32))
        nats -= float(jax.nn.log_softmax(outputs["logits"][0, 0])[target])
    rest = validation[task.codec.ends(validation)[0] :]
    expected = {
        "loss": nats / (len(encoded) - 1),
        "perplexity": np.exp(nats / (len(encoded) - 1)),
        "bits per byte": nats / np.log(2) / len(rest.encode()),
        "word perplexity": np.exp(min(20, nats / len(rest.split()))),
    }
    if tokens == "words":
        expected["unknown"] = np.mean(encoded[1:] == UNKNOWN)
        assert 0 < metrics["unknown"] < 0.2
    assert metrics == {name: pytest.approx(value, rel=2e-5) for name, value in expected.items()}
    baseline = task.baselines("validation")["5-gram, Witten-Bell"]
    assert set(baseline) == set(metrics) - {"unknown"}


def test_characters_have_comparable_metrics(make):
    task = make()
    metrics = task.evaluate(Compiled(built(task)), "validation")
    assert list(metrics) == ["loss", "bits", "bits per byte", "word perplexity"]
    validation = TEXT[round(len(TEXT) * 0.9) + 1 :]
    share = len(validation) / len(validation.encode())  # ö has two bytes
    assert metrics["bits per byte"] == pytest.approx(metrics["bits"] * share)


@pytest.mark.parametrize("tokens", ["words", "subwords"])
def test_the_tokenizer_is_trained_on_the_training_split_and_stored(make, tokens):
    task = make(tokens)
    assert "unheard" not in task.known["tokenizer"] and "th" in task.known["tokenizer"]
    again = NextCharacter.restored(task.known, data=task.data, model=task.model)
    assert len(again.codec) == len(task.codec)
    model = Compiled(built(task))
    assert generated(again, model, "the") == generated(task, model, "the")


@pytest.mark.parametrize("tokens", ["words", "subwords"])
def test_losses_of_lines_add_up_to_that_of_the_text(make, tokens, tmp_path):
    task = make(tokens)
    model = Compiled(built(task))
    text = "the quick dög\n\nlazy, unheard\r\n fox"
    (tmp_path / "new.txt").write_bytes(text.encode())
    columns = task.predict(model, tmp_path / "new.txt")
    losses = stream_losses(model, task.codec.encode(text))
    assert columns["text"] == ["the quick dög", "", "lazy, unheard", " fox"]
    assert columns[tokens].sum() == len(losses)
    parts = np.split(losses, np.cumsum(columns[tokens])[:-1])
    for part, loss in zip(parts, columns["loss"], strict=True):
        assert loss == pytest.approx(part.mean()) if len(part) else np.isnan(loss)
    if tokens == "words":  # the first is given; a line end is a token
        assert columns[tokens].tolist() == [3, 1, 4, 1]


def test_generated_words_are_words_of_the_text(make):
    task = make("words")
    model = Compiled(built(task))
    text = generated(task, model, "the  quick", length=40, temperature=3.0)
    assert text.startswith("the  quick")
    words = text.replace("\n", " ").split()
    assert set(words) <= set(" ".join(WORDS).replace(",", " ,").split())
    assert "\n" in text and len(set(words)) > 4
    filtered = generated(task, model, "the", temperature=3.0, top_k=1)
    assert filtered == generated(task, model, "the", temperature=0.0)
    with pytest.raises(UserError, match=r"^prompt: expected at least 1 words, got 0"):
        generated(task, model, "  ")


def test_generated_subwords_are_text(make):
    task = make("subwords")
    model = Compiled(built(task))
    assert generated(task, model, "the ").startswith("the ")
    assert generated(task, model, length=30) != generated(task, model, length=30, seed=1)


def test_a_small_vocabulary_names_its_key(make):
    data = dataclasses.replace(make().data, tokens="subwords", vocabulary_size=100)
    with pytest.raises(UserError, match=r"^data\.vocabulary_size: expected at least 260, got 100"):
        NextCharacter(data, LanguageModelConfig())


# ---- regularisers ----


def trained_loss(task, model, batch, seed=0):
    return task.loss(model, model.initial_carry(3), batch, nnx.Rngs(seed))


def test_penalties_of_activations_are_mean_squares(make):
    plain = make(hidden_size=5, num_layers=2)
    penalised = make(hidden_size=5, num_layers=2, activation_penalty=2.0, temporal_penalty=3.0)
    model, batch = built(plain), plain.batches(0)[0]
    loss, carry = trained_loss(plain, model, batch)
    total, after = trained_loss(penalised, model, batch)
    carries, ys = model.initial_carry(3), []
    for token in batch["inputs"].T:
        carries, _ = model(carries, tokens=token[:, None])
        ys.append(np.asarray(carries["layer_1"].h, np.float64))
    expected = 2 * np.square(ys).mean() + 3 * np.square(np.diff(ys, axis=0)).mean()
    assert float(total - loss) == pytest.approx(expected, rel=1e-4)  # a difference near 1
    jax.tree.map(np.testing.assert_array_equal, carry, after)


def test_the_penalty_of_activations_includes_their_dropout(make):
    """With the random streams in a fixed state, the mask equals that of the logits."""
    model = built(make(dropout=0.5))
    batch = make().batches(0)[0]
    dropped = make(dropout=0.5, activation_penalty=1.0)
    plain, _ = trained_loss(make(dropout=0.5), model, batch)
    total, _ = trained_loss(dropped, model, batch)
    _, ys = model.hidden(model.initial_carry(3), batch["inputs"], nnx.Rngs(0))
    undropped = float(jnp.square(ys).mean())
    # E (d y)² = y² / (1 - rate), with 168 independent masks.
    assert float(total - plain) == pytest.approx(2 * undropped, rel=0.4)
    assert float(total - plain) > 1.2 * undropped


def test_embedding_dropout_drops_a_token_everywhere_or_nowhere(make):
    task = make(embedding_dropout=0.4, embedding_size=6)
    model = task.build(nnx.Rngs(0))
    size, seen = len(task.codec), []
    original = model.lstm

    class Reader:
        layer, params = original.layer, original.params

        def __call__(self, xs, **options):
            seen.append(np.asarray(xs))
            return original(xs, **options)

    tokens = np.tile(np.arange(size, dtype=np.int32), (2, 3))
    object.__setattr__(model, "lstm", Reader())
    for seed in range(40):
        model.hidden(model.initial_carry(2), tokens, nnx.Rngs(seed))
    rows = np.asarray(model.embedding.embedding[...])
    shares = []
    for xs in seen:  # [T, B, E]
        factors = (xs / rows[tokens.T]).reshape(3, size, 2, 6)
        np.testing.assert_allclose(factors, factors[:1, :, :1, :1] + 0 * factors, rtol=1e-6)
        values = factors[0, :, 0, 0]
        assert set(np.round(values, 3)) <= {0.0, np.float32(1.667)}
        shares.append((values == 0).mean())
    # Four standard errors of the mean of 40 times about 20 tokens.
    assert abs(np.mean(shares) - 0.4) < 4 * np.sqrt(0.24 / 40 / size)
    model.eval()
    model.hidden(model.initial_carry(2), tokens)
    np.testing.assert_array_equal(seen[-1], rows[tokens.T])


@pytest.mark.parametrize("cell", ["drop_connect(lstm, rate=0.5)", "variational_dropout(lstm)"])
def test_all_regularisers_together_train(make, cell):
    task = make(
        "words", cell=cell, dropout=0.3, input_dropout=0.2, embedding_dropout=0.1,
        activation_penalty=2.0, temporal_penalty=1.0, tied_embeddings=True,
    )  # fmt: skip
    model = task.build(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params, carry, batch):
        module = nnx.merge(graph, params, rest)
        return task.loss(module, carry, batch, nnx.Rngs(0))

    optimizer = optax.adam(1e-2)
    state, carry, losses = optimizer.init(params), model.initial_carry(3), []
    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    for n in range(30):
        (value, carry), grads = step(params, carry, dict(task.batches(0)[n]))
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < losses[0] - 0.2  # of about 2.7; words are random


# ---- the kind of model ----


def test_the_config_selects_the_model(make):
    assert isinstance(make().build(nnx.Rngs(0)), LanguageModel)
    model = make(num_layers=3, **TRANSFORMER).build(nnx.Rngs(0))
    assert isinstance(model, TransformerLanguageModel)
    assert (model.features, model.context, len(model.blocks)) == (8, 6, 3)


def test_a_transformer_resets_rows_at_start_flags(make):
    task = make(**TRANSFORMER)
    model = built(task)
    first, second = (dict(task.batches(0)[n]) for n in range(2))
    _, carry = trained_loss(task, model, first)
    second["start"] = np.array([True, False, True])
    fresh = model.initial_carry(3)
    by_hand = jax.tree.map(
        lambda old, new: jnp.stack([new[0], old[1], new[2]]), carry, fresh
    )  # fmt: skip
    loss, _ = task.loss(model, carry, second, nnx.Rngs(0))
    second["start"] = np.zeros(3, bool)
    expected, _ = task.loss(model, by_hand, second, nnx.Rngs(0))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"num_heads": 2}, r'num_heads: expected 0 with model.kind "lstm", got 2'),
        ({"context": 9}, r'context: expected 0 with model.kind "lstm", got 9'),
        ({"num_heads": 0}, r'num_heads: expected at least 1 with model.kind "transformer", got 0'),
        ({"context": 0}, r'context: expected at least 1 with model.kind "transformer", got 0'),
        (
            {"num_heads": 3},
            r"hidden_size: expected a multiple of 2 \* model.num_heads = 6 .* got 8",
        ),
        ({"embedding_size": 4}, r"embedding_size: expected model.hidden_size = 8 with .* got 4"),
        ({"cell": "gru"}, r"cell: expected 'lstm' with model.kind \"transformer\", got 'gru'"),
        ({"temporal_penalty": 1.0}, r"temporal_penalty: expected 0.0 with .*, got 1.0"),
        ({"embedding_dropout": 0.1}, r"embedding_dropout: expected 0.0 with .*, got 0.1"),
    ],
    ids=str,
)
def test_options_of_the_other_kind_are_named(make, model, message):
    others = {} if '"lstm"' in message else TRANSFORMER
    with pytest.raises(UserError, match=rf"^model\.{message}"):
        make(**{**others, **model})


def number_of_parameters(path) -> int:
    """The size of a config's model for 65 characters, as in Tiny Shakespeare."""
    config = load_config(path)
    model = nnx.eval_shape(lambda: config.model.build(65, nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_both_kinds_of_model_have_as_many_parameters():
    lstm = number_of_parameters(CONFIGS / "tiny_shakespeare.toml")
    transformer = number_of_parameters(CONFIGS / "tiny_shakespeare_transformer.toml")
    assert transformer == pytest.approx(lstm, rel=0.02)
