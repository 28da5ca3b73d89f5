"""Translation of sentences from one language to another."""

import dataclasses
import functools
import hashlib
import itertools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lstm_jax.data import Tokenizer, bucketed_pairs, read_lines, translated, word_translations
from lstm_jax.data.tokens import END
from lstm_jax.errors import expect
from lstm_jax.models import EncoderDecoder
from lstm_jax.tasks import translating
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.plots import attention_map
from lstm_jax.tasks.translation_config import Pairs, ParallelData, TranslationConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SENTENCES_PLOTTED = 4


@dataclasses.dataclass(frozen=True)
class Translation(Task):
    """Translates sentences, which are split into subwords of one vocabulary for both languages.

    The best checkpoint has the highest BLEU on validation data.

    Raises:
      UserError: a file is missing or broken, two files do not match, or a sentence of the
        validation or test split is too long.

    References:
      Desmond Elliott et al., "Multi30K: Multilingual English-German Image Descriptions", 5th
      Workshop on Vision and Language, 2016 (task 1); Matt Post, "A Call for Clarity in Reporting
      BLEU Scores", WMT 2018 (sacreBLEU).
    """

    data: ParallelData
    model: TranslationConfig
    unit = "sentences"
    loss_unit = "nats a subword"
    criterion, maximize = "BLEU", True
    reads_text = True

    def __post_init__(self) -> None:
        for split in self.splits:
            self._check(self._pairs[split].source, f"{split} split")
        count, size = len(self._training.source), self.data.batch_size
        limit = f"pairs of at most data.max_tokens = {self.data.max_tokens} subwords"
        expect(count >= size, f"data.batch_size: {limit}", f"at least {size}", count)
        self.model.check()

    # ---- data ----

    @property
    def splits(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("validation", "test") if self.data.has_test else ("validation",)

    @functools.cached_property
    def _pairs(self) -> dict[str, Pairs]:
        return self.data.read()

    def metadata(self) -> dict[str, Any]:
        """``tokenizer``, trained on the training sentences of both languages."""
        lines, size = itertools.chain(*self._pairs["train"]), self.data.vocabulary_size
        tokenizer = Tokenizer.train(lines, kind="subwords", vocabulary_size=size)
        return {"tokenizer": tokenizer.to_json()}

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of both languages."""
        return Tokenizer.from_json(self.known["tokenizer"])

    @functools.cached_property
    def _training(self) -> Pairs:
        """The subwords of the training pairs, without those that are too long."""
        sides = map(self.tokenizer.encode, self._pairs["train"])
        limit = self.data.max_tokens
        fit = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) <= limit]
        return Pairs(*([pair[side] for pair in fit] for side in range(2)))

    def _check(self, lines: Sequence[str], name: str) -> list[np.ndarray]:
        """The subwords of sentences to translate; raises an error if one is empty or too long."""
        encoded, limit = self.tokenizer.encode(lines), self.data.max_tokens
        for number, (line, tokens) in enumerate(zip(lines, encoded, strict=True), 1):
            place = f"{name}: sentence {number}"
            expect(line.strip(), place, "words", repr(line))
            expected = f"at most data.max_tokens = {limit} subwords"
            expect(len(tokens) <= limit, place, expected, len(tokens))
        return encoded

    @functools.cached_property
    def fingerprint(self) -> str:
        lines = (side for pairs in self._pairs.values() for side in pairs)
        return hashlib.sha256("\n".join(itertools.chain(*lines)).encode()).hexdigest()

    def batches(self, seed: int) -> grain.MapDataset:
        source, target = ([np.append(row, END) for row in side] for side in self._training)
        return bucketed_pairs(source, target, self.data.batch_size, self.data.buckets, seed)

    # ---- model and loss ----

    def build(self, rngs: nnx.Rngs) -> EncoderDecoder:
        return self.model.build(len(self.tokenizer), rngs)

    def loss(self, model: Any, carry: Any, batch: Batch, rngs: nnx.Rngs) -> tuple[jax.Array, Any]:
        labels, lengths = batch["target"], batch["target_lengths"]
        first = model.encode(source=batch["source"], lengths=batch["source_lengths"], rngs=rngs)
        _, outputs = model(first, tokens=translating.begun(labels), rngs=rngs)
        logits, smoothing = outputs["logits"], self.model.label_smoothing
        losses = translating.smoothed_cross_entropy(logits, labels, smoothing)
        counts = jnp.arange(labels.shape[1]) < lengths[:, None]
        return jnp.where(counts, losses, 0).sum() / counts.sum(), carry

    # ---- metrics ----

    def evaluate(self, model: Any, split: str) -> Metrics:
        """``loss`` in nats and ``perplexity`` per subword, and ``BLEU`` of the best hypotheses."""
        source, target = map(self.tokenizer.encode, self._pairs[split])
        loss = float(translating.target_losses(model, source, target).mean())
        found = translating.translations(model, source, self.model.search)
        lines = [self.tokenizer.decode(beam[0].tokens) for beam in found]
        score, _ = translating.bleu(lines, self._pairs[split].target)
        return {"loss": loss, "perplexity": float(np.exp(loss)), "BLEU": score}

    def exported(self) -> dict[str, Any]:
        limit, search = self.data.max_tokens, self.model.search._asdict()
        return {**self.known, "max_tokens": limit, "search": search}

    def notes(self) -> list[str]:
        count = len(self._pairs["train"].source)
        left_out = count - len(self._training.source)
        return [
            f"BLEU: sacreBLEU {translating.bleu(['a'], ['a'])[1]}",
            f"data.max_tokens: {left_out:,} of {count:,} training pairs are longer and left out",
        ]

    @functools.cached_property
    def _words(self) -> dict[str, str]:
        return word_translations(*self._pairs["train"])

    def baselines(self, split: str) -> dict[str, Metrics]:
        source, target = self._pairs[split]
        words = translated(source, self._words)
        simple = {"the source itself": source, "word by word, IBM model 1": words}
        return {
            name: {"BLEU": translating.bleu(lines, target)[0]} for name, lines in simple.items()
        }

    def plots(self, model: Any) -> Plots:
        """The attention of the first sentences of the last split."""
        for n, line in enumerate(self._pairs[self.splits[-1]].source[:SENTENCES_PLOTTED]):
            yield f"attention_{n}", self.plot(model, line)

    # ---- new text ----

    def predict(self, model: Any, source: pathlib.Path | list[str] | None) -> Columns:
        """The translations of each sentence, the best first, and the scores that rank them."""
        if source is None:
            lines, name = self._pairs[self.splits[-1]].source, f"{self.splits[-1]} split"
        elif isinstance(source, list):
            lines, name = source, "--text"
        else:
            lines, name = read_lines(source), str(source)
        found = translating.translations(model, self._check(lines, name), self.model.search)
        rows = [(n, k, each) for n, beam in enumerate(found) for k, each in enumerate(beam, 1)]
        if not isinstance(source, list):  # for files, only the best ones: one row per line
            rows = [row for row in rows if row[1] == 1]
        return {
            "source": [lines[n] for n, _, _ in rows],
            "rank": [k for _, k, _ in rows],
            "translation": [self.tokenizer.decode(each.tokens) for _, _, each in rows],
            "score": np.array([each.score for _, _, each in rows], np.float32),
        }

    def plot(self, model: Any, text: str) -> "Figure":
        """The decoder's attention to source subwords for the best translation."""
        (source,) = self._check([text], "--text")
        target = translating.translations(model, [source], self.model.search)[0][0].tokens
        weights = translating.attention(model, np.append(source, END), target)
        sides = (translating.spelled(self.tokenizer, tokens) for tokens in (source, target))
        return attention_map(weights, *sides)
