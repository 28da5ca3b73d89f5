"""What is learned: data, loss and metrics, one file per task.

The built-in tasks are in ``lstm_jax.config.TASKS``; :func:`lstm_jax.config.task_class` loads one.
"""

from lstm_jax.config import TASKS, Section, option
from lstm_jax.tasks.action import ActionRecognition
from lstm_jax.tasks.base import Batch, Columns, Metrics, Plots, Task
from lstm_jax.tasks.classification import Classification
from lstm_jax.tasks.forecasting import Forecasting
from lstm_jax.tasks.handwriting import Handwriting
from lstm_jax.tasks.handwriting_synthesis import SynthesisTask
from lstm_jax.tasks.music import Music
from lstm_jax.tasks.next_character import NextCharacter
from lstm_jax.tasks.protocols import File, Generates, PlotsFile, PlotsText, Predicts
from lstm_jax.tasks.speech import Speech
from lstm_jax.tasks.text_classification import TextClassification
from lstm_jax.tasks.time_series import TimeSeries
from lstm_jax.tasks.translation import Translation
from lstm_jax.tasks.video import VideoForecasting
from lstm_jax.tasks.video_classification import VideoClassification

__all__ = [
    "TASKS",
    "ActionRecognition",
    "Batch",
    "Classification",
    "Columns",
    "File",
    "Forecasting",
    "Generates",
    "Handwriting",
    "Metrics",
    "Music",
    "NextCharacter",
    "Plots",
    "PlotsFile",
    "PlotsText",
    "Predicts",
    "Section",
    "Speech",
    "SynthesisTask",
    "Task",
    "TextClassification",
    "TimeSeries",
    "Translation",
    "VideoClassification",
    "VideoForecasting",
    "option",
]
