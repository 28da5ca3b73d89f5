"""Handwriting synthesis: generates the moves of a pen that write a given text."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx

from lstm_jax.data import digest
from lstm_jax.data.ink import Ink
from lstm_jax.errors import expect
from lstm_jax.models.handwriting_synthesis import HandwritingSynthesis
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.handwriting_data import checked_labels, summary_lines
from lstm_jax.tasks.handwriting_synthesis_data import (
    SynthesisConfig,
    SynthesisData,
    Writing,
    standard,
    training_batches,
)
from lstm_jax.tasks.ink_svg import svg_page
from lstm_jax.tasks.protocols import File
from lstm_jax.tasks.synthesis_plots import drawn_biases, drawn_styles, laid_out, window_plot
from lstm_jax.tasks.synthesis_scores import losses_of, mean_loss, simple_methods
from lstm_jax.tasks.trails import Trail, trails_of
from lstm_jax.tasks.writing import primer_of, style_of, words_of, write


@dataclasses.dataclass(frozen=True)
class SynthesisTask(Task):
    """Writes a text by hand: predicts each move of the pen from the text and the previous moves.

    The loss is the negative log likelihood in nats per move: of its end point, and of whether a
    stroke or the piece ends there.  Moves are in units of their standard deviation over the
    training data.

    Raises:
      UserError: ink is missing or broken, a piece has no text or fewer than two points, or there
        are fewer pieces than one batch.

    References:
      Alex Graves, "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850, 2013.
    """

    data: SynthesisData
    model: SynthesisConfig
    unit = "written pieces"
    loss_unit = "nats a move"
    splits = ("validation", "test")
    sampling = Writing

    def __post_init__(self) -> None:
        train, size = self._inks["train"], self.data.batch_size
        expect(len(train) >= size, "data.batch_size", f"at most the {len(train)} pieces", size)
        for split in self.splits:
            expect(self._inks[split], f"data.ink: {self.data.ink}", f"pieces for {split}", "none")
        self.model.check_layers(4 + len(self.known["alphabet"]))

    # ---- data ----

    @functools.cached_property
    def _inks(self) -> dict[str, list[Ink]]:
        return self.data.read()

    @functools.cached_property
    def _strokes(self) -> dict[str, list[list[np.ndarray]]]:
        return {split: standard(inks, self.data.every) for split, inks in self._inks.items()}

    def metadata(self) -> dict[str, Any]:
        """``alphabet``, letter n for label n + 1; the ``unit`` of moves; an ``example`` of text."""
        texts = [ink.text for inks in self._inks.values() for ink in inks]
        moves = np.concatenate([trail.moves for trail in trails_of(self._strokes["train"], 1.0)])
        return {
            "alphabet": "".join(sorted(set("".join(texts)))),
            "unit": float(np.sqrt(np.square(moves, dtype=np.float64).mean())),
            "example": max((ink.text for ink in self._inks["validation"]), key=len),
        }

    @functools.cached_property
    def _labels(self) -> dict[str, list[np.ndarray]]:
        alphabet, where = self.known["alphabet"], f"data.ink: {self.data.ink}"
        return {name: checked_labels(inks, alphabet, where) for name, inks in self._inks.items()}

    def _trails(self, split: str) -> list[Trail]:
        return trails_of(self._strokes[split], self.known["unit"])

    @functools.cached_property
    def fingerprint(self) -> str:
        inks = [ink for split in self._inks.values() for ink in split]
        texts = np.frombuffer("\n".join(ink.text for ink in inks).encode(), np.uint8)
        return digest(texts, *(np.concatenate(ink.strokes) for ink in inks))

    def notes(self) -> list[str]:
        counts = [len(trail.moves) for trail in self._trails("train")]
        return [*summary_lines(self._inks), f"{np.mean(counts):.1f} moves per training piece"]

    def batches(self, seed: int) -> grain.MapDataset:
        strokes, labels = self._strokes["train"], self._labels["train"]
        return training_batches(strokes, labels, self.known["unit"], self.data, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> HandwritingSynthesis:
        options = self.model
        return HandwritingSynthesis(
            len(self.known["alphabet"]), options.hidden_size, options.num_layers,
            window_components=options.window_components,
            mixture_components=options.mixture_components, cell=options.cell_factory,
            dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        return losses_of(model, batch, rngs=rngs).sum() / batch["mask"].sum(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats per move."""
        return {"loss": mean_loss(model, self._trails(split), self._labels[split])}

    def baselines(self, split: str) -> dict[str, Metrics]:
        return simple_methods(self._trails("train"), self._trails(split))

    def plots(self, model: Any) -> Plots:
        """The same text with several biases and in several styles, and the window's positions."""
        text, write = self.known["example"], functools.partial(self.written, model)
        (neat,) = write([text], bias=1.0)
        yield "window", window_plot(model, neat, text, self.known["alphabet"], self.known["unit"])
        yield "biases.svg", drawn_biases(write, text).encode()
        yield "styles.svg", drawn_styles(write, text, self._inks["test"]).encode()

    # ---- new data, new samples ----

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The loss of each piece of handwriting, given its text, in nats per move."""
        inks = self._inks["test"] if source is None else self.data.read_new(source)
        labels = checked_labels(inks, self.known["alphabet"], f"{source}")
        trails = trails_of(standard(inks, self.data.every), self.known["unit"])
        pairs = zip(trails, labels, strict=True)
        return {
            "ink": [ink.name for ink in inks],
            "moves": np.array([len(trail.moves) for trail in trails]),
            "loss": np.array([mean_loss(model, [trail], [label]) for trail, label in pairs]),
        }

    def written(
        self, model: Any, words: list[str], *, bias: float = 0.5, temperature: float = 1.0,
        style: Ink | None = None, longest: int = 400, seed: int = 0,
    ) -> list[list[np.ndarray]]:  # fmt: skip
        """Writes words; returns the strokes of each, ``[N, 2]``, with y upwards.

        Args:
          model, bias, temperature, longest: as for :func:`lstm_jax.tasks.writing.write`.
          words: words of known letters.
          style: a piece of handwriting that the model continues.
          seed: determines the random choices.

        Raises:
          UserError: a letter is unknown.
        """
        alphabet, unit = self.known["alphabet"], self.known["unit"]
        labels = checked_labels([Ink("text", (), word) for word in words], alphabet, "text")
        primer = primer_of(style, alphabet, self.data.every, unit) if style else None
        found = write(model, labels, primer, bias, temperature, longest, jax.random.key(seed))
        return [[stroke * unit for stroke in strokes] for strokes in found]

    def generate(
        self, model: Any, *, prompt: str, length: int, temperature: float, seed: int,
        text: str = "", bias: float = 0.5, style: str = "",
    ) -> Iterator[str | File]:  # fmt: skip
        """Writes a text as a page, ``handwriting.svg``.

        ``length`` is the largest number of moves in a word, and ``temperature`` a factor of their
        standard deviations.
        """
        text = text or prompt or self.known["example"]
        words = words_of(text, self.known["alphabet"])
        piece = style_of(style, self.known["alphabet"]) if style else None
        write = functools.partial(
            self.written, model, words, bias=bias, temperature=temperature, style=piece,
            longest=length, seed=seed,
        )  # fmt: skip

        def pages() -> Iterator[str | File]:
            if length:
                page = svg_page(laid_out(write()))
                yield from (" ".join(words), File("handwriting.svg", page.encode()))

        return pages()
