"""A video classifier: a convolutional network reads each frame, and an LSTM reads its outputs."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.models.base import Model, Outputs
from lstm_jax.models.classifier import Classifier, ClassifierCarry

KERNEL = (3, 3)


class VideoClassifier(Model):
    """Scores the classes of a video with a convolutional network and an LSTM.

    ::

        e_t = A silu(K_n * ... silu(K_1 * x_t)) + a      convolutions that halve height and width
        h_1, ..., h_T = LSTM(e_1, ..., e_T)
        logits = pool(h_1, ..., h_T) W + b

    The carry is that of :class:`lstm_jax.models.Classifier`: a video can be read in parts.

    Args:
      frame_shape: height, width and channels of a frame.
      num_classes: the number of classes.
      channels: the channels of each convolution.
      frame_features: features of a frame, which the LSTM reads.
      hidden_features: H, hidden features of each layer.
      num_layers: stacked layers.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      pooling: ``"mean"`` or ``"last"``.
      dropout: dropout rate of the frames' features and of the outputs of every layer.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters; ``dropout`` is stored for training.

    Example:
      >>> import jax.numpy as jnp
      >>> model = VideoClassifier((8, 8, 1), 3, channels=(4,), rngs=nnx.Rngs(0))
      >>> frames, lengths = jnp.zeros((2, 5, 8, 8, 1)), jnp.array([5, 3])
      >>> _, outputs = model(model.initial_carry(2), frames=frames, lengths=lengths)
      >>> outputs["logits"].shape  # [B, classes]
      (2, 3)

    References:
      Jeff Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and
      Description", CVPR 2015.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        num_classes: int,
        channels: Sequence[int] = (16, 32),
        frame_features: int = 64,
        hidden_features: int = 64,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        pooling: str = "mean",
        dropout: float = 0.0,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.frame_shape = tuple(frame_shape)
        sizes = [frame_shape[2], *channels]
        self.convolutions = nnx.List(
            nnx.Conv(a, b, KERNEL, strides=2, dtype=dtype, rngs=rngs)
            for a, b in itertools.pairwise(sizes)
        )
        height, width = (-(-side // 2 ** len(channels)) for side in frame_shape[:2])
        self.embedding = nnx.Linear(
            height * width * sizes[-1], frame_features, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.classifier = Classifier(
            frame_features, num_classes, hidden_features, num_layers,
            cell=cell, pooling=pooling, dropout=dropout, dtype=dtype, rngs=rngs,
        )  # fmt: skip

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        shape = ", ".join(["b", "t", *map(str, self.frame_shape)])
        return {"frames": (shape, "float32"), "lengths": ("b", "int32")}

    @property
    def ranges(self) -> dict[str, tuple[int, int | str]]:
        return self.classifier.ranges

    def initial_carry(self, rows: int) -> ClassifierCarry:
        return self.classifier.initial_carry(rows)

    def embed(self, frames: jax.Array) -> jax.Array:
        """The features of each frame, ``[B, T, height, width, C]`` to ``[B, T, E]``."""
        xs = frames.reshape(-1, *self.frame_shape)
        for convolution in self.convolutions:
            xs = nnx.silu(convolution(xs))
        return self.embedding(xs.reshape(*frames.shape[:2], -1))

    def __call__(
        self,
        carry: ClassifierCarry,
        *,
        frames: jax.Array,
        lengths: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[ClassifierCarry, Outputs]:
        """Class scores from all frames so far.

        Args:
          carry: as from :meth:`initial_carry`, or from an earlier part of the videos.
          frames: from 0 to 1, ``[B, T, height, width, C]``.
          lengths: the number of valid frames of each row, integers from 0 to T, ``[B]``.
          rngs: the stream ``dropout`` is used in training; the module's own stream if None.

        Returns:
          ``(carry, {"logits": [B, classes]})``.
        """
        xs = self.dropout(self.embed(frames), rngs=rngs)
        return self.classifier(carry, xs=xs, lengths=lengths, rngs=rngs)
