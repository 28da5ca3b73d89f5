"""Configs of runs: sections, options with ranges and meanings, reading of TOML files."""

import importlib
from typing import TYPE_CHECKING, Any

from lstm_jax.config.options import (
    LARGEST_SIZE,
    LONGEST_SAMPLE,
    Section,
    expectation,
    nearest,
    option,
    read,
    sections_of,
)
from lstm_jax.config.run import (
    SHARED_SECTIONS,
    Config,
    OptimizerConfig,
    TrainConfig,
    config_from,
    differing_keys,
    load_config,
    sections_for,
    write_config,
)
from lstm_jax.config.tasks import TASKS, task_class, task_name

if TYPE_CHECKING:
    from lstm_jax.config.recurrent import RecurrentConfig, cell_factory

__all__ = [
    "TASKS",
    "Config",
    "OptimizerConfig",
    "RecurrentConfig",
    "Section",
    "TrainConfig",
    "cell_factory",
    "config_from",
    "differing_keys",
    "load_config",
    "option",
    "sections_for",
    "task_class",
    "task_name",
    "write_config",
]


def __getattr__(name: str) -> Any:
    """Imports the description of recurrent layers, which imports jax, on first use (PEP 562)."""
    if name in ("RecurrentConfig", "cell_factory"):
        return getattr(importlib.import_module("lstm_jax.config.recurrent"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
