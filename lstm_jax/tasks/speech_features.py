"""Features of recordings for training: normalised, augmented, and batched."""

import dataclasses
from collections.abc import Sequence

import grain
import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.data import Batch, bucketed, padded
from lstm_jax.data.audio import at_speed
from lstm_jax.data.parallel import least_padding
from lstm_jax.data.transcripts import Recording
from lstm_jax.tasks.speech_data import SpeechData


def speech_batches(
    train: Sequence[Recording],
    labels: Sequence[np.ndarray],
    data: SpeechData,
    normalised: "Normalisation",
    seed: int,
) -> grain.MapDataset:
    """Endless batches of recordings of similar length; an epoch has each one at every speed.

    Args:
      train: the recordings.
      labels: the labels of each recording.
      data: options.
      normalised: normalises features.
      seed: determines the order.

    Returns:
      Batches of ``features`` ``[B, T, M]``, ``lengths`` ``[B]``, ``labels`` ``[B, U]`` and
      ``label_lengths`` ``[B]``.
    """
    features = [
        normalised(each)
        for speed in data.speeds
        for each in data.log_mels([at_speed(x.samples, speed) for x in train])
    ]
    lengths = np.array([len(each) for each in features])
    targets, sizes = padded(labels)

    def batch(chosen: tuple[np.ndarray, int]) -> Batch:
        rows, bound = chosen
        xs = np.zeros((len(rows), bound, data.mel_bands), np.float32)
        for row, n in enumerate(rows):
            xs[row, : lengths[n]] = features[n]
        said = rows % len(train)
        return {
            "features": xs, "lengths": lengths[rows].astype(np.int32),
            "labels": targets[said], "label_lengths": sizes[said],
        }  # fmt: skip

    bounds = least_padding(lengths, data.buckets)
    return bucketed(lengths, bounds, data.batch_size, seed).map(batch)


def spec_augment(
    key: jax.Array,
    features: jax.Array,
    lengths: jax.Array,
    *,
    frequency_masks: int,
    frequency_width: int,
    time_masks: int,
    time_width: float,
) -> jax.Array:
    """Features in which random ranges of bands and of frames are replaced by zero, the mean.

    The width of each mask is uniformly distributed from 0 to the largest width, and its position is
    uniformly distributed, too.

    Args:
      key: determines the masks.
      features: normalised, ``[B, T, M]``.
      lengths: the number of frames in each row, ``[B]``.
      frequency_masks: the number of ranges of bands.
      frequency_width: the largest number of bands in a range.
      time_masks: the number of ranges of frames.
      time_width: the largest fraction of a row's frames in a range.

    Returns:
      ``[B, T, M]``.

    References:
      Daniel Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech
      Recognition", Interspeech 2019, without the time warp.
    """
    rows, steps, bands = features.shape

    def masks(
        key: jax.Array, count: int, size: int, ends: jax.Array, widest: jax.Array
    ) -> jax.Array:
        width, start = jax.random.uniform(key, (2, rows, count, 1))
        width = jnp.floor(width * (widest[:, None, None] + 1))
        start = jnp.floor(start * (ends[:, None, None] - width + 1))
        places = jnp.arange(size)
        return ((places >= start) & (places < start + width)).any(1)  # [B, size]

    keys = jax.random.split(key)
    all_bands = jnp.full(rows, bands)
    width = jnp.full(rows, min(frequency_width, bands))
    in_bands = masks(keys[0], frequency_masks, bands, all_bands, width)
    in_time = masks(keys[1], time_masks, steps, lengths, jnp.floor(time_width * lengths))
    return jnp.where(in_bands[:, None] | in_time[..., None], 0, features)


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Scales each band to mean 0 and deviation 1, per recording or over the training data.

    Attributes:
      mean: the mean of each band in the training data; empty to use that of each recording.
      deviation: likewise.

    >>> Normalisation()(np.array([[1.0], [3.0]])).tolist()
    [[-1.0], [1.0]]
    """

    mean: Sequence[float] = ()
    deviation: Sequence[float] = ()

    def __call__(self, features: np.ndarray) -> np.ndarray:
        mean, deviation = features.mean(0), features.std(0)
        if len(self.mean):
            mean, deviation = np.array(self.mean), np.array(self.deviation)
        return ((features - mean) / np.maximum(deviation, 0.01)).astype(np.float32)
