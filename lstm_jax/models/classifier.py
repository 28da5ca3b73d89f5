"""Sequence classifiers: unidirectional and streaming, or bidirectional over whole sequences."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM


class ClassifierCarry(NamedTuple):
    """The state after some steps of a sequence.

    Attributes:
      lstm: the state of each layer.
      pooled: the sum of the top layer's outputs so far, or the last output; ``[B, H]``.
      steps: the number of steps so far, int32 ``[B]``.
    """

    lstm: Any
    pooled: jax.Array
    steps: jax.Array


class _Classifier(Model):
    """LSTM layers and a readout for the classes.

    Args:
      num_classes: C.
      sizes: ``in_features``, ``hidden_features`` and ``num_layers`` of the layers.
      dropout: dropout rate of the outputs of every layer.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.
      options: of :class:`lstm_jax.nnx.LSTM`.
    """

    def __init__(
        self, num_classes: int, *sizes: int, dropout: float, rngs: nnx.Rngs, **options: Any
    ):
        self.lstm = LSTM(*sizes, dropout=dropout, rngs=rngs, **options)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(
            self.lstm.layer.output_size, num_classes,
            kernel_init=jax.nn.initializers.glorot_uniform(), rngs=rngs,
        )  # fmt: skip

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"xs": (f"b, t, {self.lstm.in_features}", "float32"), "lengths": ("b", "int32")}


class Classifier(_Classifier):
    """Scores classes from the mean of the top layer's outputs or from the last output.

    Each row of a batch has its own length; values beyond it have no influence.

    Args:
      in_features: D.
      num_classes: the number of classes.
      hidden_features: H, hidden features of each layer.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      pooling: ``"mean"`` or ``"last"``.
      dropout: dropout rate of the outputs of every layer.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = Classifier(3, 5, 8, rngs=nnx.Rngs(0))
      >>> xs, lengths = jnp.ones((2, 7, 3)), jnp.array([7, 4])
      >>> carry, outputs = model(model.initial_carry(rows=2), xs=xs, lengths=lengths)
      >>> outputs["logits"].shape  # [B, classes]
      (2, 5)
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        pooling: str = "mean",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.pooling = pooling
        super().__init__(
            num_classes, in_features, hidden_features, num_layers,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"lengths": (0, "t")}

    def initial_carry(self, rows: int) -> ClassifierCarry:
        return ClassifierCarry(
            lstm=self.lstm.layer.initial_state(self.lstm.params, (rows,)),
            pooled=jnp.zeros((rows, self.lstm.layer.output_size)),
            steps=jnp.zeros(rows, jnp.int32),
        )

    def __call__(
        self,
        carry: ClassifierCarry,
        *,
        xs: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[ClassifierCarry, Outputs]:
        """Class scores from all steps so far.

        Args:
          carry: as from :meth:`initial_carry`, or from an earlier part of the sequences.
          xs: ``[B, T, D]``.
          lengths: integers from 0 to T, ``[B]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, classes]})``.
        """
        lstm, ys = self.lstm(
            xs, initial_carry=carry.lstm, seq_lengths=lengths, return_carry=True,
            rngs=rngs,
        )  # fmt: skip
        ys, steps = ys.astype(jnp.float32), carry.steps + lengths
        if self.pooling == "mean":
            pooled = carry.pooled + ys.sum(1)  # outputs past a row's end are zero
            read = pooled / jnp.maximum(steps, 1)[:, None]
        else:
            last = jnp.take_along_axis(ys, jnp.maximum(lengths - 1, 0)[:, None, None], 1)[:, 0]
            read = pooled = jnp.where(lengths[:, None] > 0, last, carry.pooled)
        logits = self.readout(self.dropout(read, rngs=rngs))
        return ClassifierCarry(lstm, pooled, steps), {"logits": logits}


class BidirectionalClassifier(_Classifier):
    """Scores classes from bidirectional LSTM layers over a whole sequence.

    ::

        h_1, ..., h_T = LSTM(x_1, ..., x_T)
        logits = (h_1 + ... + h_T) / T W + b

    Each row of a batch has its own length, at least 1; values beyond it have no influence.

    Args:
      in_features: D.
      num_classes: C.
      hidden_features: H, hidden features of each layer and direction.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      dropout: dropout rate of the outputs of every layer.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> model = BidirectionalClassifier(3, 5, 8, rngs=nnx.Rngs(0))
      >>> xs, lengths = jnp.ones((2, 7, 3)), jnp.array([7, 4])
      >>> _, outputs = model(model.initial_carry(rows=2), xs=xs, lengths=lengths)
      >>> outputs["logits"].shape  # [B, C]
      (2, 5)

    References:
      Alex Graves, Jürgen Schmidhuber, "Framewise phoneme classification with bidirectional LSTM
      and other neural network architectures", Neural Networks 18, 2005.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        super().__init__(
            num_classes, in_features, hidden_features, num_layers, bidirectional=True,
            cell=cell, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return {"lengths": (1, "t")}

    def __call__(
        self,
        carry: Carry,
        *,
        xs: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Carry, Outputs]:
        """Scores of the classes of whole sequences.

        Args:
          carry: ``()``, from :meth:`initial_carry`; sequences are independent.
          xs: ``[B, T, D]``.
          lengths: integers from 1 to T, ``[B]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, C]})``.
        """
        ys = self.lstm(xs, seq_lengths=lengths, rngs=rngs).astype(jnp.float32)
        pooled = ys.sum(1) / lengths[:, None]  # outputs past a row's end are zero
        return carry, {"logits": self.readout(self.dropout(pooled, rngs=rngs))}
