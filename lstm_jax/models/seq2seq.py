"""Encoder-decoders: read a sequence of tokens and generate another one with attention."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.attention import ATTENTIONS
from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM
from lstm_jax.sequence import fused_scan
from lstm_jax.sequence.regularizers import noisy_step


class Decoding(NamedTuple):
    """The carry of a decoder.

    Attributes:
      memory: the encoding of the source; the same at each step.
      state: the state that changes from step to step.
    """

    memory: Any
    state: Any


class EncoderDecoder(Model):
    """A model that reads a source and scores each next token of a target.

    ::

        carry = model.encode(source=source, lengths=lengths)
        carry, outputs = model(carry, tokens=tokens)

    ``tokens`` start with the start token.  The outputs are ``logits`` ``[B, T, V]`` of the token
    after each one, and ``attention`` ``[B, T, S]``, the weight of each source token.  Subclasses
    define :meth:`encode`, ``__call__`` and :attr:`ranges`, which also includes the ranges of the
    encoder's inputs.
    """

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"tokens": ("b, t", "int32")}

    @property
    def encoder_inputs(self) -> dict[str, tuple[str, str]]:
        """Shape and type of each input of :meth:`encode`, as :attr:`inputs`."""
        return {"source": ("b, s", "int32"), "lengths": ("b", "int32")}

    def encode(
        self, *, source: jax.Array, lengths: jax.Array, rngs: nnx.Rngs | None = None
    ) -> Decoding:
        """The carry before the first target token.

        Args:
          source: int32 ``[B, S]``.
          lengths: the number of valid source tokens of each row, integers ``[B]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define encode")


class Memory(NamedTuple):
    """The encoding of the source by an LSTM encoder.

    Attributes:
      outputs: the top layer's outputs in both directions, ``[B, S, M]``.
      keys: the keys that attention compares with its query, ``[B, S, A]``.
      mask: whether each source token is valid, booleans ``[B, S]``.
    """

    outputs: jax.Array
    keys: jax.Array
    mask: jax.Array


class DecoderState(NamedTuple):
    """The state of an LSTM decoder.

    Attributes:
      lstm: the state of each layer.
      attended: the last attentional vector a, ``[B, E]``; zeros before the first step.
    """

    lstm: Any
    attended: jax.Array


class Seq2Seq(EncoderDecoder):
    """A bidirectional LSTM encoder and an LSTM decoder with attention.

    ::

        m_1, ..., m_S = BiLSTM(E[x_1], ..., E[x_S])
        s_0 = tanh(W_0 mean(m) + b_0)                 in each layer of the decoder
        s_t = LSTM(s_{t-1}, [E[y_t], a_{t-1}])        input feeding; otherwise LSTM(s_{t-1}, E[y_t])
        c_t = attention(s_t, m)
        a_t = tanh(W_a [s_t, c_t])
        logits_t = a_t Eᵀ + b

    With tied embeddings, E is one matrix for source, target and output; otherwise there are three.
    Without input feeding, the LSTM does not depend on the attention of the previous step, so a
    whole target takes one fused pass of the LSTM, and attention is batched over all steps.

    Args:
      num_tokens: V, the vocabulary size, source and target together.
      embedding_features: E.
      hidden_features: H of each layer of the decoder, and of each direction of the encoder.
      num_layers: stacked layers of the encoder, and of the decoder.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      attention: ``"multiplicative"`` or ``"additive"``.
      input_feeding: whether the decoder reads the last attentional vector.
      tied_embeddings: whether source, target and output share one matrix.
      input_dropout: dropout rate of the embeddings.
      dropout: dropout rate of the outputs of every layer, and of the attentional vectors.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = Seq2Seq(10, 4, 8, rngs=nnx.Rngs(0))
      >>> source, lengths = jnp.array([[4, 5, 6], [7, 8, 0]]), jnp.array([3, 2])
      >>> carry = model.encode(source=source, lengths=lengths)
      >>> carry, outputs = model(carry, tokens=jnp.array([[2, 4, 5, 6], [2, 7, 8, 3]]))
      >>> outputs["logits"].shape, outputs["attention"].shape  # [B, T, V], [B, T, S]
      ((2, 4, 10), (2, 4, 3))

    References:
      Minh-Thang Luong, Hieu Pham, Christopher D. Manning, "Effective Approaches to
      Attention-based Neural Machine Translation", EMNLP 2015 (equation 5 and section 3.3, input
      feeding); Dzmitry Bahdanau, Kyunghyun Cho, Yoshua Bengio, "Neural Machine Translation by
      Jointly Learning to Align and Translate", ICLR 2015 (bidirectional encoder, additive scores);
      Ofir Press, Lior Wolf, "Using the Output Embedding to Improve Language Models", EACL 2017
      (section 5, three-way tying).
    """

    def __init__(
        self,
        num_tokens: int,
        embedding_features: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        attention: str = "multiplicative",
        input_feeding: bool = True,
        tied_embeddings: bool = True,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        glorot = jax.nn.initializers.glorot_uniform()
        # Initial logits should be near zero.
        embedding = functools.partial(
            nnx.Embed, num_tokens, embedding_features, rngs=rngs,
            embedding_init=jax.nn.initializers.normal(embedding_features**-0.5),
        )  # fmt: skip
        layers = functools.partial(
            LSTM, num_layers=num_layers, cell=cell, dropout=dropout, dtype=dtype,
            time_major=True, return_carry=True, rngs=rngs,
        )  # fmt: skip
        self.input_feeding, self.dtype = input_feeding, dtype
        self.source_embedding = embedding()
        self.target_embedding = self.source_embedding if tied_embeddings else embedding()
        self.output_embedding = self.source_embedding if tied_embeddings else embedding()
        self.bias = nnx.Param(jnp.zeros(num_tokens))
        self.encoder = layers(embedding_features, hidden_features, bidirectional=True)
        self.decoder = layers(embedding_features * (2 if input_feeding else 1), hidden_features)
        memory, query = self.encoder.layer.output_size, self.decoder.layer.output_size
        self.initial = nnx.Linear(memory, num_layers * query, kernel_init=glorot, rngs=rngs)
        self.attention = ATTENTIONS[attention](query, memory, dtype=dtype, rngs=rngs)
        self.attended = nnx.Linear(
            query + memory, embedding_features, use_bias=False, dtype=dtype, kernel_init=glorot,
            rngs=rngs,
        )  # fmt: skip
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        tokens = (0, self.bias.shape[0] - 1)
        return {"source": tokens, "lengths": (0, "s"), "tokens": tokens}

    # ---- encoder ----

    def encode(
        self, *, source: jax.Array, lengths: jax.Array, rngs: nnx.Rngs | None = None
    ) -> Decoding:
        # Time is the leading axis here, so that the loop reads each step from contiguous memory.
        xs = self.input_dropout(self.source_embedding(source.T), rngs=rngs)
        _, outputs = self.encoder(xs, seq_lengths=lengths, rngs=rngs)
        outputs = self.dropout(outputs, rngs=rngs).swapaxes(0, 1)  # [B, S, M], zeros past the end
        mask = jnp.arange(source.shape[1]) < lengths[:, None]
        memory = Memory(outputs, self.attention.keys(outputs), mask)
        mean = outputs.sum(1) / jnp.maximum(lengths, 1)[:, None]
        return Decoding(memory, self._initial_state(mean))

    def _initial_state(self, mean: jax.Array) -> DecoderState:
        zeros = self.decoder.layer.initial_state(self.decoder.params, mean.shape[:-1])
        hs = jnp.split(jnp.tanh(self.initial(mean)), len(zeros), -1)
        lstm = {
            name: state._replace(h=h.astype(state.h.dtype))
            for (name, state), h in zip(zeros.items(), hs, strict=True)
        }
        return DecoderState(lstm, jnp.zeros((*mean.shape[:-1], self.output_embedding.features)))

    # ---- decoder ----

    def __call__(
        self, carry: Carry, *, tokens: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """Logits of the next token after each one, and its attention to the source.

        Args:
          carry: from :meth:`encode`, or from an earlier part of the targets.
          tokens: int32 ``[B, T]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, T, V], "attention": [B, T, S]})``.
        """
        memory, state = carry
        xs = self.input_dropout(self.target_embedding(tokens.T), rngs=rngs)  # [T, B, E]
        decode = self._with_feeding if self.input_feeding else self._without_feeding
        state, attended, weights = decode(memory, state, xs, rngs)  # [B, T, ...] each
        matrix = self.output_embedding.embedding[...]
        logits = attended.astype(self.dtype) @ matrix.T.astype(self.dtype)
        logits = logits.astype(jnp.float32) + self.bias[...]
        return Decoding(memory, state), {"logits": logits, "attention": weights}

    def _attend(self, query: jax.Array, memory: Memory) -> tuple[jax.Array, jax.Array]:
        """The attentional vector a and the weights of one step, or of batched steps."""
        context, weights = self.attention(query, memory.keys, memory.outputs, memory.mask)
        return jnp.tanh(self.attended(jnp.concatenate([query, context], -1))), weights

    def _without_feeding(
        self, memory: Memory, state: DecoderState, xs: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[DecoderState, jax.Array, jax.Array]:
        lstm, ys = self.decoder(xs, initial_carry=state.lstm, rngs=rngs)
        # One memory for all steps of a row: [B, 1, S, M].
        shared = jax.tree.map(lambda leaf: leaf[:, None], memory)
        attended, weights = self._attend(ys.swapaxes(0, 1), shared)
        attended = self.dropout(attended, rngs=rngs)
        return DecoderState(lstm, attended[:, -1].astype(xs.dtype)), attended, weights

    def _with_feeding(
        self, memory: Memory, state: DecoderState, xs: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[DecoderState, jax.Array, jax.Array]:
        layers = dict(self.decoder.layer.layers)
        embedded, hidden = self.output_embedding.features, self.decoder.layer.output_size
        # Dropout is sampled for all steps before the loop; a mask contains zeros and 1 / (1 -
        # rate).
        key = self.decoder._key(self.decoder.layer, None, rngs)
        runs, noises, masks = {}, {}, {}
        for n, (name, cell) in enumerate(layers.items()):
            cell_key = None if key is None else jax.random.fold_in(key, n)
            shape = (*xs.shape[:-1], hidden if n else 2 * embedded)
            runs[name], noises[name] = noisy_step(cell, self.decoder.params[name], cell_key, shape)
            width = embedded if n == len(layers) - 1 else hidden
            masks[name] = self.dropout(jnp.ones((*xs.shape[:-1], width), xs.dtype), rngs=rngs)

        def step(state: DecoderState, inputs: Any) -> tuple[DecoderState, Any]:
            x, noises, masks = inputs
            y, lstm = jnp.concatenate([x, state.attended], -1), {}
            *below, top = layers
            for name in below:
                lstm[name], y = runs[name](state.lstm[name], y, noises[name])
                y = y * masks[name]
            lstm[top], y = runs[top](state.lstm[top], y, noises[top])
            attended, weights = self._attend(y, memory)
            attended = attended.astype(xs.dtype) * masks[top]
            return DecoderState(lstm, attended), (attended, weights)

        inputs = (xs, noises, masks)
        if xs.shape[0] == 1:  # a streamed step, also of an exported model: any number of rows
            state, ys = step(state, jax.tree.map(lambda of_steps: of_steps[0], inputs))
            ys = jax.tree.map(lambda y: y[None], ys)
        else:
            # The fused engine needs concrete sizes, which an exported model does not have.
            known = all(isinstance(size, int) for size in xs.shape)
            state, ys = (fused_scan if known else jax.lax.scan)(step, state, inputs)
        return state, *jax.tree.map(lambda y: y.swapaxes(0, 1), ys)
