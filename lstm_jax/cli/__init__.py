"""The command line: parsing and printing, no logic."""

from lstm_jax.cli.main import main

__all__ = ["main"]
