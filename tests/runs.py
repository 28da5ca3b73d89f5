"""Small trainings through the command line, as a user starts them."""

import pathlib

from lstm_jax.cli import main


def trained(folder: pathlib.Path, config: str) -> pathlib.Path:
    """The folder of a run of this config, which is written into ``folder``."""
    path, workdir = folder / "small.toml", folder / "run"
    path.write_text(config)
    assert main(["train", str(path), "--workdir", str(workdir)]) == 0
    return workdir
