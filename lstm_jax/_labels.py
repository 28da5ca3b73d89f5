"""Labels of plots, from names of columns, classes, files and runs."""


def label(name: object, longest: int = 60) -> str:
    r"""Escapes a name so that matplotlib shows it literally: a ``$`` does not start a formula.

    Control characters and bytes that are not UTF-8 become ``?``, and a long name is shortened.  A
    legend leaves out names that begin with ``_``; a space before them prevents it.

    Args:
      name: the name.
      longest: the largest number of characters to show.

    >>> label("$\\frac{$")
    '\\$\\frac{\\$'
    >>> label("a\nb"), label("x" * 100, longest=4), label("_a")
    ('a?b', 'xxx…', ' _a')
    """
    shown = "".join(c if c.isprintable() else "?" for c in str(name))
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    return (" " if shown.startswith("_") else "") + shown.replace("$", r"\$")
