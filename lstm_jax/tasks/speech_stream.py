"""Streaming speech recognition: the transcript of samples as they arrive."""

from typing import Any

import numpy as np

from lstm_jax.data.log_mel import frame_count, log_mel
from lstm_jax.errors import UserError
from lstm_jax.tasks.ctc import BLANK

STEPS = 4  # of the model per call


class SpeechStream:
    """Transcribes samples chunk by chunk, by greedy decoding.

    The characters are those of :meth:`lstm_jax.tasks.Speech.predict` for the whole recording, in
    its column ``greedy``.  Each call of the model reads four of its steps, which are 160 ms with
    two strides of 2 and frames every 10 ms.  This is the largest delay of a character.

    Args:
      task: a task of speech with ``model.bidirectional = false`` and ``data.normalization =
        "training"``: neither may depend on future samples.
      model: its trained model.

    Raises:
      UserError: the task reads whole recordings.

    Example:
      >>> from lstm_jax.train import load_run
      >>> def transcribe(folder, chunks):  # the folder of a run; arrays of samples
      ...     run = load_run(folder)
      ...     stream = SpeechStream(run.task, run.model)
      ...     for samples in chunks:
      ...         print(stream.feed(samples), end="", flush=True)
      ...     print(stream.finish())
    """

    def __init__(self, task: Any, model: Any):
        if task.model.bidirectional:
            raise UserError("model.bidirectional: expected false for a stream, got true")
        if task.data.normalization != "training":
            found = task.data.normalization
            raise UserError(f"data.normalization: expected training for a stream, got {found}")
        self._task, self._model = task, model
        self._frames = STEPS * task.model.frames_per_step  # per call
        self._carry, self._last = model.initial_carry(1), BLANK
        self._samples, self._begun = np.zeros(0, np.float32), False

    def feed(self, samples: np.ndarray) -> str:
        """The characters that are certain now.

        Args:
          samples: the next samples, float32 ``[N]`` of any length, ``data.sample_rate`` per second.
        """
        self._samples = np.concatenate([self._samples, np.asarray(samples, np.float32)])
        window, hop = (self._task.data.framing[name] for name in ("window", "hop"))
        text = ""
        while len(self._samples) >= (self._frames - 1) * hop + window:
            text += self._read(self._frames)
            self._samples, self._begun = self._samples[self._frames * hop :], True
        return text

    def finish(self) -> str:
        """The characters of the remaining samples; ends the stream."""
        window, hop = (self._task.data.framing[name] for name in ("window", "hop"))
        left = len(self._samples)
        count = 0 if self._begun and left < window else frame_count(left, window, hop)
        text = self._read(count)
        self._samples = np.zeros(0, np.float32)
        return text

    def _read(self, count: int) -> str:
        """The characters of a number of frames."""
        data = self._task.data
        window, hop = (data.framing[name] for name in ("window", "hop"))
        size = (self._frames - 1) * hop + window
        samples = np.pad(self._samples[:size], (0, max(0, size - len(self._samples))))
        frames = log_mel(
            samples, rate=data.sample_rate, bands=data.mel_bands, window=window, hop=hop
        )
        features = self._task.normalised(np.asarray(frames))[None]
        lengths = np.array([count], np.int32)
        self._carry, outputs = self._model(self._carry, features=features, lengths=lengths)
        steps = int(outputs["steps"][0])
        text = ""
        for label in np.asarray(outputs["logits"])[0, :steps].argmax(-1).tolist():
            if label not in (BLANK, self._last):
                text += self._task.known["characters"][label - 1]
            self._last = label
        return text
