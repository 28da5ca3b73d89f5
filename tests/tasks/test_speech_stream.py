"""Options that a stream needs; tests/tasks/test_speech.py compares transcripts with files."""

import dataclasses
from types import SimpleNamespace

import pytest

from lstm_jax.errors import UserError
from lstm_jax.tasks.speech_data import SpeechConfig, SpeechData
from lstm_jax.tasks.speech_stream import SpeechStream


def test_models_of_whole_recordings():
    task = SimpleNamespace(data=SpeechData("an4"), model=SpeechConfig())
    with pytest.raises(UserError, match=r"model\.bidirectional: expected false for a stream"):
        SpeechStream(task, None)
    task.model = dataclasses.replace(task.model, bidirectional=False)
    with pytest.raises(UserError, match=r"data\.normalization: expected training for a stream"):
        SpeechStream(task, None)
