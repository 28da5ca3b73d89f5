"""What is learned: data, model, loss and metrics, one file a task."""

from lstm_jax.tasks.base import Samples, Task
from lstm_jax.tasks.classification import Classification
from lstm_jax.tasks.forecasting import Forecasting
from lstm_jax.tasks.next_character import NextCharacter
from lstm_jax.tasks.options import Section, option

TASKS: dict[str, type] = {
    "next_character": NextCharacter,
    "forecasting": Forecasting,
    "classification": Classification,
}
"""Task classes by the name that a config gives them as ``task``."""

__all__ = [
    "TASKS",
    "Classification",
    "Forecasting",
    "NextCharacter",
    "Samples",
    "Section",
    "Task",
    "option",
]
