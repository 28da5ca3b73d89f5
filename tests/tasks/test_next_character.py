"""The language model against NumPy loops over its equations, one character at a time."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.data import ngram_loss
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.language import stream_losses
from lstm_jax.tasks.next_character import LanguageModelConfig, NextCharacter, TextData
from tests.arrays import doubled, in_float64, params_of, with_params

# Sums of about ten terms in float32 (eps 1.2e-7) through a few tens of steps, each of which passes
# errors on by a factor of about one.
TOLERANCE = 2e-5
TEXT = "".join(np.random.default_rng(0).choice(list("abcdefg \n😀"), 2000))
SIZES = [(False, 5, 7), (True, 6, 6), (True, 5, 7)]  # tied, E, H


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a small task of a small text."""
    folder = tmp_path_factory.mktemp("texts")

    def task(text=TEXT, fraction=0.1, lanes=3, window=8, **model) -> NextCharacter:
        path = folder / f"{hash(text)}.txt"
        path.write_text(text, encoding="utf-8")
        model = {"hidden_size": 7, "embedding_size": 5, "num_layers": 2, "dropout": 0.0} | model
        data = TextData(str(path), validation_fraction=fraction, lanes=lanes, window=window)
        return NextCharacter(data, LanguageModelConfig(**model))

    return task


def built(task: NextCharacter, scale: float = 2.0):
    """A model with parameters large enough that states matter, and biases that are not zero."""
    return doubled(task.build(nnx.Rngs(0)), scale, {("bias",): 1.0})


def loss_of(task, model, carry, batch, seed=None):
    """The task's loss from one compiled call; in training mode if a seed is given."""
    graph, state = nnx.split(model)

    @jax.jit
    def loss(state, carry, batch):
        module = nnx.merge(graph, state)
        return task.loss(module, carry, batch, None if seed is None else nnx.Rngs(seed))

    return loss(state, carry, batch)


def sample(task, model, prompt, length, temperature, seed) -> str:
    pieces = task.generate(model, prompt=prompt, length=length, temperature=temperature, seed=seed)
    return "".join(pieces)


def stream_loss(model, tokens, *chunk) -> float:
    return float(stream_losses(Compiled(model), tokens, *chunk).mean())


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class Loop:
    """The model in float64, one row and one character at a time."""

    def __init__(self, params, tied: bool):
        self.params = in_float64(params)
        self.tied = tied
        self.state = {name: (0.0, 0.0) for name in sorted(params["lstm"])}

    def __call__(self, token: int) -> np.ndarray:
        x = self.params["embedding"]["embedding"][token]
        for name, weights in sorted(self.params["lstm"].items()):
            h, c = self.state[name]
            h = np.broadcast_to(h, len(weights["w_hh"]))
            z = x @ weights["w_ih"] + h @ weights["w_hh"] + weights["b"]
            i, f, g, o = np.split(z, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            x = sigmoid(o) * np.tanh(c)
            self.state[name] = x, c
        if "projection" in self.params:
            x = x @ self.params["projection"]["kernel"]
        if self.tied:
            x = self.params["embedding"]["embedding"] @ x
        return x + self.params["bias"]

    def loss(self, tokens) -> float:
        """Mean loss over all tokens except the first."""
        losses = []
        for token, target in itertools.pairwise(tokens):
            logits = self(token)
            losses.append(np.logaddexp.reduce(logits) - logits[target])
        return float(np.mean(losses))


def assert_states_close(state, other, atol=TOLERANCE):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(("tied", "embedding", "hidden"), SIZES)
def test_loss_and_carry_equal_those_of_a_numpy_loop(make, tied, embedding, hidden):
    task = make(tied_embeddings=tied, embedding_size=embedding, hidden_size=hidden)
    model = built(task)
    assert hasattr(model, "projection") == (not tied or embedding != hidden)
    batch = task.batches(seed=0)[0]
    loss, carry = loss_of(task, model, model.initial_carry(3), batch)
    expected = []
    for row, (inputs, targets) in enumerate(zip(batch["inputs"], batch["targets"], strict=True)):
        loop = Loop(params_of(model), tied)
        expected.append(loop.loss([*inputs, targets[-1]]))
        for name, (h, c) in loop.state.items():
            np.testing.assert_allclose(carry[name].h[row], h, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(carry[name].c[row], c, rtol=0, atol=TOLERANCE)
    assert float(loss) == pytest.approx(np.mean(expected), rel=TOLERANCE)


def test_two_consecutive_windows_equal_one_long_window(make):
    task = make()
    model = built(task)
    first, second = task.batches(seed=0)[0], task.batches(seed=0)[1]
    assert first["start"].all() and not second["start"].any()
    long = {name: np.concatenate([first[name], second[name]], 1) for name in ("inputs", "targets")}
    long["start"] = first["start"]
    one, carry = loss_of(task, model, model.initial_carry(3), first)
    two, carry = loss_of(task, model, carry, second)
    both, long_carry = loss_of(task, model, model.initial_carry(3), long)
    assert float(both) == pytest.approx(float(one + two) / 2, rel=TOLERANCE)
    assert_states_close(carry, long_carry)
    alone, _ = loss_of(task, model, model.initial_carry(3), second)
    assert abs(float(alone - two)) > 1e-3, "the state matters"


def test_start_resets_a_row_and_no_others(make):
    task = make()
    model = built(task)
    _, carry = loss_of(task, model, model.initial_carry(3), task.batches(seed=0)[0])
    batch = dict(task.batches(seed=0)[1])
    batch["start"] = np.array([True, False, True])
    loss, after = loss_of(task, model, carry, batch)
    by_hand = jax.tree.map(lambda leaf: leaf * np.array([[0.0], [1.0], [0.0]], np.float32), carry)
    batch["start"] = np.zeros(3, bool)
    expected, expected_after = loss_of(task, model, by_hand, batch)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert_states_close(after, expected_after, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 31, 32, 33, 34, 65, 1000])
def test_stream_loss_equals_a_loop_over_characters(make, count):
    """Also if the text is shorter than a chunk."""
    task = make()
    model = built(task)
    tokens = task._split[0][:count]
    expected = Loop(params_of(model), tied=False).loss(tokens)
    assert stream_loss(model, tokens) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("chunk", [4, 16, 43, 50, 300])
def test_stream_loss_does_not_depend_on_chunks(make, chunk):
    """Chunk sizes that divide the 300 predicted characters, and others."""
    task = make()
    model = built(task)
    tokens = task._split[0][:301]
    loss = stream_loss(model, tokens, chunk)
    assert loss == pytest.approx(Loop(params_of(model), tied=False).loss(tokens), abs=1e-5)


def test_stream_loss_passes_the_state_between_chunks(make):
    """Open forget gates retain the first character until the end."""
    task = make(num_layers=1)
    model = built(task)
    params = params_of(model)
    bias = params["lstm"]["layer_0"]["b"]
    params["lstm"]["layer_0"]["b"] = bias.at[7:14].set(12.0).at[:7].add(-4.0)
    model = with_params(model, params)
    tokens = task._split[0][:257]
    loss = stream_loss(model, tokens)
    assert loss == pytest.approx(Loop(params_of(model), tied=False).loss(tokens), abs=1e-5)
    parts = [tokens[start : start + 9] for start in range(0, 256, 8)]
    apart = np.mean([Loop(params_of(model), tied=False).loss(part) for part in parts])
    assert abs(apart - loss) > 1e-2, "parts that begin from zeros give another loss"


def test_evaluate_reads_the_validation_text_as_one_stream(make):
    task = make(text=TEXT[:900])
    model = built(task)
    figures = task.evaluate(Compiled(model), "validation")
    validation = [task.known["vocabulary"].index(c) for c in TEXT[810:900]]
    loss = Loop(params_of(model), tied=False).loss(validation)
    assert figures["loss"] == pytest.approx(loss, abs=1e-5)
    assert figures["bits"] == pytest.approx(loss / np.log(2), abs=2e-5)


def test_the_baseline_predicts_the_same_characters_as_evaluate(make):
    task = make(text=TEXT[:900])
    tokens = np.array([task.known["vocabulary"].index(c) for c in TEXT[:900]])
    ((name, figures),) = task.baselines("validation").items()
    assert name == "5-gram, Witten-Bell"
    expected = ngram_loss(tokens[:811], tokens[811:], len(task.known["vocabulary"]), 5)
    assert figures["loss"] == pytest.approx(expected)
    assert figures["bits"] == pytest.approx(expected / np.log(2))


@pytest.mark.parametrize("prompt", ["a", "bad cab", "😀g\n", ""])
def test_a_sample_at_temperature_zero_is_the_greedy_loop(make, prompt):
    task = make(tied_embeddings=True)
    model = built(task)
    loop, text = Loop(params_of(model), tied=True), prompt
    for character in prompt or "\n":
        logits = loop(task.known["vocabulary"].index(character))
    for _ in range(20):
        token = int(logits.argmax())
        text += task.known["vocabulary"][token]
        logits = loop(token)
    assert sample(task, Compiled(model), prompt, 20, 0.0, seed=0) == text
    assert sample(task, Compiled(model), prompt, 20, 0.0, seed=1) == text


def test_an_empty_prompt_for_a_text_without_lines_is_its_first_character(make):
    task = make(text="bcad" * 100)
    model = built(task)
    written = sample(task, Compiled(model), "", 9, 0.0, seed=0)
    assert "b" + written == sample(task, Compiled(model), "b", 9, 0.0, seed=0)


def test_the_seed_determines_a_sample(make):
    task = make()
    model = built(task)
    texts = [sample(task, Compiled(model), "ab", 30, 1.0, seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert all(len(text) == 32 and text.startswith("ab") for text in texts)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_have_the_frequencies_of_their_probabilities(make, temperature):
    task = make(num_layers=1)
    model = built(task, scale=1.0)
    trained = Compiled(model)
    logits = Loop(params_of(model), tied=False)(task.known["vocabulary"].index("a")) / temperature
    probability = np.exp(logits - np.logaddexp.reduce(logits))
    n = 600
    drawn = [sample(task, trained, "a", 1, temperature, seed)[1] for seed in range(n)]
    share = np.array([drawn.count(c) for c in task.known["vocabulary"]]) / n
    # Four standard errors, and one sample for the rarest.
    slack = 4 * np.sqrt(probability * (1 - probability) / n) + 1 / n
    assert (np.abs(share - probability) < slack).all()


def test_a_sample_of_length_zero_is_the_prompt(make):
    task = make()
    assert sample(task, Compiled(built(task)), "abc", 0, 1.0, seed=0) == "abc"


def test_a_prompt_with_an_unknown_character_names_it(make):
    task = make()
    with pytest.raises(
        UserError, match=r"^prompt: character 'Q' at position 2 is not among the 10"
    ):
        sample(task, Compiled(built(task)), "abQ", 5, 1.0, seed=0)


def logits_of(model, tokens, seed=None):
    """Logits from the initial carry; in training mode where a seed is given."""
    if seed is None:
        carry, outputs = Compiled(model)(model.initial_carry(len(tokens)), tokens=tokens)
    else:
        model.train()
        first = model.initial_carry(len(tokens))
        carry, outputs = nnx.jit(type(model).__call__)(
            model, first, tokens=tokens, rngs=nnx.Rngs(seed)
        )
    return carry, outputs["logits"]


def test_dropout_is_off_in_evaluation(make):
    task, plain = make(dropout=0.5, input_dropout=0.3), make()
    params = params_of(built(task))
    inputs = task.batches(seed=0)[0]["inputs"]
    _, logits = logits_of(with_params(task.build(nnx.Rngs(0)), params), inputs)
    other = with_params(plain.build(nnx.Rngs(0)), params)
    np.testing.assert_array_equal(logits, logits_of(other, inputs)[1])
    for other in (make(input_dropout=0.3), make(dropout=0.5)):
        model = with_params(other.build(nnx.Rngs(0)), params)
        _, dropped = logits_of(model, inputs, seed=0)
        assert np.abs(dropped - logits).max() > 1e-2
        _, own = model(model.initial_carry(3), tokens=inputs)  # with a separate stream
        assert np.abs(own["logits"] - logits).max() > 1e-2


def test_dropout_at_the_top_preserves_the_mean(make):
    """Above the only layer all is linear, so that the mean over masks is that without dropout."""
    task = make(num_layers=1, dropout=0.4)
    model = built(task, scale=1.0)
    inputs = jnp.asarray(task.batches(seed=0)[0]["inputs"])
    graph, state = nnx.split(model)

    @jax.jit
    @jax.vmap
    def logits(key):
        module = nnx.merge(graph, state)
        return module(module.initial_carry(3), tokens=inputs, rngs=nnx.Rngs(key))[1]["logits"]

    draws = np.asarray(logits(jax.random.split(jax.random.key(0), 2000)), np.float64)
    carry, plain = logits_of(model, inputs)
    error = np.abs(draws.mean(0) - plain) / (draws.std(0) / np.sqrt(2000))
    assert error.max() < 5  # standard errors; 240 logits
    # The variance of a sum of w_i h_i b_i / keep over independent masks b_i.
    h = np.asarray(carry["layer_0"].h)
    weights = np.asarray(params_of(model)["projection"]["kernel"])
    variance = np.square(h) @ np.square(weights) * 0.4 / 0.6
    np.testing.assert_allclose(draws[:, :, -1].var(0), variance, rtol=0.2)


def test_bfloat16_is_close_to_float32(make):
    task, coarse = make(), make(dtype="bfloat16")
    model = built(task, scale=1.0)
    narrow = with_params(coarse.build(nnx.Rngs(0)), params_of(model))
    batch = task.batches(seed=0)[0]
    loss, _ = loss_of(task, model, model.initial_carry(3), batch)
    other, carry = loss_of(coarse, narrow, narrow.initial_carry(3), batch)
    assert other.dtype == carry["layer_0"].c.dtype == jnp.float32
    assert carry["layer_0"].h.dtype == jnp.bfloat16
    assert loss != other
    # bfloat16 rounds each factor to 2**-9; losses are sums of about ten such terms.
    assert float(other) == pytest.approx(float(loss), rel=1e-2)
    tokens = task._split[1][:100]
    # In float32, the state along the same stream is correct within 1e-5 (see above).
    assert stream_loss(narrow, tokens) == pytest.approx(stream_loss(model, tokens), rel=1e-2)


def test_the_loss_of_each_line_of_a_file(make, tmp_path):
    """Against the loop; their mean is the loss of an evaluation of the same text."""
    task = make()
    model = built(task)
    text = TEXT[1800:]  # the validation split
    (tmp_path / "new.txt").write_text(text, "utf-8")
    columns = task.predict(Compiled(model), tmp_path / "new.txt")
    lines = text.splitlines(keepends=True)
    assert columns["line"].tolist() == list(range(1, len(lines) + 1))
    assert columns["text"] == [line.rstrip("\n") for line in lines]
    assert columns["characters"].tolist() == [len(lines[0]) - 1, *map(len, lines[1:])]
    loop, losses = Loop(params_of(model), tied=False), []
    tokens = [task.known["vocabulary"].index(c) for c in text]
    for token, target in itertools.pairwise(tokens):
        logits = loop(token)
        losses.append(np.logaddexp.reduce(logits) - logits[target])
    parts = np.split(losses, np.cumsum(columns["characters"])[:-1])
    expected = [part.mean() if len(part) else np.nan for part in parts]
    np.testing.assert_allclose(columns["loss"], expected, rtol=0, atol=1e-5)
    total = np.nansum(columns["loss"] * columns["characters"]) / columns["characters"].sum()
    evaluated = task.evaluate(Compiled(model), "validation")["loss"]
    assert total == pytest.approx(evaluated, rel=1e-12)  # sums of 200 float64 in another order


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tQt", r"new\.txt: character 't' at position 0 is not among the 10 characters"),
        ("a", r"new\.txt: expected at least 2 characters, got 1"),
    ],
)
def test_a_file_that_the_model_cannot_read(make, tmp_path, text, message):
    task = make()
    (tmp_path / "new.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        task.predict(Compiled(built(task)), tmp_path / "new.txt")
    with pytest.raises(UserError, match=r"missing\.txt: no such file"):
        task.predict(None, pathlib.Path("missing.txt"))


def test_a_new_network_predicts_about_uniformly(make):
    for tied in (False, True):
        task = make(tied_embeddings=tied)
        loss = task.evaluate(Compiled(task.build(nnx.Rngs(0))), "validation")["loss"]
        assert abs(loss - np.log(len(task.known["vocabulary"]))) < 0.2


def test_the_splits_are_the_two_parts_of_the_text(make):
    task = make(fraction=0.25)
    train, validation = task._split
    assert "".join(task.known["vocabulary"][token] for token in [*train, *validation]) == TEXT
    assert (len(train), len(validation)) == (1500, 500)
    assert task.fingerprint != make(text=TEXT[:-1]).fingerprint


def test_a_text_too_short_for_one_window_names_its_key(make):
    with pytest.raises(UserError, match=r"^data\.text: .*txt: characters of .* = 24, got 22"):
        make(text="ab" * 12 + "a", lanes=3, window=8)


def test_a_validation_split_too_short_names_its_key(make):
    with pytest.raises(UserError, match=r"^data\.validation_fraction: .* at least 2, got 1"):
        make(text="ab" * 50, fraction=0.01)


def test_an_empty_text_is_named(make):
    with pytest.raises(UserError, match=r"txt: expected text, got an empty file"):
        make(text="\n")


@pytest.mark.data
def test_tiny_shakespeare_is_as_published(public_data):
    """1,115,394 characters, 65 different ones (Karpathy)."""
    public_data("tiny_shakespeare/input.txt")
    task = NextCharacter(TextData("tiny_shakespeare"), LanguageModelConfig())
    assert (len(task.text), len(task.known["vocabulary"])) == (1115394, 65)
