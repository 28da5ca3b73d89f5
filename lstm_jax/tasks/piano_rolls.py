"""Functions for task ``music`` with a model of piano rolls: losses of pieces, and new tunes."""

import functools
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from lstm_jax.data import (
    PITCHES,
    frequencies,
    midi_bytes,
    pitch_name,
    transitions,
    wav_bytes,
)
from lstm_jax.tasks.base import Metrics
from lstm_jax.tasks.music_data import MusicData
from lstm_jax.tasks.plots import piano_rolls
from lstm_jax.tasks.protocols import File

ROWS, STEPS = 16, 128  # per call in evaluation, which bounds the memory
FRAMES_PER_LINE = 4


def frame_losses(model: Any, rolls: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Negative log-likelihood of each frame of some pieces in nats, float64 ``[T]`` each.

    Args:
      model: reads ``frames`` and returns ``logits``.
      rolls: the pieces, ``[T, 88]`` each.
    """
    losses: list[Any] = [None] * len(rolls)
    order = sorted(range(len(rolls)), key=lambda n: len(rolls[n]))  # rows of similar lengths
    for group in (order[n : n + ROWS] for n in range(0, len(order), ROWS)):
        length = -(-max(len(rolls[n]) for n in group) // STEPS) * STEPS
        carry, parts = model.initial_carry(ROWS), []
        for start in range(0, length, STEPS):
            part = np.zeros((ROWS, STEPS, PITCHES), np.float32)  # all calls have the same shape
            for row, n in zip(part, group, strict=False):
                frames = rolls[n][start : start + STEPS]
                row[: len(frames)] = frames
            carry, outputs = model(carry, frames=part)
            parts.append(np.asarray(_losses(outputs["logits"], part), np.float64))
        for row, n in zip(np.concatenate(parts, 1), group, strict=False):
            losses[n] = row[: len(rolls[n])]
    return losses


@jax.jit
def _losses(logits: jax.Array, frames: jax.Array) -> jax.Array:
    return optax.sigmoid_binary_cross_entropy(logits, frames).sum(-1)


def summary(losses: Sequence[np.ndarray]) -> Metrics:
    """Means of the losses of frames, ``[T]`` for each piece.

    >>> summary([np.array([9.0, 1.0, 2.0, 3.0]), np.array([9.0, 8.0])])
    {'loss': 3.5, 'with_first_frame': 5.333333333333333, 'by_piece': 5.0}
    """
    later = [piece[1:] for piece in losses if len(piece) > 1]
    return {
        "loss": float(np.concatenate(later).mean()),
        "with_first_frame": float(np.concatenate(losses).mean()),
        "by_piece": float(np.mean([piece.mean() for piece in later])),
    }


def simple_models(train: Sequence[np.ndarray], rolls: Sequence[np.ndarray]) -> dict[str, Metrics]:
    """Metrics of models that treat each pitch separately, by their names.

    The first frame of a Markov chain has the same probability as with independent frames.
    """
    shares, chain = frequencies(train), transitions(train)

    def losses(roll: np.ndarray, markov: bool) -> np.ndarray:
        p = np.tile(shares, (len(roll), 1))
        if markov:
            p[1:] = np.where(roll[:-1], chain[1], chain[0])
        return -np.log(np.where(roll, p, 1 - p)).sum(1)

    return {
        "independent pitches": summary([losses(roll, markov=False) for roll in rolls]),
        "each pitch a Markov chain": summary([losses(roll, markov=True) for roll in rolls]),
    }


# ---- new tunes ----


def continued(
    model: Any,
    given: np.ndarray,
    melody: np.ndarray,
    length: int,
    temperature: float,
    seed: int,
) -> Iterator[np.ndarray]:
    """Yields ``length`` frames that follow the given ones, bool ``[88]``, each once it is chosen.

    Args:
      model: reads ``frames`` and returns ``logits``.
      given: the previous frames, ``[N, 88]``.
      melody: the highest pitch of each frame to choose, integers ``[M]``; a frame with -1, and
        every frame from M on, is unconstrained.
      length: the number of frames to choose.
      temperature: divides the logits; 0 always takes the more likely value.
      seed: determines the random choices.
    """
    if not length:
        return
    carry = model.initial_carry(1)
    if len(given):
        carry, _ = model(carry, frames=given[None].astype(np.float32))
    for n in range(length):
        key = jax.random.fold_in(jax.random.key(seed), n)
        top = np.int32(melody[n] if n < len(melody) else -1)
        carry, frame = _chosen(model.graph, model.state, carry, top, np.float32(temperature), key)
        yield np.asarray(frame)


@functools.partial(jax.jit, static_argnums=0)
def _chosen(
    graph: Any, state: Any, carry: Any, top: jax.Array, temperature: jax.Array, key: jax.Array
) -> tuple[Any, jax.Array]:
    """The carry after a new frame, and the frame, chosen pitch by pitch from the highest down, each
    given the pitches chosen so far.
    """
    model = nnx.merge(graph, state)

    def choose(frame: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pitch, uniform = inputs
        _, outputs = model(carry, frames=frame[None, None])
        logit = outputs["logits"][0, 0, pitch]
        share = jax.nn.sigmoid(logit / jnp.maximum(temperature, 1e-6))
        sounds = jnp.where(temperature > 0, uniform < share, logit > 0)
        sounds = jnp.where((top < 0) | (pitch < top), sounds, pitch == top)
        return frame.at[pitch].set(sounds.astype(frame.dtype)), None

    inputs = jnp.arange(PITCHES - 1, -1, -1), jax.random.uniform(key, (PITCHES,))
    frame, _ = jax.lax.scan(choose, jnp.zeros(PITCHES), inputs)
    return model(carry, frames=frame[None, None])[0], frame > 0


def tune(given: np.ndarray, frames: Iterator[np.ndarray], data: MusicData) -> Iterator[str | File]:
    """Yields each frame as a line of text, as soon as it is known, and then the tune as files."""
    roll = []
    for n, frame in enumerate(itertools.chain(given, frames)):
        roll.append(frame)
        names = " ".join(pitch_name(pitch) for pitch in np.flatnonzero(frame)[::-1])
        yield ("" if n == 0 else " | " if n % FRAMES_PER_LINE else "\n") + (names or "-")
    if not roll:
        return
    whole = np.array(roll, np.uint8)
    beats, seconds = data.frames_per_beat, 60 / (data.tempo * data.frames_per_beat)
    yield File("tune.mid", midi_bytes(whole, beats, data.tempo, data.instrument))
    yield File("tune.wav", wav_bytes(whole, seconds))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        yield "\nno image: matplotlib is not installed (pip install 'lstm_jax[plot]')"
        return
    image = io.BytesIO()
    piano_rolls({"": whole}, beats).savefig(image, dpi=200)
    yield File("tune.png", image.getvalue())
