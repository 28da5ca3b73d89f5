"""Functions for tasks with a CTC model: the loss, and error rates of labellings."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLANK = 0  # the class of the blank; labels are 1, 2, ...


def ctc_losses(
    logits: jax.Array, lengths: jax.Array, labels: jax.Array, label_lengths: jax.Array
) -> jax.Array:
    """The negative log likelihood of each row's labels, summed over all of their alignments.

    ::

        loss = -log Σ_{π collapses to y} Π_t P(π_t | x)

    Args:
      logits: ``[B, T, C]``; class ``BLANK`` is the blank.
      lengths: steps of each row, integers ``[B]``; at least :func:`steps_needed`.
      labels: integers from 1 to C - 1, ``[B, U]``.
      label_lengths: integers ``[B]``.

    Returns:
      Losses in nats, float32 ``[B]``.

    >>> logits = jnp.zeros((1, 2, 3))  # three of nine alignments are 1 1, 0 1 and 1 0
    >>> losses = ctc_losses(logits, jnp.array([2]), jnp.array([[1]]), jnp.array([1]))
    >>> round(float(jnp.exp(-losses[0])), 4)
    0.3333

    References:
      Alex Graves et al., "Connectionist Temporal Classification", ICML 2006, equation 8.
    """
    past_end = jnp.arange(logits.shape[1]) >= lengths[:, None]
    past_labels = jnp.arange(labels.shape[1]) >= label_lengths[:, None]
    return optax.ctc_loss(
        logits, past_end.astype(logits.dtype), labels, past_labels.astype(logits.dtype),
        blank_id=BLANK,
    )  # fmt: skip


def steps_needed(labels: np.ndarray | Sequence[int]) -> int:
    """The fewest steps of an alignment: one per label, and a blank between equal labels.

    >>> steps_needed([1, 2, 2, 3])
    5
    """
    labels = np.asarray(labels)
    return len(labels) + int((labels[1:] == labels[:-1]).sum())


def spelled(labels: Any, characters: Sequence[str]) -> str:
    """Labels up to the first -1 as a string; label n is character n - 1.

    >>> spelled([3, 1, 2, -1, -1], "abc")
    'cab'
    """
    return "".join(characters[n - 1] for n in np.asarray(labels).tolist() if n > 0)


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, float]:
    """Word error rate (``WER``) and character error rate (``CER``) in percent.

    Errors are the substitutions, deletions and insertions of the shortest edit, relative to the
    number of words or characters in the references.  A space counts as a character.

    >>> error_rates(["one two"], ["one too"])
    {'WER': 50.0, 'CER': 14.28...}
    """
    import jiwer

    pairs = list(references), list(hypotheses)
    return {"WER": 100 * float(jiwer.wer(*pairs)), "CER": 100 * float(jiwer.cer(*pairs))}
