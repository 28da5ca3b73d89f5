"""What the README shows runs as it stands there."""

import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_of_the_readme_prints_what_its_comments_say(block, capsys):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    expected = re.findall(r"print\(.*\)\s+# (.*)", block)
    assert expected
    assert capsys.readouterr().out.splitlines() == expected


def test_every_file_that_the_readme_links_to_exists():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_make_target_and_config_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for config in re.findall(r"configs/\w+\.toml", README):
        assert "task" in tomllib.loads((ROOT / config).read_text("utf-8"))


def test_constraints_and_metadata_name_no_address():
    for name in ("constraints.txt", "pyproject.toml"):
        assert "://" not in (ROOT / name).read_text("utf-8"), name
