"""The config of a run: TOML files, read into frozen typed dataclasses."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Any

from lstm_jax._files import write_content
from lstm_jax.config.options import (
    LONGEST_SAMPLE,
    Section,
    nearest,
    option,
    read,
    section_from,
    sections_of,
)
from lstm_jax.config.tasks import task_class
from lstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """Section ``[optimizer]``; arguments have the names used in optax."""

    name: str = option("adamw", "update rule", choices=("adamw", "adam", "sgd", "rmsprop"))
    learning_rate: float = option(2e-3, "step size, at the peak of the schedule", above=0)
    schedule: str = option(
        "cosine", "learning rate over time",
        choices=("constant", "cosine", "exponential", "inverse_sqrt"),
    )  # fmt: skip
    warmup_steps: int = option(100, "steps of linear warm-up from zero", at_least=0)
    alpha: float = option(
        0.01, "cosine: final rate as a fraction of the peak", at_least=0, at_most=1
    )
    transition_steps: int = option(1000, "exponential: steps to one decay_rate", at_least=1)
    decay_rate: float = option(
        0.5, "exponential: factor every transition_steps", above=0, at_most=1
    )
    b1: float = option(0.9, "adam: decay of the mean gradient", at_least=0, below=1)
    b2: float = option(0.99, "adam: decay of the mean squared gradient", at_least=0, below=1)
    eps: float = option(1e-8, "adam, rmsprop: added to the root", above=0)
    decay: float = option(0.9, "rmsprop: decay of the mean squared gradient", at_least=0, below=1)
    momentum: float = option(0.0, "sgd, rmsprop: decay of the velocity", at_least=0, below=1)
    weight_decay: float = option(0.01, "adamw: weight decay of matrices", at_least=0)
    max_norm: float = option(
        1.0, "gradients are clipped to this global norm; 0: no clipping", at_least=0
    )
    ema_decay: float = option(
        0.0,
        "decay of the moving average of parameters that is evaluated; 0: no average",
        at_least=0,
        below=1,
    )
    average_patience: int = option(
        0, "evaluations without a lower validation loss before parameters are averaged; 0: never",
        at_least=0,
    )  # fmt: skip

    @property
    def averages(self) -> bool:
        """Whether a mean of parameters is evaluated."""
        return self.ema_decay > 0 or self.average_patience > 0


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """Section ``[train]``."""

    num_steps: int = option(1000, "training steps", at_least=1)
    log_every: int = option(50, "steps from one line of training metrics to the next", at_least=1)
    eval_every: int = option(500, "steps from one evaluation to the next", at_least=1)
    patience: int = option(
        0, "evaluations without a new best checkpoint after which training stops; 0: never",
        at_least=0,
    )  # fmt: skip
    accumulate: int = option(
        1, "batches whose gradients are averaged for one training step",
        at_least=1, at_most=10_000,
    )  # fmt: skip
    init_from: str = option(
        "", "folder of a run whose parameters training starts from", path_or=("",)
    )
    checkpoint_every: int = option(500, "steps from one checkpoint to the next", at_least=1)
    keep_checkpoints: int = option(
        2, "number of latest checkpoints that are kept besides the best", at_least=1
    )
    seed: int = option(
        0,
        "seed of the parameters, dropout and the order of the data",
        at_least=0,
        at_most=2**32 - 1,
    )
    tensorboard: bool = option(False, "also write metrics for TensorBoard; needs tensorboardX")
    num_devices: int = option(0, "devices that share a batch; 0: all that divide it", at_least=0)
    sample_prompt: str = option("", "prompt of the text generated at the end")
    sample_length: int = option(
        600, "length of the text generated at the end", at_least=0, at_most=LONGEST_SAMPLE
    )
    sample_temperature: float = option(
        0.6, "temperature of that text: below 1 more likely, above 1 more diverse", at_least=0
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A complete run: the task, and the sections of the task, the optimizer and the loop.

    Raises:
      UserError: two values of the optimizer section exclude each other.
    """

    task: str
    data: Section = dataclasses.field(default_factory=Section)
    model: Section = dataclasses.field(default_factory=Section)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        patience, decay = self.optimizer.average_patience, self.optimizer.ema_decay
        if patience and decay:
            name = "optimizer.average_patience"
            raise UserError(f"{name}: expected 0 with optimizer.ema_decay {decay}, got {patience}")
        if self.optimizer.schedule == "inverse_sqrt" and self.optimizer.warmup_steps == 0:
            name = "optimizer.warmup_steps"
            raise UserError(
                f'{name}: expected at least 1 with optimizer.schedule "inverse_sqrt", got 0'
            )

    def build_task(self, known: Mapping[str, Any] | None = None) -> Any:
        """The task.

        Args:
          known: the task's metadata, as stored in a run's folder; with them, the task reads data
            only when it needs them. Without metadata, it reads and checks its data.
        """
        kind, sections = task_class(self.task), {"data": self.data, "model": self.model}
        return kind(**sections) if known is None else kind.restored(known, **sections)  # type: ignore[attr-defined]

    def as_dict(self) -> dict[str, Any]:
        """The config as plain values, as in a TOML file."""
        return dataclasses.asdict(self)


SHARED_SECTIONS: dict[str, type[Section]] = {"optimizer": OptimizerConfig, "train": TrainConfig}


def sections_for(task: str, source: str = "task") -> dict[str, type[Section]]:
    """The sections of a config for a task, by name."""
    return {**sections_of(task_class(task, source)), **SHARED_SECTIONS}


def load_config(path: str | pathlib.Path, overrides: Mapping[str, str] | None = None) -> Config:
    """The config in a TOML file, with overrides.

    Args:
      path: the file.  Relative paths in it are resolved from its folder.
      overrides: strings by dotted key, as from a command line: ``{"train.num_steps": "500"}``.
        Relative paths in them are resolved from the current folder.

    Raises:
      UserError: the file is missing or not TOML, a key is unknown (the message names the nearest
        known one), or a value has the wrong type or is invalid.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.toml"
      >>> _ = path.write_text('task = "next_character"\\n[train]\\nnum_steps = 10\\n')
      >>> load_config(path, {"train.seed": "3"}).train.seed
      3
      >>> load_config(path, {"train.num_stepz": "3"})
      Traceback (most recent call last):
      lstm_jax.errors.UserError: --train.num-stepz: unknown key train.num_stepz; did you mean ...
    """
    path = pathlib.Path(path)
    try:
        # Some editors put a byte-order mark at the start of a file.
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise UserError(f"{path}: no such config file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a TOML file in UTF-8, got other bytes") from error
    except (ValueError, RecursionError) as error:  # also an integer with thousands of digits
        raise UserError(f"{path}: not a TOML file: {error}") from error
    return config_from(values, str(path), overrides or {}, path.parent)


def config_from(
    values: Mapping[str, Any],
    source: str,
    overrides: Mapping[str, str],
    folder: pathlib.Path = pathlib.Path(),
) -> Config:
    """The config in a mapping of sections; otherwise as :func:`load_config`."""
    task: Any = values.get("task")
    kinds = sections_for(task, source)
    for name, section in values.items():
        if name != "task" and name not in kinds:
            raise UserError(f"{source}: unknown key {name}{nearest(name, ['task', *kinds])}")
        if name != "task" and not isinstance(section, Mapping):
            raise UserError(f"{source}: {name}: expected a section [{name}], got {section!r}")
    sections: dict[str, Any] = {
        name: section_from(kind, values.get(name, {}), name, source, folder)
        for name, kind in kinds.items()
    }
    for key, text in overrides.items():
        name, _, field = key.partition(".")
        flag = "--" + key.replace("_", "-")
        fields = {f.name: f for f in dataclasses.fields(kinds[name])} if name in kinds else {}
        if field not in fields:
            known = [f"{n}.{f.name}" for n, kind in kinds.items() for f in dataclasses.fields(kind)]
            close = nearest(key, known) if nearest(key, known).startswith("; did") else ""
            raise UserError(f"{flag}: unknown key {key}{close}")
        try:
            change = read(fields[field], text)
        except UserError as error:
            raise UserError(f"{flag}: {error}") from error
        changed = {**dataclasses.asdict(sections[name]), field: change}
        sections[name] = section_from(kinds[name], changed, name, flag)
    return Config(task=task, **sections)


def write_config(config: Config, path: pathlib.Path) -> None:
    """Writes the complete config, including defaults, to a TOML file, atomically."""
    import tomli_w

    write_content(path, tomli_w.dumps(config.as_dict()))


def differing_keys(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two configs differ, with the two values."""

    def flat(config: Config) -> dict[str, Any]:
        plain = config.as_dict()
        keys = {"task": plain.pop("task")}
        for name, section in plain.items():
            keys |= {f"{name}.{key}": value for key, value in section.items()}
        return keys

    a, b = flat(one), flat(other)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}
