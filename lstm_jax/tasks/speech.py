"""Speech recognition: recordings to text, character by character."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grain
import jax
import numpy as np
from flax import nnx

from lstm_jax.data import digest, scaling_of
from lstm_jax.data.audio import read_samples
from lstm_jax.data.transcripts import Recording, Recordings
from lstm_jax.errors import expect
from lstm_jax.models import CTCModel
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.ctc import ctc_losses, error_rates
from lstm_jax.tasks.speech_checks import check_lengths, labels_of, remark, summary_lines
from lstm_jax.tasks.speech_data import SpeechConfig, SpeechData
from lstm_jax.tasks.speech_features import Normalisation, spec_augment, speech_batches
from lstm_jax.tasks.speech_plot import spikes
from lstm_jax.tasks.transcribing import Heard, Search, heard, losses, nearest_transcripts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTTED = 3


@dataclasses.dataclass(frozen=True)
class Speech(Task):
    """Transcribes recordings with log-mel features, strided convolutions, LSTM layers and CTC.

    The best checkpoint has the lowest character error rate of greedy decoding on validation data.

    Raises:
      UserError: a file is missing or broken, a transcript has a character that does not occur in
        the training transcripts, or is too long for its recording.

    References:
      Awni Hannun et al., "Deep Speech: Scaling up end-to-end speech recognition",
      arXiv:1412.5567, 2014; Alex Graves, Navdeep Jaitly, "Towards End-to-End Speech Recognition
      with Recurrent Neural Networks", ICML 2014.
    """

    data: SpeechData
    model: SpeechConfig
    unit = "recordings"
    loss_unit = "nats a recording"
    splits = ("validation", "test")
    criterion = "CER"
    reads_files = True
    plot_formats = (".png", ".svg")

    def __post_init__(self) -> None:
        data, options = self.data, self.model
        count = len(data.speeds) * len(self._recordings["train"])
        fits = f"at most the {count} training recordings ({len(data.speeds)} speeds)"
        expect(data.batch_size <= count, "data.batch_size", fits, data.batch_size)
        for split, recordings in self._recordings.items():
            speed = max(data.speeds) if split == "train" else 1.0
            check_lengths(
                recordings, self._labels[split], split, data, speed, self.model.frames_per_step
            )
        _ = self.search  # raises an error if the word model would be too large
        options.check_layers(options.conv_features if options.convolutions else data.mel_bands)

    # ---- data ----

    @functools.cached_property
    def _recordings(self) -> Recordings:
        return self.data.read()

    def _texts(self, split: str) -> list[str]:
        return [recording.text for recording in self._recordings[split]]

    def metadata(self) -> dict[str, Any]:
        """``characters`` (character n is label n + 1), training ``transcripts``, ``scaling``."""
        train, texts, scaling = self._recordings["train"], self._texts("train"), {}
        if self.data.normalization == "training":
            scaling["features"] = scaling_of(np.concatenate(self._log_mels(train)))
        characters = "".join(sorted(set("".join(texts))))
        return {"characters": characters, "transcripts": texts, "scaling": scaling}

    def exported(self) -> dict[str, Any]:
        framing = {"sample_rate": self.data.sample_rate, **self.data.framing}
        return {name: self.known[name] for name in self.known if name != "transcripts"} | framing

    def notes(self) -> list[str]:
        return summary_lines(self._recordings, self.data.sample_rate)

    @functools.cached_property
    def _labels(self) -> dict[str, list[np.ndarray]]:
        characters, recordings = self.known["characters"], self._recordings
        return {split: labels_of(recordings[split], characters, split) for split in recordings}

    @functools.cached_property
    def fingerprint(self) -> str:
        recordings = [each for split in self._recordings.values() for each in split]
        texts = "\n".join(each.text for each in recordings).encode()
        return digest(np.frombuffer(texts, np.uint8), *(each.samples for each in recordings))

    def _log_mels(self, recordings: Sequence[Recording]) -> list[np.ndarray]:
        return self.data.log_mels([each.samples for each in recordings])

    @functools.cached_property
    def normalised(self) -> Normalisation:
        """Normalises the features of a recording."""
        return Normalisation(**self.known["scaling"].get("features", {}))

    def _features(self, recordings: Sequence[Recording]) -> list[np.ndarray]:
        return list(map(self.normalised, self._log_mels(recordings)))

    def batches(self, seed: int) -> grain.MapDataset:
        train, labels = self._recordings["train"], self._labels["train"]
        return speech_batches(train, labels, self.data, self.normalised, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> CTCModel:
        classes, options = 1 + len(self.known["characters"]), self.model
        layers = options.hidden_size, options.num_layers
        return CTCModel(self.data.mel_bands, classes, *layers, **options.details, rngs=rngs)

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        features, lengths = batch["features"], batch["lengths"]
        features = spec_augment(rngs.masks(), features, lengths, **self.data.masks)
        first = model.initial_carry(len(features))
        _, outputs = model(first, features=features, lengths=lengths, rngs=rngs)
        labels, sizes = batch["labels"], batch["label_lengths"]
        return ctc_losses(outputs["logits"], outputs["steps"], labels, sizes).mean(), carry

    # ---- metrics ----

    @functools.cached_property
    def search(self) -> Search:
        """The beam search, with the word model of the training transcripts."""
        return self.model.search(self.known["characters"], self.known["transcripts"])

    def _heard(self, model: Any, recordings: Sequence[Recording]) -> Heard:
        features, characters = self._features(recordings), self.known["characters"]
        return heard(model, features, self.model.frames_per_step, characters, self.search)

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats per recording; word and character error rates in percent.

        ``WER`` and ``CER`` refer to greedy decoding, ``beam WER`` and ``beam CER`` to the beam
        search with the word model.
        """
        found, texts = self._heard(model, self._recordings[split]), self._texts(split)
        rates = {f"beam {name}": x for name, x in error_rates(texts, found.beam).items()}
        loss = float(losses(found.logits, self._labels[split]).mean())
        return {"loss": loss, **error_rates(texts, found.greedy), **rates}

    def baselines(self, split: str) -> dict[str, Metrics]:
        """The transcript of the nearest training recording."""
        train, new = (self._features(self._recordings[each]) for each in ("train", split))
        found = nearest_transcripts(train, self._texts("train"), new)
        return {"nearest training recording": error_rates(self._texts(split), found)}

    def plots(self, model: Any) -> Plots:
        """Spectrograms of test recordings, with the probabilities of characters over time."""
        for n, recording in enumerate(self._recordings["test"][:PLOTTED]):
            yield f"spikes_{n}", self._plot(model, recording)

    # ---- new recordings ----

    def predict(self, model: Any, source: pathlib.Path | list[pathlib.Path] | None) -> Columns:
        """Transcripts of audio files, by beam search and by greedy decoding, with remarks."""
        files = source if isinstance(source, list) else [source]
        new = self._recordings["test"] if source is None else [self._read(x) for x in files if x]
        found = self._heard(model, new)
        return {
            "file": [each.name for each in new],
            "transcript": found.beam,
            "greedy": found.greedy,
            "remark": [remark(each.samples) for each in new],
        }

    def plot_file(self, model: Any, source: pathlib.Path) -> "Figure":
        """The spectrogram of a recording, with the probabilities of characters over time."""
        return self._plot(model, self._read(source))

    def _read(self, file: pathlib.Path) -> Recording:
        return Recording(str(file), "", "", read_samples(file, self.data.sample_rate))

    def _plot(self, model: Any, recording: Recording) -> "Figure":
        (features,), (logits,) = self._log_mels([recording]), self._heard(model, [recording]).logits
        characters, seconds = self.known["characters"], self.data.hop
        return spikes(features, logits, characters, seconds, self.model.frames_per_step * seconds)
