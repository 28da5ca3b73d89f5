"""Targets, configs and files in the README and metadata exist; test_docs.py runs its code."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_every_make_target_and_config_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for config in re.findall(r"configs/\w+\.toml", README):
        assert "task" in tomllib.loads((ROOT / config).read_text("utf-8"))


def test_constraints_and_metadata_name_no_address():
    for name in ("constraints.txt", "pyproject.toml"):
        assert "://" not in (ROOT / name).read_text("utf-8"), name
