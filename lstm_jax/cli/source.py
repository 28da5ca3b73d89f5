"""The first argument of ``train`` and ``sweep``, a config or a folder to resume, and its keys."""

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
    """Adds the source, ``--workdir``, options of the process, and one for each key of the config.

    The keys of [data] and [model] are known from the config's task; without a source only those
    of the other sections are shown.

    Args:
      parser: to which they are added.
      words: the command line, not yet parsed.
      held: what the folder holds, ``"run"`` or ``"sweep"``.
      load_folder: the config of what a folder holds; None where its keys cannot be changed.
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
    """The folder that a command works in: that of ``--workdir``, by default one for the config.

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

    Which options there are is known only when it has been read; here every option but a flag
    takes a value.

    >>> find_source(["--train.seed", "5", "--verbose", "runs/a"]).as_posix()
    'runs/a'
    """
    for before, word in zip(["", *words], words, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in FLAGS
        if not is_value and not word.startswith("-"):
            return pathlib.Path(word)
    return None
