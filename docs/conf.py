"""Settings of the documentation site: ``make docs`` builds it into docs/_build.

The source folder is the root of the repository, so links between pages, notebooks, configs and code
are the same in the site and in the repository.
"""

import inspect
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

project = METADATA["name"]
author = METADATA["authors"][0]["name"]
copyright = author
root_doc = "docs/index"
include_patterns = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/**", "notebooks/*.ipynb"]
exclude_patterns = [".*", "docs/_build", "runs"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

# Pages and notebooks. Notebooks hold their outputs; tests run them.
nb_execution_mode = "off"
myst_heading_anchors = 4
myst_links_external_new_tab = True
highlight_language = "none"
toc_object_entries_show_parents = "hide"
autosummary_generate = False

# The API reference. A part's ``__all__`` lists its public names.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
python_maximum_signature_line_length = 90
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "lstm_jax"
html_extra_path = ["site"]
html_copy_source = False
html_show_sphinx = False


def without_docstring_of_type(app, what, name, value, options, lines) -> None:
    """Removes the docstring of a constant, for which autodoc would show that of its type."""
    if what == "data" and lines[:1] == (type(value).__doc__ or "").splitlines()[:1]:
        lines.clear()


class Shown:
    """A default value in a signature: functions are shown by name."""

    def __init__(self, value):
        self.text = getattr(value, "__name__", None) or repr(value)

    def __repr__(self) -> str:
        return self.text


def class_signature(app, what, name, value, options, signature, returns):
    """The options of a class with their defaults; the docstring of the class explains them."""
    if what != "class":
        return None
    try:
        found = inspect.signature(value)
        if all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in found.parameters.values()):
            found = inspect.signature(value.__init__)
    except (TypeError, ValueError):
        return None
    parameters = [
        p.replace(annotation=p.empty, default=p.empty if p.default is p.empty else Shown(p.default))
        for p in found.parameters.values()
        if p.name != "self"
    ]
    return str(found.replace(parameters=parameters, return_annotation=found.empty)), ""


def add_other_pages(app, name, source) -> None:
    """Adds the pages that the contents do not list as applications."""
    if name == root_doc:
        listed = set(source[0].splitlines())
        others = sorted({page.stem for page in ROOT.glob("docs/*.md")} - listed - {"index"})
        source[0] = source[0].replace("% others", "\n".join(others))


def setup(app) -> None:
    """Registers what this file adds to Sphinx."""
    app.connect("source-read", add_other_pages)
    app.connect("autodoc-process-signature", class_signature)
    app.connect("autodoc-process-docstring", without_docstring_of_type)
