"""Fixtures for tests of commands on trained runs."""

import pathlib

import numpy as np
import pytest

from lstm_jax.cli import main

CONFIG = """
task = "next_character"
[data]
text = "{folder}/text.txt"
lanes = 2
window = 4
[model]
hidden_size = 6
num_layers = 2
embedding_size = 4
[train]
num_steps = 1
sample_length = 0
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A small character model after one step."""
    folder = tmp_path_factory.mktemp("trained")
    words = np.random.default_rng(0).choice(["the", "quick", "brown", "fox\n"], 100)
    (folder / "text.txt").write_text(" ".join(words), "utf-8")
    (folder / "tiny.toml").write_text(CONFIG.format(folder=folder), "utf-8")
    assert main(["train", str(folder / "tiny.toml"), "--workdir", str(folder / "run")]) == 0
    return folder / "run"
