"""Config keys as options: ``--SECTION.KEY VALUE``."""

import argparse
import dataclasses
from collections.abc import Mapping

from lstm_jax.cli.parser import meaning, metavar, shown
from lstm_jax.config import Section
from lstm_jax.errors import UserError


def add_keys(
    parser: argparse.ArgumentParser, sections: Mapping[str, Section], file: str = ""
) -> None:
    """Adds an option for every key of the given sections.

    Args:
      parser: receives the options, with one help group per section.
      sections: the sections by name, with the values that the help shows.
      file: the source of these values; empty for defaults.
    """
    for name, section in sections.items():
        group = parser.add_argument_group(f"[{name}]")
        defaults = type(section)()
        for field in dataclasses.fields(section):
            value, default = (shown(getattr(each, field.name)) for each in (section, defaults))
            values = f"default: {default}"
            if file and value != default:
                values = f"{value} in {file}, {values}"
            group.add_argument(
                f"--{name}.{field.name.replace('_', '-')}",
                dest=f"{name}.{field.name}",
                default=argparse.SUPPRESS,
                metavar=metavar(field),
                help=meaning(field, values),
            )


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The values given for config keys, as strings by dotted key."""
    texts = {name: text for name, text in vars(options).items() if "." in name}
    for name, text in texts.items():
        if not isinstance(text, str):  # argparse drops the value of --SECTION.KEY=--
            raise UserError(f"--{name.replace('_', '-')}: expected a value, got --")
    return texts
