"""A model that labels sequences without aligned training labels (CTC)."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM


class CTCCarry(NamedTuple):
    """The state of a unidirectional model after some frames of a sequence.

    Attributes:
      frames: for each convolution, the last ``kernel_size - stride`` inputs, ``[B, K - S, D]``.
      lstm: the state of each layer.
    """

    frames: tuple[jax.Array, ...]
    lstm: Any


class CTCModel(Model):
    """Scores classes, including the blank, at each step of a sequence.

    Optional convolutions over time shorten the sequence by their strides; LSTM layers read their
    outputs::

        u_t = relu(LayerNorm(W [x_{(t+1) S - K}, ..., x_{(t+1) S - 1}] + b))
        h_1, ..., h_T' = LSTM(u_1, ..., u_T')
        logits_t = V h_t + c

    K is the size of the kernel and S the stride.  Frames before the first and beyond a row's length
    are zeros. A convolution reads no frames beyond its stride. Therefore a unidirectional model can
    read a sequence in parts, with the same outputs as in one call.

    Args:
      in_features: D.
      num_classes: C, blank included.
      hidden_features: H, hidden features of each layer and direction.
      num_layers: stacked layers.
      strides: the stride of each convolution; ``()`` for none.
      conv_features: features of each convolution.
      kernel_size: K, the number of frames under each kernel; at least the stride.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      bidirectional: whether every layer reads the sequence from both ends.
      dropout: dropout rate of the outputs of every convolution and layer.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Raises:
      ValueError: a stride is below 1 or above ``kernel_size``.

    Example:
      >>> model = CTCModel(3, 5, 8, strides=(2,), conv_features=4, rngs=nnx.Rngs(0))
      >>> features, lengths = jnp.ones((2, 7, 3)), jnp.array([7, 4])
      >>> _, outputs = model(model.initial_carry(2), features=features, lengths=lengths)
      >>> outputs["logits"].shape, outputs["steps"].tolist()  # [B, T', C], [B]
      ((2, 4, 5), [4, 2])

    References:
      Alex Graves, Santiago Fernández, Faustino Gomez, Jürgen Schmidhuber, "Connectionist Temporal
      Classification: Labelling Unsegmented Sequence Data with Recurrent Neural Networks", ICML
      2006; Dario Amodei et al., "Deep Speech 2: End-to-End Speech Recognition in English and
      Mandarin", ICML 2016 (strided convolutions before the layers).
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        strides: tuple[int, ...] = (),
        conv_features: int = 128,
        kernel_size: int = 5,
        cell: Any = "lstm",
        bidirectional: bool = True,
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        for stride in strides:
            if not 1 <= stride <= kernel_size:
                raise ValueError(
                    f"strides must be from 1 to kernel_size = {kernel_size}, got {stride}"
                )
        self.in_features, self.bidirectional = in_features, bidirectional
        self.strides, self.kernel_size = tuple(strides), kernel_size
        glorot, convolutions = jax.nn.initializers.glorot_uniform(), []
        self.widths = (in_features, *[conv_features] * len(strides))
        for width, stride in zip(self.widths, strides, strict=False):
            convolutions.append(
                nnx.Conv(
                    width, conv_features, (kernel_size,), strides=stride, padding="VALID",
                    dtype=dtype, rngs=rngs,
                )
            )  # fmt: skip
        self.convolutions = nnx.List(convolutions)
        self.norms = nnx.List([nnx.LayerNorm(conv_features, rngs=rngs) for _ in strides])
        self.lstm = LSTM(
            self.widths[-1], hidden_features, num_layers, bidirectional=bidirectional,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(
            self.lstm.layer.output_size, num_classes, kernel_init=glorot, rngs=rngs
        )

    @property
    def stride(self) -> int:
        """The number of frames per output step."""
        return math.prod(self.strides)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {
            "features": (f"b, {self._frames}, {self.in_features}", "float32"),
            "lengths": ("b", "int32"),
        }

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"lengths": (0, self._frames)}

    @property
    def _frames(self) -> str:
        """The number of frames that an exported model reads per call."""
        return "t" if self.stride == 1 else f"{self.stride}*t"

    def initial_carry(self, rows: int) -> Carry:
        """A :class:`CTCCarry`; ``()`` for a bidirectional model, which reads whole sequences."""
        if self.bidirectional:
            return ()
        lstm = self.lstm.layer.initial_state(self.lstm.params, (rows,))
        return CTCCarry(self._no_frames(rows), lstm)

    def __call__(
        self,
        carry: Carry,
        *,
        features: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Outputs]:
        """Class scores at each step.

        Args:
          carry: as from :meth:`initial_carry`, or from an earlier part of the sequences.
          features: ``[B, T, D]``; T is rounded up to a multiple of the stride.
          lengths: integers from 0 to T, ``[B]``; a multiple of the stride if a later call reads the
            next part of the row.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, T', C], "steps": [B]})`` with ``T' = ceil(T / stride)``, and the
          lengths in steps of the logits, rounded up.
        """
        frames = self._no_frames(features.shape[0]) if self.bidirectional else carry.frames
        frames, xs, steps = self._convolved(frames, features, lengths, rngs)
        first = None if self.bidirectional else carry.lstm
        lstm, ys = self.lstm(
            xs, initial_carry=first, seq_lengths=steps, return_carry=True, rngs=rngs
        )
        logits = self.readout(self.dropout(ys, rngs=rngs).astype(jnp.float32))
        carry = () if self.bidirectional else CTCCarry(frames, lstm)
        return carry, {"logits": logits, "steps": steps}

    def _no_frames(self, rows: int) -> tuple[jax.Array, ...]:
        """The frames before the first, for each convolution."""
        sizes = zip(self.widths, self.strides, strict=False)
        return tuple(jnp.zeros((rows, self.kernel_size - s, width)) for width, s in sizes)

    def _convolved(
        self,
        before: tuple[jax.Array, ...],
        xs: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None,
    ) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
        """The last inputs of each convolution, and the outputs and lengths after the last one."""
        last = []
        layers = zip(self.convolutions, self.norms, self.strides, before, strict=True)
        for convolution, norm, stride, earlier in layers:
            inside = jnp.arange(xs.shape[1]) < lengths[:, None]
            xs = jnp.where(inside[..., None], xs, 0)
            xs = jnp.pad(xs, ((0, 0), (0, -xs.shape[1] % stride), (0, 0)))
            xs = jnp.concatenate([earlier.astype(xs.dtype), xs], 1)
            places = lengths[:, None] + jnp.arange(earlier.shape[1])
            last.append(jnp.take_along_axis(xs, places[..., None], 1).astype(jnp.float32))
            xs = self.dropout(jax.nn.relu(norm(convolution(xs))), rngs=rngs)
            lengths = -(-lengths // stride)
        return tuple(last), xs, lengths
