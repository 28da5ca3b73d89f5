"""The first argument of ``train`` and ``sweep``: a config or a folder to resume."""

import argparse
import pathlib
from collections.abc import Callable, Sequence

from lstm_jax.cli.keys import add_keys
from lstm_jax.cli.parser import Parser, to_path
from lstm_jax.cli.process import FLAGS, add_process_options
from lstm_jax.config import SHARED_SECTIONS, Config, load_config
from lstm_jax.errors import UserError


def add_source(
    parser: Parser,
    words: Sequence[str],
    held: str,
    load_folder: Callable[[pathlib.Path], Config] | None = None,
) -> None:
    """Adds the source, ``--workdir``, process options, and an option for each config key.

    The config's task determines the keys of [data] and [model]. Without a source, only the keys of
    the other sections are shown.

    Args:
      parser: receives the options.
      words: the unparsed command line.
      held: the kind of folder, ``"run"`` or ``"sweep"``.
      load_folder: loads the config from a folder; None if its keys cannot be changed.
    """
    parser.add_argument(
        "source",
        metavar=f"CONFIG|{held.upper()}",
        type=to_path,
        help=f"a config file (.toml), or the folder of a {held} to resume",
    )
    parser.add_argument(
        "--workdir",
        type=to_path,
        metavar="FOLDER",
        help=f"the {held}'s folder; a {held} in it is resumed (default: {held}s/ and the config's "
        "name)",
    )
    add_process_options(parser)
    source = find_source(words)
    if source is None:
        add_keys(parser, {name: kind() for name, kind in SHARED_SECTIONS.items()})
    elif load_folder or not source.is_dir():
        config = load_folder(source) if load_folder and source.is_dir() else load_config(source)
        sections = {name: getattr(config, name) for name in ("data", "model", *SHARED_SECTIONS)}
        add_keys(parser, sections, source.name)
        parser.set_defaults(config=config)


def workdir_of(options: argparse.Namespace, held: str) -> pathlib.Path:
    """The folder of a command: ``--workdir``, by default a folder named after the config.

    Raises:
      UserError: the source is a folder, and ``--workdir`` names another one.
    """
    source, workdir = options.source, options.workdir
    if not source.is_dir():
        return workdir or pathlib.Path(f"{held}s") / source.stem
    if workdir not in (None, source):
        raise UserError(f"--workdir: a resumed {held} stays in its own folder")
    return source


def find_source(words: Sequence[str]) -> pathlib.Path | None:
    """The config file or run folder in the words of a command line, before they are parsed.

    The full set of options is known only after the source has been read, so this function assumes
    that every option except the flags takes a value.

    >>> find_source(["--train.seed", "5", "--verbose", "runs/a"]).as_posix()
    'runs/a'
    """
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in FLAGS
        if not is_value and not word.startswith("-"):
            return pathlib.Path(word)
    return None
