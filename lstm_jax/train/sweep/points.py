"""The points of a sweep: one for each combination of config values."""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lstm_jax.config import Config, config_from
from lstm_jax.errors import UserError

SEED = "train.seed"
MOST_POINTS = 1000
NOT_SWEPT = {
    "train.num_devices": "each point is trained on one device",
    **dict.fromkeys(
        ("train.log_every", "train.checkpoint_every", "train.keep_checkpoints"),
        "it does not change what is learned",
    ),
    **dict.fromkeys(
        ("train.sample_prompt", "train.sample_length", "train.sample_temperature"),
        "a sweep writes no samples",
    ),
}
"""Keys that a sweep cannot vary, with the reason."""

Axes = Mapping[str, Sequence[Any]]


@dataclasses.dataclass
class Point:
    """One combination of a sweep.

    Attributes:
      folder: the folder of its run.
      values: the values of the swept keys.
      config: its complete config.
      results: metrics of its best checkpoint by split; None until it is finished.
      failure: the reason why a finished point has no results: its loss was not finite.
    """

    folder: pathlib.Path
    values: dict[str, Any]
    config: Config
    results: dict[str, Any] | None = None
    failure: str | None = None

    @property
    def finished(self) -> bool:
        """Whether it needs no further training."""
        return self.results is not None or self.failure is not None

    @property
    def name(self) -> str:
        """The name of its folder, and its values."""
        return f"{self.folder.name} {', '.join(f'{k} {v}' for k, v in self.values.items())}".strip()


def swept_axes(config: Config, texts: Mapping[str, str]) -> tuple[Config, dict[str, list[Any]]]:
    """The values to sweep, from strings such as ``{"train.seed": "0,1,2"}``.

    Commas in brackets belong to a value.  A key with one value replaces the config's.

    Args:
      config: the config that the points have in common.
      texts: comma-separated values by dotted key.

    Returns:
      The config with single values replaced, and the values of each swept key.

    Raises:
      UserError: a key is unknown or cannot be swept, or a value is impossible or given twice.

    >>> config = config_from({"task": "classification"}, "example", {})
    >>> swept_axes(config, {"train.seed": "0,1", "model.cell": "gru,lstm(forget_bias=2.0)"})[1]
    {'train.seed': [0, 1], 'model.cell': ['gru', 'lstm(forget_bias=2.0)']}
    """
    axes: dict[str, list[Any]] = {}
    for key, text in texts.items():
        flag = "--" + key.replace("_", "-")
        words = split_values(text)
        one = [config_from(config.as_dict(), flag, {key: word}) for word in words]
        values = [_value(each, key) for each in one]
        if len(values) > 1 and key in NOT_SWEPT:
            raise UserError(f"{flag}: cannot be swept ({NOT_SWEPT[key]}); give one value")
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{flag}: expected different values, got {value!r} twice")
        if len(values) == 1:
            config = one[0]
        else:
            axes[key] = values
    if not axes:
        raise UserError("expected a key with several values, such as --train.seed 0,1,2")
    return config, axes


def split_values(text: str) -> list[str]:
    """The values in a comma-separated string; commas in brackets belong to a value.

    >>> split_values("gru, zoneout(lstm, cell_rate=0.2)")
    ['gru', 'zoneout(lstm, cell_rate=0.2)']
    """
    values, depth = [""], 0
    for character in text:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _value(config: Config, key: str) -> Any:
    section, _, field = key.partition(".")
    return getattr(getattr(config, section), field)


def points_of(config: Config, axes: Axes, folder: pathlib.Path) -> list[Point]:
    """A point for each combination of values; the last key varies fastest.

    Raises:
      UserError: there are more than ``MOST_POINTS``, or a value is impossible.
    """
    count = math.prod(map(len, axes.values()))
    if count > MOST_POINTS:
        sizes = " x ".join(str(len(values)) for values in axes.values())
        raise UserError(f"expected at most {MOST_POINTS} points, got {sizes} = {count}")
    digits, points = len(str(count - 1)), []
    for number, combination in enumerate(itertools.product(*axes.values())):
        plain = config.as_dict()
        plain["train"]["num_devices"] = 1
        for key, value in zip(axes, combination, strict=True):
            section, _, field = key.partition(".")
            plain[section][field] = value
        own = config_from(plain, "sweep", {})
        at = folder / "points" / f"{number:0{digits}}"
        points.append(Point(at, {key: _value(own, key) for key in axes}, own))
    return points
