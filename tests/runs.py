"""Short training runs by the command line."""

import pathlib

from lstm_jax.cli import main


def trained(folder: pathlib.Path, config: str) -> pathlib.Path:
    """Trains a config, which is written into ``folder``; returns the run's folder."""
    path, workdir = folder / "small.toml", folder / "run"
    path.write_text(config)
    assert main(["train", str(path), "--workdir", str(workdir)]) == 0
    return workdir
