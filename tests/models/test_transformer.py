"""The Transformer, compared with a NumPy loop over positions, and read in parts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lstm_jax.models import Compiled, TransformerLanguageModel
from lstm_jax.models.transformer import windowed_attention
from tests.arrays import doubled, in_float64, params_of, with_params

# Sums of about ten terms in float32 (eps 1.2e-7) through two blocks of normalised features.
TOLERANCE = 2e-5
TOKENS = np.random.default_rng(0).integers(0, 9, (2, 23)).astype(np.int32)


def built(context=5, **options):
    options = {"num_layers": 2, "num_heads": 2} | options
    model = TransformerLanguageModel(9, 8, context=context, rngs=nnx.Rngs(0), **options)
    return doubled(model, 1.5, {("bias",): 1.0})


def read(model, tokens, *cuts):
    """Logits of a text that is read in parts, and the carry after it."""
    compiled = Compiled(model)
    carry, logits = compiled.initial_carry(len(tokens)), []
    for part in np.split(tokens, cuts, axis=1):
        carry, outputs = compiled(carry, tokens=part)
        logits.append(np.asarray(outputs["logits"]))
    return np.concatenate(logits, 1), carry


class Loop:
    """The model in float64, one row and one token at a time, with absolute positions."""

    def __init__(self, model):
        self.params, self.heads = in_float64(params_of(model)), model.num_heads
        self.context, self.position = model.context, 0
        self.seen = {name: [] for name in self.params["blocks"]}

    def __call__(self, token: int) -> np.ndarray:
        x = self.params["embedding"]["embedding"][token]
        x = x * np.sqrt(len(x))
        for name, block in self.params["blocks"].items():
            attention, normed = block["attention"], norm(x, block["attention_norm"])
            q, k, v = (
                np.einsum("d,dnh->nh", normed, attention[part]["kernel"]) + attention[part]["bias"]
                for part in ("query", "key", "value")
            )
            self.seen[name].append((turned(k, self.position), v))
            q, added = turned(q, self.position), attention["out"]["bias"]
            for head in range(self.heads):
                seen = self.seen[name][-self.context - 1 :]
                scores = np.array([q[head] @ k[head] for k, _ in seen]) / np.sqrt(q.shape[1])
                weights = np.exp(scores - np.logaddexp.reduce(scores))
                y = sum(w * v[head] for w, (_, v) in zip(weights, seen, strict=True))
                added = added + y @ attention["out"]["kernel"][head]
            x = x + added
            z = norm(x, block["dense_norm"]) @ block["widen"]["kernel"] + block["widen"]["bias"]
            z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
            x = x + z @ block["narrow"]["kernel"] + block["narrow"]["bias"]
        self.position += 1
        x = norm(x, self.params["norm"])
        if "projection" in self.params:
            return x @ self.params["projection"]["kernel"] + self.params["bias"]
        return self.params["embedding"]["embedding"] @ x + self.params["bias"]


def norm(x, params):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * params["scale"] + params["bias"]


def turned(xs, position):
    """Pairs of features as complex numbers, each rotated by its angle."""
    half = xs.shape[-1] // 2
    pairs = xs[:, :half] + 1j * xs[:, half:]
    pairs = pairs * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag], -1)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("context", [1, 5, 22, 40])
def test_logits_equal_those_of_a_numpy_loop(context, tied):
    """With fewer positions than the context, with more, and with the same number."""
    model = built(context, tied_embeddings=tied)
    logits, _ = read(model, TOKENS)
    for row, tokens in enumerate(TOKENS):
        loop = Loop(model)
        expected = np.array([loop(token) for token in tokens])
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("context", [1, 5, 40])
@pytest.mark.parametrize("cuts", [range(1, 23), [1], [4, 9, 10], [5, 10, 15, 20], [11]], ids=str)
def test_parts_of_any_length_equal_the_whole(context, cuts):
    model = built(context)
    whole, carry = read(model, TOKENS)
    logits, after = read(model, TOKENS, *cuts)
    np.testing.assert_allclose(logits, whole, rtol=0, atol=TOLERANCE)
    assert jax.tree.structure(after) == jax.tree.structure(carry)
    for one, other in zip(jax.tree.leaves(after), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE)


def test_rows_can_start_at_different_times():
    """A row with the initial carry does not depend on earlier tokens."""
    model = built(context=9)
    _, carry = read(model, TOKENS[:, :6])
    first = model.initial_carry(2)
    carry = jax.tree.map(lambda old, new: jnp.concatenate([old[:1], new[1:]]), carry, first)
    _, outputs = Compiled(model)(carry, tokens=TOKENS[:, 6:])
    continued, fresh = read(model, TOKENS)[0][:, 6:], read(model, TOKENS[:, 6:])[0]
    np.testing.assert_allclose(outputs["logits"][0], continued[0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(outputs["logits"][1], fresh[1], rtol=0, atol=TOLERANCE)
    assert np.abs(continued[1] - fresh[1]).max() > 1e-2


@pytest.mark.parametrize("place", [0, 7, 22])
def test_later_tokens_have_no_influence_and_earlier_ones_reach_as_far_as_the_context(place):
    model = built(context=5, num_layers=1)
    other = TOKENS.copy()
    other[:, place] = (other[:, place] + 1) % 9
    change = np.abs(read(model, other)[0] - read(model, TOKENS)[0]).max((0, 2))
    reached = np.arange(23)[(np.arange(23) >= place) & (np.arange(23) <= place + 5)]
    assert (change[reached] > 1e-4).all()
    np.testing.assert_array_equal(np.delete(change, reached), 0.0)


def test_attention_within_the_context_equals_that_of_flax():
    """Without rotation: zero queries and keys are not rotated, so all weights are equal."""
    model = built(context=30, num_layers=1)
    attention = model.blocks["block_0"].attention
    for part in (attention.query, attention.key):
        part.kernel[...] = jnp.zeros_like(part.kernel[...])
        part.bias[...] = jnp.zeros_like(part.bias[...])
    model.eval()
    xs = jax.random.normal(jax.random.key(0), (2, 23, 8))
    mask = nnx.make_causal_mask(TOKENS)
    block = model.blocks["block_0"]
    expected = xs + attention(block.attention_norm(xs), mask=mask, decode=False)
    expected += block.narrow(jax.nn.gelu(block.widen(block.dense_norm(expected))))
    carry, valid = model.initial_carry(2), jnp.arange(53)[None] >= 30
    windowed = functools.partial(windowed_attention, valid=jnp.broadcast_to(valid, (2, 53)))
    _, ys = block.attend(xs, carry["block_0"], windowed, None)
    ys = block.dense(ys, None)
    np.testing.assert_allclose(ys, expected, rtol=0, atol=TOLERANCE)


def test_dropout_is_active_only_in_training():
    plain = built()
    model = with_params(built(dropout=0.3, input_dropout=0.2), params_of(plain))
    np.testing.assert_array_equal(read(model, TOKENS)[0], read(plain, TOKENS)[0])
    model.train()
    apply = nnx.jit(type(model).__call__)
    first = model.initial_carry(2)
    one, same, other = (
        apply(model, first, tokens=TOKENS, rngs=nnx.Rngs(seed))[1]["logits"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 1e-2
    first_own, second_own = (apply(model, first, tokens=TOKENS)[1]["logits"] for _ in range(2))
    assert np.abs(first_own - second_own).max() > 1e-2


def test_bfloat16_is_close_to_float32():
    model, narrow = built(), built(dtype="bfloat16")
    logits, carry = read(narrow, TOKENS)
    assert logits.dtype == np.float32 and carry["block_0"].keys.dtype == jnp.bfloat16
    # Factors are rounded to 2**-9, through two blocks.
    np.testing.assert_allclose(logits, read(model, TOKENS)[0], rtol=0, atol=0.15)


def test_features_that_heads_do_not_divide():
    with pytest.raises(
        ValueError, match=r"^features must be a multiple of 2 \* num_heads = 6, got"
    ):
        TransformerLanguageModel(9, 8, num_heads=3, context=4, rngs=nnx.Rngs(0))
