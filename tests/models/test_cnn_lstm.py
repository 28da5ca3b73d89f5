"""The classifier of videos, compared with its parts, and called frame by frame."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.models import Classifier, Compiled, VideoClassifier
from tests.arrays import params_of, with_params

FRAMES = np.random.default_rng(0).random((3, 5, 7, 10, 2), np.float32)
LENGTHS = np.array([5, 2, 4], np.int32)


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A convolution of stride 2 with zero padding, position by position."""
    height, width, _ = x.shape
    rows, columns = -(-height // 2), -(-width // 2)
    before = [max((n - 1) * 2 + 3 - size, 0) // 2 for n, size in ((rows, height), (columns, width))]
    padded = np.pad(x, ((before[0], 2), (before[1], 2), (0, 0)))
    y = np.zeros((rows, columns, kernel.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            window = padded[2 * r : 2 * r + 3, 2 * c : 2 * c + 3]
            y[r, c] = np.tensordot(window, kernel, 3) + bias
    return y


def test_frames_pass_the_convolutions_and_then_the_classifier():
    model = VideoClassifier((7, 10, 2), 3, (4, 6), 5, 6, rngs=nnx.Rngs(0))
    compiled, params = Compiled(model), params_of(model)
    _, outputs = compiled(compiled.initial_carry(3), frames=FRAMES, lengths=LENGTHS)
    features = np.zeros((3, 5, 5), np.float32)
    for n, t in np.ndindex(3, 5):
        x = FRAMES[n, t].astype(np.float64)
        for layer in (0, 1):
            convolution = params["convolutions"][layer]
            x = convolved(x, convolution["kernel"], convolution["bias"])
            x = x / (1 + np.exp(-x))
        embedding = params["embedding"]
        features[n, t] = x.reshape(-1) @ embedding["kernel"] + embedding["bias"]
    head = with_params(Classifier(5, 3, 6, rngs=nnx.Rngs(1)), params["classifier"])
    _, expected = Compiled(head)(head.initial_carry(3), xs=features, lengths=LENGTHS)
    np.testing.assert_allclose(outputs["logits"], expected["logits"], atol=1e-5)


def test_a_video_can_be_read_in_parts():
    model = Compiled(VideoClassifier((7, 10, 2), 3, (4,), 5, 6, rngs=nnx.Rngs(0)))
    _, whole = model(model.initial_carry(3), frames=FRAMES, lengths=LENGTHS)
    carry = model.initial_carry(3)
    for start in (0, 3):
        lengths = jnp.clip(LENGTHS - start, 0, 3 if start == 0 else 2)
        part = FRAMES[:, start : start + (3 if start == 0 else 2)]
        carry, outputs = model(carry, frames=part, lengths=lengths)
    np.testing.assert_allclose(outputs["logits"], whole["logits"], atol=1e-5)
    assert jax.tree.leaves(carry)[0].shape[0] == 3
