"""Models that forecast the next frames of a video."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lstm_jax.cells import ConvLSTMCell
from lstm_jax.models.base import Carry, Model, Outputs
from lstm_jax.nnx import LSTM


def space_to_depth(frames: jax.Array, patch: int) -> jax.Array:
    """Moves each square of ``patch`` times ``patch`` pixels into the channels of one position.

    Args:
      frames: ``[..., height, width, C]``, sides divisible by ``patch``.
      patch: pixels of a square's side.

    Returns:
      ``[..., height / patch, width / patch, patch * patch * C]``.

    >>> space_to_depth(jnp.arange(16).reshape(4, 4, 1), 2)[0, 1].tolist()
    [2, 3, 6, 7]
    """
    *batch, height, width, channels = frames.shape
    cut = frames.reshape(*batch, height // patch, patch, width // patch, patch, channels)
    return jnp.swapaxes(cut, -4, -3).reshape(
        *batch, height // patch, width // patch, patch * patch * channels
    )


def depth_to_space(places: jax.Array, patch: int) -> jax.Array:
    """The inverse of :func:`space_to_depth`.

    >>> frames = jnp.arange(32).reshape(4, 4, 2)
    >>> bool((depth_to_space(space_to_depth(frames, 2), 2) == frames).all())
    True
    """
    *batch, height, width, depth = places.shape
    cut = places.reshape(*batch, height, width, patch, patch, depth // patch**2)
    return jnp.swapaxes(cut, -4, -3).reshape(*batch, height * patch, width * patch, -1)


class VideoForecaster(Model):
    """Forecasts the next frames of a video with an encoder LSTM and a decoder LSTM.

    ::

        (h, c) of each layer = encoder(x_1, ..., x_T)
        y_1, ..., y_F = forecaster(x_T, ..., x_T), which starts from these states
        logits of frame T + k = W y_k + b

    The states of the encoder are the carry, so a video can be read in parts. Each call forecasts
    from its last frame.

    Subclasses define the representation of frames.

    Args:
      frame_shape: height, width and channels of a frame.
      horizon: F.
      encoder, forecaster: layers with the same sizes.
      out_features: the features of an output step.
      rngs: the stream ``params`` initialises the readout.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        horizon: int,
        encoder: LSTM,
        forecaster: LSTM,
        out_features: int,
        rngs: nnx.Rngs,
    ):
        self.frame_shape, self.horizon = tuple(frame_shape), horizon
        self.encoder, self.forecaster = encoder, forecaster
        glorot = jax.nn.initializers.glorot_uniform()
        width = encoder.layer.output_size
        self.readout = nnx.Linear(width, out_features, kernel_init=glorot, rngs=rngs)

    @property
    def inputs(self) -> dict[str, tuple[str, str]]:
        return {"frames": (", ".join(["b", "t", *map(str, self.frame_shape)]), "float32")}

    def steps(self, frames: jax.Array) -> jax.Array:
        """Frames ``[B, T, height, width, C]`` as steps of a sequence."""
        raise NotImplementedError(f"{type(self).__name__} does not define steps")

    def frames(self, steps: jax.Array) -> jax.Array:
        """The inverse of :meth:`steps`."""
        raise NotImplementedError(f"{type(self).__name__} does not define frames")

    def initial_carry(self, rows: int) -> Carry:
        step = jax.eval_shape(self.steps, jnp.zeros((rows, 1, *self.frame_shape)))
        return self.encoder.initialize_carry((rows, *step.shape[2:]))

    def __call__(
        self, carry: Carry, *, frames: jax.Array, rngs: nnx.Rngs | None = None
    ) -> tuple[Carry, Outputs]:
        """Forecasts the frames that follow the given ones.

        Args:
          carry: as from :meth:`initial_carry`, or from an earlier part of the videos.
          frames: from 0 to 1, ``[B, T, height, width, C]``.
          rngs: not used.

        Returns:
          ``(carry, {"logits": [B, F, height, width, C]})``; a pixel's value is the logistic
          function of its logit.
        """
        xs = self.steps(frames)
        carry, _ = self.encoder(xs, initial_carry=carry, return_carry=True)
        last = jnp.repeat(xs[:, -1:], self.horizon, axis=1)
        ys = self.forecaster(last, initial_carry=carry)
        return carry, {"logits": self.frames(self.readout(ys)).astype(jnp.float32)}


class ConvForecaster(VideoForecaster):
    """An encoder and a forecaster of convolutional LSTMs.

    Squares of ``patch`` times ``patch`` pixels become the channels of one position, so that the
    layers work on smaller grids.

    Args:
      frame_shape: height, width and channels of a frame; sides divisible by ``patch``.
      horizon: F, how many frames are forecast.
      hidden_features: channels of each layer.
      num_layers: stacked layers of the encoder, and of the forecaster.
      kernel_size: side of the convolutions' kernels, odd.
      patch: pixels of a square's side.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters.

    Example:
      >>> model = ConvForecaster((8, 8, 1), 3, hidden_features=4, rngs=nnx.Rngs(0))
      >>> frames = jnp.zeros((2, 5, 8, 8, 1))
      >>> _, outputs = model(model.initial_carry(2), frames=frames)
      >>> outputs["logits"].shape  # [B, F, height, width, C]
      (2, 3, 8, 8, 1)

    References:
      Xingjian Shi et al., "Convolutional LSTM Network: A Machine Learning Approach for
      Precipitation Nowcasting", NeurIPS 2015 (where the forecaster has no inputs).
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        horizon: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        kernel_size: int = 3,
        patch: int = 4,
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        self.patch, features = patch, patch**2 * frame_shape[2]
        cell: Any = functools.partial(ConvLSTMCell, kernel_size=(kernel_size, kernel_size))
        encoder, forecaster = (
            LSTM(features, hidden_features, num_layers, cell=cell, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        super().__init__(frame_shape, horizon, encoder, forecaster, features, rngs)

    def steps(self, frames: jax.Array) -> jax.Array:
        return space_to_depth(frames, self.patch)

    def frames(self, steps: jax.Array) -> jax.Array:
        return depth_to_space(steps, self.patch)


class FullyConnectedForecaster(VideoForecaster):
    """An encoder and a forecaster of LSTMs that read a frame as one vector.

    Args:
      frame_shape: height, width and channels of a frame.
      horizon: F, how many frames are forecast.
      hidden_features: H of each layer.
      num_layers: stacked layers of the encoder, and of the forecaster.
      cell: the kind of cell, as in :class:`lstm_jax.nnx.LSTM`.
      dtype: type of the products.
      rngs: the stream ``params`` initialises the parameters.

    Example:
      >>> model = FullyConnectedForecaster((8, 8, 1), 3, hidden_features=4, rngs=nnx.Rngs(0))
      >>> _, outputs = model(model.initial_carry(2), frames=jnp.zeros((2, 5, 8, 8, 1)))
      >>> outputs["logits"].shape
      (2, 3, 8, 8, 1)

    References:
      Nitish Srivastava, Elman Mansimov, Ruslan Salakhutdinov, "Unsupervised Learning of Video
      Representations using LSTMs", ICML 2015.
    """

    def __init__(
        self,
        frame_shape: tuple[int, int, int],
        horizon: int,
        hidden_features: int,
        num_layers: int = 1,
        *,
        cell: Any = "lstm",
        dtype: DTypeLike = "float32",
        rngs: nnx.Rngs,
    ):
        features = frame_shape[0] * frame_shape[1] * frame_shape[2]
        encoder, forecaster = (
            LSTM(features, hidden_features, num_layers, cell=cell, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        super().__init__(frame_shape, horizon, encoder, forecaster, features, rngs)

    def steps(self, frames: jax.Array) -> jax.Array:
        return frames.reshape(*frames.shape[:2], -1)

    def frames(self, steps: jax.Array) -> jax.Array:
        return steps.reshape(*steps.shape[:2], *self.frame_shape)
