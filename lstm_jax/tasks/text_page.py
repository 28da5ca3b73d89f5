"""A page of coloured texts: the attention of the model, and its prediction after each token."""

import html
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax.data import Tokenizer, padded
from lstm_jax.data.labelled_text import LabelledText
from lstm_jax.tasks.scores import logits_of

SHOWN, MISTAKES = 30, 10  # random texts, and misclassified ones with the most confident prediction
TOKENS = 200  # of a text

STYLE = """
:root { color-scheme: light dark; }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #161616; } }
div.text { margin: 1.2rem 0; }
span.token { display: inline-flex; flex-direction: column; vertical-align: top; }
span.token > b { font-weight: normal; white-space: pre; border-radius: 3px; padding: 0 1px; }
span.token > i { height: 20px; display: flex; align-items: end; background: rgb(128 128 128 / 0.15);
                 border-right: 1px solid transparent; background-clip: padding-box; }
span.token > i > u { width: 100%; background: #56b4e9; }
"""


def text_page(model: Any, tokenizer: Tokenizer, found: LabelledText, rows: list[np.ndarray]) -> str:
    """Texts as HTML; each token has a background colour and a bar below it.

    If the model has attention, the colour shows its weight.  Otherwise it shows the derivative of
    the predicted class's log-probability with respect to the token's embedding, times that
    embedding: blue is evidence for the class, and orange against it.  The bar is the probability of
    the predicted class, given the text up to that token.

    Args:
      model: a :class:`lstm_jax.models.TextClassifier` in evaluation mode.
      tokenizer: splits the texts.
      found: texts with their classes.
      rows: the tokens of each text that the model reads.

    References:
      Karen Simonyan, Andrea Vedaldi, Andrew Zisserman, "Deep Inside Convolutional Networks:
      Visualising Image Classification Models and Saliency Maps", ICLR 2014 workshop.
    """
    from lstm_jax.inspect.page import Section, page, paragraph

    shares = np.asarray(jax.nn.softmax(logits_of(model, rows)))
    chosen = np.random.default_rng(0).permutation(len(rows))[:SHOWN]
    wrong = np.flatnonzero(shares.argmax(1) != found.labels)
    wrong = wrong[np.argsort(-shares[wrong].max(1), kind="stable")][:MISTAKES]
    what = "attention" if model.pooling == "attention" else "gradient times embedding"
    key = (
        f"Colour: {what}, blue for the predicted class and orange against it. Bars: the "
        "probability of the predicted class after each token."
    )
    sections = []
    for title, places in (("Texts at random", chosen), ("Most certain mistakes", wrong)):
        picked = [rows[n][:TOKENS] for n in places]
        if not picked:
            continue
        importance = _importance(model, picked)
        after = _shares_after_each(model, picked)
        parts = [
            _text(found.texts[n], found.classes[found.labels[n]], found.classes, tokenizer, *values)
            for n, *values in zip(places, importance, after, strict=True)
        ]
        sections.append(Section(title, paragraph(key) + "".join(parts)))
    return page("Texts of the test split", sections, STYLE)


def _importance(model: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
    """A number for each token of each text."""
    tokens, lengths = padded(rows)
    module = model.module
    if module.pooling == "attention":
        values = module((), tokens=tokens, lengths=lengths)[1]["attention"]
    else:

        def certainty(xs: jax.Array) -> jax.Array:
            return jax.nn.log_softmax(module.read(xs, lengths)["logits"]).max(1).sum()

        xs = module.embedding(jnp.asarray(tokens))
        values = (xs * jax.jit(jax.grad(certainty))(xs)).sum(-1)
    return [np.asarray(value)[:length] for value, length in zip(values, lengths, strict=True)]


def _shares_after_each(model: Any, rows: list[np.ndarray]) -> list[np.ndarray]:
    """The probability of each class after each token of each text, ``[T, C]``."""
    prefixes = [row[:end] for row in rows for end in range(1, len(row) + 1)]
    shares = np.asarray(jax.nn.softmax(logits_of(model, prefixes)))
    return np.split(shares, np.cumsum([len(row) for row in rows])[:-1])


def _text(
    text: str,
    label: str,
    classes: tuple[str, ...],
    tokenizer: Tokenizer,
    importance: np.ndarray,
    after: np.ndarray,
) -> str:
    """One text as HTML."""
    predicted = after[-1].argmax()
    limit, end, parts = np.abs(importance).max() or 1.0, 0, []
    for (first, last), value, shares in zip(tokenizer.spans(text), importance, after, strict=False):
        first = max(first, end)
        if last <= first:  # another byte of the previous character
            continue
        if text[end:first]:
            parts.append(" ")
        colour = "86 180 233" if value > 0 else "230 159 0"
        said = ", ".join(f"{c} {100 * p:.0f} %" for c, p in zip(classes, shares, strict=True))
        parts.append(
            f'<span class="token" title="{html.escape(said)}"><b style="background:rgb({colour} / '
            f'{0.75 * abs(value) / limit:.2f})">{html.escape(text[first:last])}</b>'
            f'<i><u style="height:{100 * shares[predicted]:.0f}%"></u></i></span>'
        )
        end = last
    share = f"{100 * after[-1, predicted]:.0f} %"
    heading = f"{label}; predicted: {classes[predicted]}, {share}"
    return f'<div class="text"><div>{html.escape(heading)}</div>{"".join(parts)}</div>\n'
