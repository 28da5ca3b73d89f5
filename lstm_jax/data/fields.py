"""Fields of text files: numbers in a strict notation, and the rows of a CSV file."""

import collections
import csv
import io
import math
import pathlib
import re

from lstm_jax.data.text import read_text
from lstm_jax.errors import UserError

_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*", re.ASCII)


def is_number(field: str) -> bool:
    """Whether a field is a decimal number in ASCII digits, with or without an exponent.

    >>> [is_number(field) for field in ("-1.5e3", "1_000", "\u0661", "nan", "1,5")]
    [True, False, False, False, False]
    """
    return _NUMBER.fullmatch(field) is not None


def resembles_number(field: str) -> bool:
    """Whether a field is a number in any notation, including ``1,5``, ``1_000``, ``nan``, ``١``.

    >>> [resembles_number(field) for field in ("1,5", "inf", "12 m", "")]
    [True, True, False, False]
    """
    try:
        float(field.replace(",", "."))
    except ValueError:
        return False
    return True


def number(field: str, where: str) -> float:
    """The finite number that a field holds.

    Args:
      field: the text.
      where: its position in the file, for the message.

    Raises:
      UserError: the field is missing, is not a number, or exceeds the range of float64.

    >>> number("1_000", "sales.csv: line 2")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: sales.csv: line 2: expected a number, got '1_000'
    """
    value = float(field) if is_number(field) else math.nan
    if math.isfinite(value):
        return value
    got = "a missing value" if field.strip() in ("", "?") else repr(field)
    point = " with a decimal point" if _DECIMAL_COMMA.fullmatch(field) else ""
    raise UserError(f"{where}: expected a number{point}, got {got}")


def read_fields(path: str | pathlib.Path, encoding: str = "utf-8") -> tuple[list[list[str]], str]:
    """The lines of a CSV file as fields, and the separator.

    The first line holds the names of the columns.  The separator is the most frequent of comma,
    semicolon and tab in the first line. Fields can be quoted. In a file whose name ends in ``.tsv``
    they are separated by tabs, and quotation marks are ordinary characters (as IANA's
    text/tab-separated-values defines it).

    Raises:
      UserError: the file is missing or is not CSV, the first line contains numbers or a duplicate
        name, or the lines differ in their number of fields.

    >>> read_fields("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    return split_fields(read_text(path, encoding), path)


def split_fields(text: str, path: str | pathlib.Path) -> tuple[list[list[str]], str]:
    """The lines of CSV content as fields, and the separator, as in :func:`read_fields`.

    Args:
      text: the content of the file.
      path: the file, for messages.

    >>> split_fields("day;sales\\n1;2,5\\n", "a.csv")
    ([['day', 'sales'], ['1', '2,5']], ';')
    """
    tabs = pathlib.Path(path).suffix == ".tsv"
    unquoted = re.sub(r'"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0])
    separator = "\t" if tabs else max(";\t,", key=unquoted.count)
    quoting = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    try:
        lines = io.StringIO(text, newline="")
        rows = list(csv.reader(lines, delimiter=separator, quoting=quoting, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file: {error}") from error
    while rows and not rows[-1]:  # blank lines at the end
        rows.pop()
    _check_header(rows[0], path)
    for line, row in enumerate(rows[1:], start=2):
        if len(row) != len(rows[0]):
            raise UserError(
                f"{path}: line {line}: expected {len(rows[0])} fields as in the header, "
                f"got {len(row)}"
            )
    return rows, separator


def read_rows(path: str | pathlib.Path) -> list[list[str]]:
    """The lines of a CSV file of numbers as fields, as in :func:`read_fields`.

    Numbers in a file with semicolons may have a decimal comma, which is converted to a point.

    Raises:
      UserError: as in :func:`read_fields`, or decimal commas and points are mixed.

    >>> read_rows("/no/such/file.csv")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.csv: no such file
    """
    rows, separator = read_fields(path)
    if separator == ";" and any(_DECIMAL_COMMA.fullmatch(f) for row in rows[1:] for f in row):
        numbered = enumerate(rows[1:], start=2)
        return [rows[0], *(_with_points(row, f"{path}: line {line}") for line, row in numbered)]
    return rows


def _with_points(row: list[str], where: str) -> list[str]:
    for field in row:
        if is_number(field) and "." in field:
            raise UserError(f"{where}: expected a decimal comma as in other lines, got {field!r}")
    return [f.replace(",", ".") if _DECIMAL_COMMA.fullmatch(f) else f for f in row]


def _check_header(names: list[str], path: str | pathlib.Path) -> None:
    """Raises an error if the first line looks like data or names a column twice.

    Names may be numbers (``date,2019,2020``), but not after a first field with a digit.
    """
    first, *others = names or [""]
    numbers = [name for name in others if is_number(name)]
    fractions = [name for name in numbers if "." in name]
    has_digit = any(character.isdigit() for character in first)
    if fractions or (has_digit and numbers) or (is_number(first) and not others):
        raise UserError(
            f"{path}: line 1: expected a header with the names of the columns, got "
            f"{', '.join(names)[:80]}"
        )
    for name, count in collections.Counter(names).items():
        if count > 1:
            raise UserError(
                f"{path}: line 1: expected different names of columns, got two {name!r}"
            )
