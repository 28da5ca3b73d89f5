"""The losses of pen moves, with a trained model and with simple ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.models.handwriting_synthesis import ON, mixture_of, move_losses
from lstm_jax.tasks.base import Batch, Metrics
from lstm_jax.tasks.handwriting_synthesis_data import GRAIN
from lstm_jax.tasks.trails import Trail, padded_text, padded_trails

ROWS = 256  # pieces per call of a model


def losses_of(model: Any, batch: Batch, **options: Any) -> jax.Array:
    """The losses of all moves, zero past the end of a piece, ``[B, T]``.

    Args:
      model: a :class:`lstm_jax.models.handwriting_synthesis.HandwritingSynthesis`.
      batch: from :func:`lstm_jax.tasks.trails.padded_trails`, and ``text``.
      options: other arguments of the model, such as ``rngs``.
    """
    first = model.initial_carry(batch["text"].shape[0])
    _, outputs = model(first, moves=batch["moves"], text=batch["text"], **options)
    losses = move_losses(mixture_of(outputs), batch["targets"], batch["kinds"])
    return jnp.where(batch["mask"], losses, 0.0)


def mean_loss(model: Any, trails: Sequence[Trail], labels: Sequence[np.ndarray]) -> float:
    """A model's mean loss in nats per move, over all moves of some pieces.

    Args:
      model: a :class:`lstm_jax.models.handwriting_synthesis.HandwritingSynthesis`.
      trails: the pieces.
      labels: their texts.
    """
    text = padded_text(labels)
    bounds = np.array([-(-len(trail.moves) // GRAIN) * GRAIN for trail in trails])
    total, count = 0.0, 0
    for bound in np.unique(bounds):
        chosen = np.flatnonzero(bounds == bound)
        size = min(ROWS, len(chosen))
        for start in range(0, len(chosen), ROWS):
            part = chosen[start : start + ROWS]
            rows = np.resize(part, size)  # all calls have the same shape
            batch = padded_trails([trails[int(n)] for n in rows], int(bound))
            losses = np.asarray(losses_of(model, batch | {"text": text[rows]}), np.float64)
            total += losses[: len(part)].sum()
            count += int(batch["mask"][: len(part)].sum())
    return float(total / count)


def simple_methods(train: Sequence[Trail], test: Sequence[Trail]) -> dict[str, Metrics]:
    """The losses of simple methods, fitted to some pieces and tested on others."""
    return {
        "mixture of 20 Gaussians": {"loss": gaussian_mixture(train, test)},
        "linear autoregression of order 8": {"loss": linear_autoregression(train, test)},
    }


def gaussian_mixture(train: Sequence[Trail], test: Sequence[Trail], components: int = 20) -> float:
    """Nats per move of a mixture of Gaussians, fitted by expectation maximisation.

    Moves are independent of each other; the kind of a move's end point depends only on its
    component.

    Args:
      train: the pieces for fitting.
      test: the pieces for testing.
      components: the number of Gaussians.
    """
    xs, kinds = _flat(train)
    chosen = np.random.default_rng(0).permutation(len(xs))[:50_000]
    read, states = jnp.asarray(xs[chosen]), jax.nn.one_hot(kinds[chosen], 3)
    first = jax.random.choice(jax.random.key(0), read, (components,), replace=False)
    covariance = jnp.tile(jnp.cov(read.T) / 4, (components, 1, 1))
    rates = jnp.tile((states.sum(0) + 1e-2) / (len(read) + 3e-2), (components, 1))
    start = (jnp.full(components, 1 / components), first, covariance, rates)

    def log_joint(model: Any, xs: jax.Array, kinds: jax.Array) -> jax.Array:
        weights, means, covariances, rates = model
        z = xs[:, None] - means
        square = jnp.einsum("nki,kij,nkj->nk", z, jnp.linalg.inv(covariances), z)
        density = -(square + jnp.log(jnp.linalg.det(covariances))) / 2 - jnp.log(2 * jnp.pi)
        return jnp.log(weights) + density + kinds @ jnp.log(rates.T)

    def improved(model: Any, _: Any) -> tuple[Any, None]:
        shares = jax.nn.softmax(log_joint(model, read, states))
        total = shares.sum(0) + 1e-3
        means = shares.T @ read / total[:, None]
        z = read[:, None] - means
        covariances = jnp.einsum("nk,nki,nkj->kij", shares, z, z) / total[:, None, None]
        covariances = covariances + 1e-6 * jnp.eye(2)
        rates = (shares.T @ states + 1e-2) / (total + 3e-2)[:, None]
        return (total / total.sum(), means, covariances, rates), None

    fitted = jax.jit(lambda model: jax.lax.scan(improved, model, None, length=60)[0])(start)
    xs, kinds = _flat(test)
    joint = jax.jit(log_joint)(fitted, jnp.asarray(xs), jax.nn.one_hot(kinds, 3))
    return -float(jax.nn.logsumexp(joint, axis=1).mean())


def linear_autoregression(train: Sequence[Trail], test: Sequence[Trail], order: int = 8) -> float:
    """Nats per move of a linear regression on the previous moves, with Gaussian noise.

    The covariance of the noise, and the frequencies of the kinds of the next point, differ between
    moves after a lift of the pen and all others.

    Args:
      train: the pieces for fitting.
      test: the pieces for testing.
      order: the number of previous moves, each with a flag for the end of a stroke.
    """
    (xs, ys, kinds, lifted), (us, vs, others, after) = (
        _regressors(part, order) for part in (train, test)
    )
    weights, *_ = np.linalg.lstsq(xs, ys, rcond=None)
    loss = 0.0
    for state in (False, True):
        noise = ys[lifted == state] - xs[lifted == state] @ weights
        covariance = noise.T @ noise / max(len(noise), 1) + 1e-9 * np.eye(2)
        counts = np.bincount(kinds[lifted == state], minlength=3) + 0.5
        z = vs[after == state] - us[after == state] @ weights
        square = np.einsum("ni,ij,nj->n", z, np.linalg.inv(covariance), z)
        loss += (square / 2 + np.log(2 * np.pi) + np.log(np.linalg.det(covariance)) / 2).sum()
        loss -= np.log(counts / counts.sum())[others[after == state]].sum()
    return float(loss / len(vs))


def _flat(trails: Sequence[Trail]) -> tuple[np.ndarray, np.ndarray]:
    moves = np.concatenate([trail.moves for trail in trails])
    return moves, np.concatenate([trail.kinds[1:] for trail in trails])


def _regressors(
    trails: Sequence[Trail], order: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = []
    for moves, kinds in trails:
        read = np.concatenate([np.concatenate([[[0, 0]], moves[:-1]]), kinds[:-1, None] != ON], 1)
        padded = np.concatenate([np.zeros((order - 1, 3)), read])
        windows = np.lib.stride_tricks.sliding_window_view(padded, order, axis=0)
        rows.append(windows.reshape(len(read), -1))
    ys, kinds = _flat(trails)
    lifted = np.concatenate([trail.kinds[:-1] != ON for trail in trails])
    xs = np.concatenate(rows)
    return np.concatenate([xs, np.ones((len(xs), 1))], 1), ys, kinds, lifted
