"""Video forecasting: the next frames of a video, from the previous ones."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import digest
from lstm_jax.data.videos import check_size, read_videos, unit_range
from lstm_jax.errors import expect
from lstm_jax.models.video import ConvForecaster, FullyConnectedForecaster
from lstm_jax.tasks.animations import forecast_animation
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.video_data import VideoConfig, VideoData

ROWS = 25  # videos per call of a model
PLOTTED = 6  # videos in an animation


@dataclasses.dataclass(frozen=True)
class VideoForecasting(Task):
    """Forecasts ``data.horizon`` frames of a video from the ``data.observed`` previous ones.

    ``loss`` is the binary cross-entropy of a pixel's value, in nats; ``squared error`` is summed
    over a frame's pixels and channels, with values from 0 to 1; ``relative`` is its ratio to that
    of repeating the last observed frame.  All are means over videos and forecast frames.

    Raises:
      UserError: the videos are missing or broken, or too short or too small.

    References:
      Nitish Srivastava, Elman Mansimov, Ruslan Salakhutdinov, "Unsupervised Learning of Video
      Representations using LSTMs", ICML 2015 (moving digits); Xingjian Shi et al., "Convolutional
      LSTM Network: A Machine Learning Approach for Precipitation Nowcasting", NeurIPS 2015.
    """

    data: VideoData
    model: VideoConfig
    unit = "videos"
    loss_unit = "nats a pixel"
    splits = ("validation", "test")
    plot_formats = (".gif",)

    def __post_init__(self) -> None:
        height, width, _ = self.known["frame_shape"]
        fits = height % self.model.patch == 0 and width % self.model.patch == 0
        wanted = f"a divisor of frames' sides, {height} and {width}"
        expect(fits or self.model.kind != "conv_lstm", "model.patch", wanted, self.model.patch)

    # ---- data ----

    @functools.cached_property
    def _held_out(self) -> dict[str, np.ndarray]:
        """The validation and test videos, ``[N, observed + horizon, height, width, C]``."""
        return self.data.held_out()

    def metadata(self) -> dict[str, Any]:
        """``frame_shape``: height, width and channels."""
        return {"frame_shape": [*self._held_out["test"].shape[2:]]}

    @functools.cached_property
    def fingerprint(self) -> str:
        return digest(self.data.example(0, 0), *self._held_out.values())

    def batches(self, seed: int) -> grain.MapDataset:
        def example(index: int) -> Batch:
            return {"frames": self.data.example(seed, index)}

        return grain.MapDataset.range(10**9).map(example).batch(self.data.batch_size)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        frames = (self.data.batch_size, self.data.num_frames, *self.known["frame_shape"])
        return {"frames": jax.ShapeDtypeStruct(frames, np.uint8)}

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> ConvForecaster | FullyConnectedForecaster:
        options, shape = self.model, tuple(self.known["frame_shape"])
        sizes = shape, self.data.horizon, options.hidden_size, options.num_layers
        if options.kind == "conv_lstm":
            return ConvForecaster(
                *sizes, kernel_size=options.kernel_size, patch=options.patch, dtype=options.dtype,
                rngs=rngs,
            )  # fmt: skip
        return FullyConnectedForecaster(*sizes, dtype=options.dtype, rngs=rngs)

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        frames = batch["frames"].astype(np.float32) / 255
        seen, truth = frames[:, : self.data.observed], frames[:, self.data.observed :]
        _, outputs = model(model.initial_carry(len(frames)), frames=seen, rngs=rngs)
        return optax.sigmoid_binary_cross_entropy(outputs["logits"], truth).mean(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """The three metrics that the class's docstring defines."""
        seen, truth = self._parts(self._held_out[split])
        logits = forecast(model, seen)
        losses = np.logaddexp(0, logits) - logits * truth
        error = squared_error(1 / (1 + np.exp(-logits)), truth)
        repeated = squared_error(seen[:, -1:], truth)
        relative = error / max(repeated, 1e-9)
        return {"loss": float(losses.mean()), "squared error": error, "relative": relative}

    def baselines(self, split: str) -> dict[str, Metrics]:
        seen, truth = self._parts(self._held_out[split])
        repeated = squared_error(seen[:, -1:], truth)
        found = {"repeat the last frame": repeated, "black frames": squared_error(0 * truth, truth)}
        return {
            name: {"squared error": error, "relative": error / max(repeated, 1e-9)}
            for name, error in found.items()
        }

    def _parts(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The observed frames and the frames to forecast, with values from 0 to 1."""
        frames = unit_range(frames)
        return frames[:, : self.data.observed], frames[:, self.data.observed :]

    # ---- new data ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The frames that follow the last ``data.observed`` frames of each video.

        ``source`` is a .npz file of ``frames`` ``[N, T, height, width, channels]`` with at least
        that number of frames; None for the observed part of the test videos.  The result ``frames``
        has bytes.
        """
        frames = forecast(model, self._read(source))
        frames = np.rint(255 / (1 + np.exp(-frames))).astype(np.uint8)
        return {"video": np.arange(1, len(frames) + 1), "frames": frames}

    def _read(self, source: pathlib.Path | None) -> np.ndarray:
        if source is None:
            return self._parts(self._held_out["test"])[0]
        videos = read_videos(source, labelled=False)
        check_size(videos, self.known["frame_shape"], f"{source}")
        shortest, needed = videos.lengths.min(), self.data.observed
        name = f"{source}: video {videos.lengths.argmin() + 1}"
        expect(shortest >= needed, name, f"at least data.observed = {needed} frames", shortest)
        ends = zip(videos.frames, videos.lengths, strict=True)
        return unit_range(np.stack([video[end - needed : end] for video, end in ends]))

    def plots(self, model: Any) -> Plots:
        """Test videos next to their forecasts, as an animation."""
        seen, truth = self._parts(self._held_out["test"][:PLOTTED])
        yield "forecasts.gif", self._animation(model, seen, truth)

    def plot_file(self, model: Any, source: pathlib.Path) -> bytes:
        """An animation of the first videos in a file and of their forecasts."""
        seen = self._read(source)[:PLOTTED]
        return self._animation(model, seen, np.zeros((len(seen), 0, *seen.shape[2:])))

    def _animation(self, model: Any, seen: np.ndarray, truth: np.ndarray) -> bytes:
        return forecast_animation(seen, truth, 1 / (1 + np.exp(-forecast(model, seen))))


def forecast(model: Any, frames: np.ndarray) -> np.ndarray:
    """Logits of the following frames, computed in calls of equal shape.

    Args:
      model: reads ``frames`` and returns ``logits``.
      frames: from 0 to 1, ``[N, T, height, width, C]``.

    Returns:
      float32 ``[N, F, height, width, C]``.
    """
    size, found = min(ROWS, len(frames)), []
    for start in range(0, len(frames), size):
        part = frames[np.arange(start, start + size) % len(frames)]
        found.append(np.asarray(model(model.initial_carry(size), frames=part)[1]["logits"]))
    return np.concatenate(found)[: len(frames)]


def squared_error(frames: np.ndarray, truth: np.ndarray) -> float:
    """The squared error of a frame, summed over its pixels and channels; the mean over frames.

    >>> squared_error(np.zeros((1, 2, 4, 4, 1)), np.full((1, 2, 4, 4, 1), 0.5))
    4.0
    """
    return float(np.square(frames - truth).sum((2, 3, 4), dtype=np.float64).mean())
