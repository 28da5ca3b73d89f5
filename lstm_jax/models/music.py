"""A model of piano rolls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Model, Outputs
from lstm_jax.nnx import LSTM

PITCHES = 88


class PianoRollCarry(NamedTuple):
    """The state after some frames of a piece.

    Attributes:
      lstm: the state of each layer, which has read all frames but the last.
      frame: the last frame, float32 ``[B, 88]``; zeros before the first.
    """

    lstm: Any
    frame: jax.Array


class PianoRollModel(Model):
    """Scores each pitch of each frame of a piano roll, given all frames before.

    The logits of frame ``x_t``, zeros and ones ``[88]``, depend on the state of an LSTM that has
    read all earlier frames (zeros before the first). The logit of pitch k also depends on the
    previous frame, through the intervals between its pitches and k::

        h_t = LSTM(x_0, ..., x_{t-1})
        u_{t,k} = silu(A h_t + c_k + sum_j x_{t-1,j} Q_{j-k})
        logit_{t,k} = (W h_t + b)_k + V_k . u_{t,k}

    All pitches are then independent, given the past. If ``conditioned`` is true, pitch k also
    depends on the higher pitches in its own frame, so that the probability of a frame is a product
    of conditional probabilities, from the highest pitch to the lowest::

        u_{t,k} = silu(A h_t + c_k + sum_j x_{t-1,j} Q_{j-k} + sum_{j>k} x_{t,j} P_{j-k})

    The matrices Q and P depend on intervals, not on pitches, so transposing a chord transposes its
    effect.

    Args:
      hidden_features: H, hidden features of each layer.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      conditioned: whether a pitch depends on the higher ones in its frame.
      interval_features: N, features of u; with 0, the logits are ``W h_t + b``.
      input_dropout: dropout rate of the frames that the LSTM reads.
      dropout: dropout rate of the outputs of every layer and of u.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = PianoRollModel(8, conditioned=True, interval_features=4, rngs=nnx.Rngs(0))
      >>> frames = jnp.zeros((2, 5, 88)).at[:, :, 39].set(1)
      >>> carry, outputs = model(model.initial_carry(rows=2), frames=frames)
      >>> outputs["logits"].shape  # [B, T, 88]
      (2, 5, 88)

    Raises:
      ValueError: ``conditioned`` without interval features.

    References:
      Nicolas Boulanger-Lewandowski, Yoshua Bengio, Pascal Vincent, "Modeling Temporal Dependencies
      in High-Dimensional Sequences", ICML 2012 (a frame's distribution given by a recurrent
      network); Hugo Larochelle, Iain Murray, "The Neural Autoregressive Distribution Estimator",
      AISTATS 2011 (the sum over the values already chosen, in one hidden layer); Daniel D. Johnson,
      "Generating Polyphonic Music Using Tied Parallel Networks", EvoMUSART 2017 (weights that are
      shared by all pitches).
    """

    def __init__(
        self,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        conditioned: bool = False,
        interval_features: int = 0,
        input_dropout: float = 0.0,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        if conditioned and not interval_features:
            raise ValueError("interval_features must be at least 1 if conditioned, got 0")
        self.conditioned, self.dtype = conditioned, dtype
        self.interval_features = interval_features
        self.input_dropout = nnx.Dropout(input_dropout, rngs=rngs)
        self.lstm = LSTM(
            PITCHES, hidden_features, num_layers,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        width, glorot = self.lstm.layer.output_size, jax.nn.initializers.glorot_uniform()
        self.readout = nnx.Linear(width, PITCHES, dtype=dtype, kernel_init=glorot, rngs=rngs)
        if interval_features:
            N = interval_features
            self.context = nnx.Linear(width, N, dtype=dtype, kernel_init=glorot, rngs=rngs)
            # About four pitches sound at a time.
            intervals = jax.nn.initializers.normal(0.5)
            self.before = nnx.Param(intervals(rngs.params(), (2 * PITCHES - 1, N)))
            if conditioned:
                self.above = nnx.Param(intervals(rngs.params(), (PITCHES - 1, N)))
            self.pitch = nnx.Param(jnp.zeros((PITCHES, N)))
            self.scores = nnx.Param(
                jax.nn.initializers.normal(N**-0.5)(rngs.params(), (PITCHES, N))
            )

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"frames": (f"b, t, {PITCHES}", "float32")}

    def initial_carry(self, rows: int) -> PianoRollCarry:
        lstm = self.lstm.layer.initial_state(self.lstm.params, (rows,))
        return PianoRollCarry(lstm, jnp.zeros((rows, PITCHES)))

    def __call__(
        self,
        carry: PianoRollCarry,
        *,
        frames: jax.Array,
        start: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[PianoRollCarry, Outputs]:
        """Logits of each pitch in each of the given frames.

        To sample a frame pitch by pitch, repeat the call with the pitches chosen so far, zeros for
        the others, and always the carry before the frame. The call with the complete frame returns
        the carry after it.

        Args:
          carry: as from :meth:`initial_carry`, or from the previous frames.
          frames: zeros and ones, float32 ``[B, T, 88]``, T at least 1.
          start: true for the first frame of a piece, which does not depend on earlier frames; bool
            ``[B, T]``. None if no piece starts within these frames.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, T, 88]})``.
        """
        before = jnp.concatenate([carry.frame[:, None], frames[:, :-1]], 1)
        if start is not None:
            before = jnp.where(start[..., None], 0, before)
        lstm, ys = self.lstm(
            self.input_dropout(before, rngs=rngs), initial_carry=carry.lstm, resets=start,
            return_carry=True, rngs=rngs,
        )  # fmt: skip
        ys = self.dropout(ys, rngs=rngs)
        logits = self.readout(ys).astype(jnp.float32)
        if self.interval_features:
            read = before if not self.conditioned else jnp.concatenate([before, frames], -1)
            u = read.astype(self.dtype) @ self._intervals().astype(self.dtype)
            u = u.reshape(*frames.shape, self.interval_features)  # [B, T, 88, N]
            u = jax.nn.silu(u + self.context(ys)[..., None, :] + self.pitch[...])
            u = self.dropout(u, rngs=rngs).astype(jnp.float32)
            logits = logits + (u * self.scores[...]).sum(-1)
        return PianoRollCarry(lstm, frames[:, -1]), {"logits": logits}

    def _intervals(self) -> jax.Array:
        """The matrix that maps the pitches j of frames to the sums for each pitch k.

        Its shape is ``[88, 88 N]``, and entry (j, k) is the row of interval j - k; with the rows of
        the higher pitches in the same frame, the shape is ``[176, 88 N]``.
        """
        interval = np.arange(PITCHES)[:, None] - np.arange(PITCHES)
        matrix = self.before[...][interval + PITCHES - 1]
        if self.conditioned:
            above = jnp.pad(self.above[...], ((1, 0), (0, 0)))  # row 0: no effect
            matrix = jnp.concatenate([matrix, above[np.maximum(interval, 0)]])
        return matrix.reshape(len(matrix), -1)
