"""Training: the loop, its optimizer, checkpoints and metrics."""

from lstm_jax.config import (
    Config,
    OptimizerConfig,
    TrainConfig,
    differing_keys,
    load_config,
    sections_for,
    write_config,
)
from lstm_jax.train.checkpoint import Checkpoints
from lstm_jax.train.devices import data_mesh
from lstm_jax.train.inspection import inspect_run
from lstm_jax.train.loop import Stopped, best_model, config_of, evaluate, train
from lstm_jax.train.metrics import read_metrics
from lstm_jax.train.optimizer import build_optimizer, build_schedule
from lstm_jax.train.predict import predict_run
from lstm_jax.train.report import Report
from lstm_jax.train.run import Run, load_run
from lstm_jax.train.step import TrainState, build_step, init_state
from lstm_jax.train.workdir import load_workdir

__all__ = [
    "Checkpoints",
    "Config",
    "OptimizerConfig",
    "Report",
    "Run",
    "Stopped",
    "TrainConfig",
    "TrainState",
    "best_model",
    "build_optimizer",
    "build_schedule",
    "config_of",
    "evaluate",
    "inspect_run",
    "load_config",
    "load_run",
    "predict_run",
    "read_metrics",
    "train",
    "write_config",
]
