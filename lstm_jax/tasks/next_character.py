"""Next character: a language model of one text, as one continuous stream."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lstm_jax.data import encode, fetch, ngram_loss, python_reference, read_text, stream_windows
from lstm_jax.errors import UserError
from lstm_jax.interop.deploy import Function
from lstm_jax.sequence import LSTM, dropout
from lstm_jax.sequence.layers import LSTMStates
from lstm_jax.tasks.base import Batch, Figures, Inspected, Model, Outputs, Params, Trained
from lstm_jax.tasks.options import Section, option
from lstm_jax.tasks.recurrent import RecurrentModel

NGRAM_ORDER = 5
INSPECTED_CHARACTERS = 4000


@dataclasses.dataclass(frozen=True)
class TextData(Section):
    """Section ``[data]`` of task ``next_character``."""

    text: str = option(
        "python_reference", "python_reference, tiny_shakespeare, or the path of a UTF-8 file"
    )
    validation_fraction: float = option(
        0.1, "share of the text, at its end, kept for validation", above=0, below=1
    )
    lanes: int = option(32, "rows of a batch, each reading its own part of the text", at_least=1)
    window: int = option(64, "characters a row reads (and gradients flow back) a step", at_least=1)


@dataclasses.dataclass(frozen=True)
class CharacterModel(RecurrentModel):
    """Section ``[model]`` of task ``next_character``."""

    hidden_size: int = option(384, "hidden features of each LSTM layer", at_least=1)
    embedding_size: int = option(64, "features of a character's embedding", at_least=1)
    tied_embeddings: bool = option(False, "read characters out by the matrix that embeds them")
    input_dropout: float = option(0.0, "dropout on embeddings", at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class NextCharacter:
    """Predicts each character of a text from all before it.

    Training is truncated backpropagation through time: each of ``lanes`` rows reads its part
    of the text window by window, and the state after one window is the state before the
    next.  Evaluation reads the validation text once, as one stream from the initial state.
    Losses are in nats a character.

    Raises:
      UserError: the text is missing, empty, not UTF-8, or too short for one window.

    >>> task = NextCharacter(TextData(lanes=4, window=16), CharacterModel(hidden_size=8))
    >>> params = task.init(jax.random.key(0))
    >>> batch = task.batches(seed=0)[0]
    >>> loss, carry = task.loss(params, task.initial_carry(), batch, jax.random.key(1))
    >>> bool(abs(loss - np.log(len(task.vocabulary))) < 0.2)  # nothing is learned yet
    True

    References:
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850,
      2013, section 3; Tomas Mikolov et al., "Recurrent neural network based language model",
      Interspeech 2010 (truncated backpropagation, state carried on); Ofir Press, Lior Wolf,
      "Using the Output Embedding to Improve Language Models", EACL 2017 (tied embeddings).
    """

    data: TextData
    model: CharacterModel
    unit = "characters"
    loss_unit = "nats a character"
    splits = ("validation",)

    def __post_init__(self) -> None:
        train, validation = self._split
        needed = self.data.lanes * self.data.window
        if len(train) < needed:
            raise UserError(
                f"data.text: {self.data.text}: the training split has {len(train)} characters, "
                f"expected at least data.lanes * data.window = {needed}"
            )
        if len(validation) < 2:
            raise UserError(
                f"data.validation_fraction: {self.data.text}: the validation split has "
                f"{len(validation)} characters, expected at least 2"
            )
        self.model.check_layers(self.model.embedding_size)

    @functools.cached_property
    def text(self) -> str:
        """The whole text."""
        if self.data.text == "python_reference":
            return python_reference()
        if self.data.text == "tiny_shakespeare":
            return read_text(fetch("tiny_shakespeare/input.txt"))
        return read_text(self.data.text)

    @functools.cached_property
    def vocabulary(self) -> str:
        """The different characters of the text, sorted."""
        return "".join(sorted(set(self.text)))

    @functools.cached_property
    def _split(self) -> tuple[np.ndarray, np.ndarray]:
        tokens = encode(self.text, self.vocabulary)
        cut = round(len(tokens) * (1 - self.data.validation_fraction))
        return tokens[:cut], tokens[cut:]

    @functools.cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def batch_size(self) -> int:
        return self.data.lanes

    @property
    def units_per_step(self) -> int:
        return self.data.lanes * self.data.window

    @property
    def _lstm(self) -> LSTM:
        return self.model.layers

    def batches(self, seed: int) -> grain.MapDataset:
        return stream_windows(self._split[0], self.data.lanes, self.data.window, seed)

    def init(self, key: jax.Array) -> Params:
        """``embedding`` ``(V, E)``, ``lstm``, ``projection`` ``(H, V or E)``, ``bias`` ``(V,)``.

        Tied embeddings need a projection only where E differs from H.
        """
        model, size = self.model, len(self.vocabulary)
        embedding_key, lstm_key, projection_key = jax.random.split(key, 3)
        params = {
            "embedding": jax.random.normal(embedding_key, (size, model.embedding_size)),
            "lstm": self._lstm.init(lstm_key, model.embedding_size),
            "bias": jnp.zeros(size),
        }
        # Logits of a new network are near zero: tied, its unit embeddings must be scaled down.
        if model.tied_embeddings:
            params["embedding"] *= model.embedding_size**-0.5
        width = model.embedding_size if model.tied_embeddings else size
        if not (model.tied_embeddings and width == self._lstm.output_size):
            init = jax.nn.initializers.glorot_uniform()
            params["projection"] = init(projection_key, (self._lstm.output_size, width))
        return params

    def initial_carry(self) -> LSTMStates:
        """Never read: the first window begins each row, from :meth:`initial_state`."""
        return self._lstm.zero_state((self.data.lanes,))

    def initial_state(self, params: Params, rows: int) -> LSTMStates:
        """The state of each layer where a text begins: zeros, or what was learned."""
        return self._lstm.initial_state(params["lstm"], (rows,))

    def logits(
        self,
        params: Params,
        state: LSTMStates,
        inputs: jax.Array,
        key: jax.Array | None = None,
        engine: str = "auto",
    ) -> tuple[LSTMStates, jax.Array]:
        """Scores of the next character after each one.

        Args:
          params: as from :meth:`init`.
          state: the state of each layer, arrays ``[B, H]``.
          inputs: characters, int32 ``[B, T]``.
          key: random key for dropout; None for no dropout.
          engine: how the layers run over time, as in :func:`unroll`.

        Returns:
          ``(state, logits)``: the state after the last character, and ``[B, T, V]``.
        """
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        xs = params["embedding"][inputs.T]  # [T, B, E]
        xs = dropout(xs, self.model.input_dropout, keys[0])
        lstm = dataclasses.replace(self._lstm, engine=engine)
        state, ys = lstm.apply(params["lstm"], xs, state, key=keys[1])
        ys = dropout(ys, self.model.dropout, keys[2]).astype(self.model.dtype)
        if "projection" in params:
            ys = ys @ params["projection"].astype(ys.dtype)
        if self.model.tied_embeddings:
            ys = ys @ params["embedding"].T.astype(ys.dtype)
        return state, ys.swapaxes(0, 1).astype(jnp.float32) + params["bias"]

    def loss(
        self, params: Params, carry: LSTMStates, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, LSTMStates]:
        fresh = batch["start"]
        carry = jax.tree.map(
            lambda start, leaf: jnp.where(fresh.reshape(-1, *[1] * (leaf.ndim - 1)), start, leaf),
            self.initial_state(params, len(fresh)),
            carry,
        )
        carry, logits = self.logits(params, carry, batch["inputs"], key=key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return losses.mean(), carry

    @property
    def functions(self) -> dict[str, Function]:
        return {
            "step": Function(self._outputs, {"tokens": ("b, 1", "int32")}),
            "sequence": Function(self._outputs, {"tokens": ("b, t", "int32")}),
        }

    def _outputs(
        self, params: Params, state: LSTMStates, tokens: jax.Array
    ) -> tuple[LSTMStates, Outputs]:
        state, logits = self.logits(params, state, tokens)
        return state, {"logits": logits}

    def about(self) -> dict[str, Any]:
        """``vocabulary``, and ``opening``, which an empty prompt stands for."""
        return {"vocabulary": self.vocabulary, "opening": self._opening}

    def evaluate(self, params: Params, split: str) -> Figures:
        """``loss`` in nats and ``bits`` a character, over the whole split as one stream."""
        return self.score(Trained(self, params), split)

    def score(self, model: Model, split: str) -> Figures:
        loss = stream_loss(model, self._split[1])
        return {"loss": loss, "bits": loss / float(np.log(2))}

    def baselines(self, split: str) -> dict[str, Figures]:
        train, validation = self._split
        # As in `evaluate`, the first character is given.
        train, validation = np.append(train, validation[:1]), validation[1:]
        loss = ngram_loss(train, validation, len(self.vocabulary), NGRAM_ORDER)
        name = f"{NGRAM_ORDER}-gram, Witten-Bell"
        return {name: {"loss": loss, "bits": loss / float(np.log(2))}}

    def pictures(self, params: Params) -> Iterator[tuple[str, object]]:
        return iter(())

    @property
    def _opening(self) -> str:
        return "\n" if "\n" in self.vocabulary else self.text[0]

    def inspected(self, params: Params, text: str | None = None) -> Inspected:
        """What the layers read of a text's beginning, or of the validation text's."""
        what = "characters"
        if text is None:
            text = self.text[len(self._split[0]) :]
            what = "characters of the validation text"
        try:
            tokens = encode(text, self.vocabulary)[:INSPECTED_CHARACTERS]
        except UserError as error:
            raise UserError(f"--text: {error}") from error
        if len(tokens) < 2:
            raise UserError(f"--text: expected at least 2 characters, got {len(tokens)}")
        return Inspected(
            layer=self._lstm,
            params=params["lstm"],
            xs=params["embedding"][tokens][:, None],
            what=f"the first {len(tokens):,} {what}",
            text=text[: len(tokens)],
        )

    def sample(
        self, params: Params, prompt: str, length: int, temperature: float, seed: int
    ) -> str:
        """The prompt carried on by ``length`` characters.

        Args:
          params: as from :meth:`init`.
          prompt: what the text begins with; empty stands for a new line, or for the text's
            first character where it has no lines.
          length: how many characters to write, at least 0.
          temperature: divides the logits; 0 always takes the likeliest character.
          seed: decides the draws.

        Raises:
          UserError: the prompt has a character that the training text lacks.
        """
        try:
            given = encode(prompt or self._opening, self.vocabulary)
        except UserError as error:
            raise UserError(f"prompt: {error}") from error
        if length == 0:
            return prompt
        written = _continuation(
            self, params, jnp.asarray(given)[None], length, temperature, jax.random.key(seed)
        )
        return prompt + "".join(self.vocabulary[token] for token in np.asarray(written))


@functools.partial(jax.jit, static_argnames=("task", "length"))
def _continuation(
    task: NextCharacter,
    params: Params,
    given: jax.Array,
    length: int,
    temperature: float,
    key: jax.Array,
) -> jax.Array:
    # The plain scan, as an exported model runs it: the text is the same, rounding included.
    read = functools.partial(task.logits, params, engine="scan")
    state, logits = read(task.initial_state(params, 1), given)

    def write(carried: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
        state, logits = carried
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, drawn, logits.argmax(-1)).astype(jnp.int32)  # [1]
        state, logits = read(state, token[:, None])
        return (state, logits[:, -1]), token[0]

    return jax.lax.scan(write, (state, logits[:, -1]), jax.random.split(key, length))[1]


def stream_loss(model: Model, tokens: np.ndarray, chunk: int = 1024) -> float:
    """Mean loss over a text read as one stream from the initial state, in nats a character.

    Args:
      model: reads ``tokens`` and gives ``logits``.
      tokens: int32 ``[N]``, N at least 2; the first character is given, the others predicted.
      chunk: how many characters are run at a time, which bounds the memory.
    """
    count, total, state = len(tokens) - 1, 0.0, model.initial_state(1)
    for start in range(0, count, chunk):
        place = np.arange(start, start + chunk).clip(max=count - 1)  # one shape for all chunks
        state, outputs = model.sequence(state, tokens=tokens[place][None])
        losses = _losses(outputs["logits"][0], tokens[place + 1])
        total += float(np.asarray(losses, np.float64)[: count - start].sum())
    return total / count


_losses = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
