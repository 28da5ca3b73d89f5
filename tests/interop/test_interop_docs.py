"""The recipes of docs/interop.md run, each where its library is installed."""

import os
import re

import pytest

from tests.test_docs import ROOT, run_block

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported anywhere
PAGE = (ROOT / "docs" / "interop.md").read_text("utf-8")
PEERS = ("torch", "keras", "haiku", "equinox", "onnx", "onnxruntime")
SECTIONS = dict(
    zip(
        ["Beginning", *re.findall(r"^## (.*)$", PAGE, re.MULTILINE)],
        re.split(r"^## .*$", PAGE, flags=re.MULTILINE),
        strict=True,
    )
)


def blocks(section):
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("section", [name for name in SECTIONS if blocks(name)])
def test_a_recipe_runs(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": section}
    for block in blocks(section):
        assert "print(" in block
        for name in PEERS:
            if re.search(rf"^import .*\b{name}\b|^from {name}\b", block, re.MULTILINE):
                pytest.importorskip(name, reason=f"needs the peer {name}")
        run_block(block, "docs/interop.md", namespace, capsys)
