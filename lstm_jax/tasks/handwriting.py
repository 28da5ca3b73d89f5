"""Handwriting recognition: from the path of a pen to text."""

import dataclasses
import functools
import pathlib
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx

from lstm_jax.data import digest, read_lines
from lstm_jax.data.ink import Ink, read_inks
from lstm_jax.data.strokes import FEATURES, normalised, paths_of, resampled
from lstm_jax.errors import expect
from lstm_jax.models.ctc import CTCModel
from lstm_jax.models.lexicon import Lexicon, lexicon_of
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.ctc import ctc_losses, error_rates, steps_needed
from lstm_jax.tasks.handwriting_data import (
    HandwritingConfig,
    HandwritingData,
    checked_labels,
    summary_lines,
    training_batches,
)
from lstm_jax.tasks.reading import drawing, nearest_texts, readings

DRAWN = 24  # pieces of a drawing


@dataclasses.dataclass(frozen=True)
class Handwriting(Task):
    """Transcribes handwriting letter by letter from the path of the pen, with CTC.

    Raises:
      UserError: ink is missing or broken, a text is missing or has more letters than its ink has
        steps, or there are fewer pieces than one batch.

    References:
      Alex Graves et al., "A Novel Connectionist System for Unconstrained Handwriting Recognition",
      IEEE Transactions on Pattern Analysis and Machine Intelligence 31, 2009; Victor Carbune et
      al., "Fast Multi-language LSTM-based Online Handwriting Recognition", IJDAR 23, 2020.
    """

    data: HandwritingData
    model: HandwritingConfig
    unit = "pieces"
    loss_unit = "nats a piece"
    splits = ("validation", "test")
    criterion = "CER"
    plot_formats = (".svg",)

    def __post_init__(self) -> None:
        train, size = self._inks["train"], self.data.batch_size
        expect(len(train) >= size, "data.batch_size", f"at most the {len(train)} pieces", size)
        for split in self.splits:
            expect(self._inks[split], f"data.ink: {self.data.ink}", f"pieces for {split}", "none")
        for split, inks in self._inks.items():
            paths = resampled(normalised(paths_of([i.strokes for i in inks])), self.data.spacing)
            steps = -(-np.bincount(paths.owner) // self.model.stride)
            for ink, labels, count in zip(inks, self._labels[split], steps, strict=True):
                name = f"data.ink: {ink.name}"
                wanted = f"at least {steps_needed(labels)} steps for the text {ink.text!r}"
                expect(count >= steps_needed(labels), name, wanted, count)
        kernel, stride = self.model.kernel_size, self.model.stride
        expect(kernel >= stride, "model.kernel_size", f"at least model.stride = {stride}", kernel)
        self.model.check_layers(self.model.conv_features if stride > 1 else FEATURES)

    # ---- data ----

    @functools.cached_property
    def _inks(self) -> dict[str, list[Ink]]:
        return self.data.read()

    def metadata(self) -> dict[str, Any]:
        """``alphabet``, letter n for label n + 1, and the sorted words of the ``lexicon``."""
        alphabet = "".join(
            sorted({c for inks in self._inks.values() for i in inks for c in i.text})
        )
        lexicon = {ink.text for ink in self._inks["train"]}
        if self.data.lexicon:
            lexicon = {word for line in read_lines(self.data.lexicon) if (word := line.strip())}
            for word in lexicon:
                fits = set(word) <= set(alphabet)
                expect(fits, f"data.lexicon: {self.data.lexicon}", f"letters of {alphabet}", word)
        return {"alphabet": alphabet, "lexicon": sorted(lexicon)}

    @functools.cached_property
    def _labels(self) -> dict[str, list[np.ndarray]]:
        alphabet = self.known["alphabet"]
        return {
            split: checked_labels(inks, alphabet, f"data.ink: {self.data.ink}")
            for split, inks in self._inks.items()
        }

    @functools.cached_property
    def _lexicon(self) -> Lexicon:
        places = {letter: n for n, letter in enumerate(self.known["alphabet"], start=1)}
        return lexicon_of([[places[c] for c in word] for word in self.known["lexicon"]])

    @functools.cached_property
    def fingerprint(self) -> str:
        inks = [ink for split in self._inks.values() for ink in split]
        texts = np.frombuffer("\n".join(ink.text for ink in inks).encode(), np.uint8)
        return digest(texts, *(np.concatenate(ink.strokes) for ink in inks))

    def notes(self) -> list[str]:
        words = f"{len(self.known['lexicon']):,} words in the lexicon"
        return [*summary_lines(self._inks), words]

    def batches(self, seed: int) -> grain.MapDataset:
        paths = normalised(paths_of([ink.strokes for ink in self._inks["train"]]))
        return training_batches(paths, self._labels["train"], self.data, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> CTCModel:
        options = self.model
        return CTCModel(
            FEATURES, 1 + len(self.known["alphabet"]), options.hidden_size, options.num_layers,
            strides=(options.stride,) if options.stride > 1 else (),
            conv_features=options.conv_features, kernel_size=options.kernel_size,
            cell=options.cell_factory, dropout=options.dropout, dtype=options.dtype, rngs=rngs,
        )  # fmt: skip

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        _, out = model((), features=batch["features"], lengths=batch["lengths"], rngs=rngs)
        losses = ctc_losses(out["logits"], out["steps"], batch["labels"], batch["label_lengths"])
        return losses.mean(), carry

    # ---- metrics ----

    def read(self, model: Any, inks: list[Ink], labels: Any = None) -> dict[str, list[Any]]:
        """The transcription of each piece; see :func:`lstm_jax.tasks.reading.readings`."""
        alphabet, words = self.known["alphabet"], self.known["lexicon"]
        return readings(model, inks, self.data.spacing, alphabet, (words, self._lexicon), labels)

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss``, and in percent ``CER`` and the accuracies of whole labels.

        ``CER`` and ``accuracy`` refer to the most likely letters, and ``lexicon accuracy`` to the
        most likely word of the lexicon.
        """
        inks = self._inks[split]
        found, texts = self.read(model, inks, self._labels[split]), [ink.text for ink in inks]
        return {
            "loss": float(np.mean(found["loss"])),
            "CER": error_rates(texts, found["reading"])["CER"],
            "accuracy": _share_right(texts, found["reading"]),
            "lexicon accuracy": _share_right(texts, found["word"]),
        }

    def baselines(self, split: str) -> dict[str, Metrics]:
        """The text of the nearest training piece, compared at 48 points along its strokes."""
        texts = [ink.text for ink in self._inks[split]]
        found = nearest_texts(self._inks["train"], self._inks[split])
        rates = {"CER": error_rates(texts, found)["CER"], "accuracy": _share_right(texts, found)}
        return {"nearest neighbour, 48 points": rates}

    def predict(self, model: Any, source: pathlib.Path | None) -> Columns:
        """The most likely letters of each piece, and the most likely word of the lexicon.
        ``probability`` is that word's share among all words of the lexicon.
        """
        inks = self._inks["test"] if source is None else read_inks(source)
        found = self.read(model, inks)
        return {
            "ink": [ink.name for ink in inks],
            "reading": found["reading"],
            "word": found["word"],
            "probability": np.array(found["share"]),
        }

    def plots(self, model: Any) -> Plots:
        """Test pieces; the colour of the ink shows the letter that the model recognised."""
        inks = self._inks["test"]
        chosen = np.random.default_rng(0).permutation(len(inks))[:DRAWN]
        yield "readings.svg", self._drawing(model, [inks[n] for n in chosen]).encode()

    def plot_file(self, model: Any, source: pathlib.Path) -> str:
        """A plot of the first pieces of a file, as in :meth:`plots`."""
        return self._drawing(model, read_inks(source)[:DRAWN])

    def _drawing(self, model: Any, inks: list[Ink]) -> str:
        return drawing(model, inks, self.data.spacing, self.known["alphabet"], self.model.stride)


def _share_right(texts: list[str], found: list[str]) -> float:
    """The percentage of labels that were recognised correctly."""
    return 100.0 * float(np.mean([a == b for a, b in zip(texts, found, strict=True)]))
