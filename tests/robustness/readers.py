"""Independent readers of text files, slow and simple."""

import numpy as np

NUMBER = set("+-.0123456789eE \t")


def csv_records(text, separator):
    """The records of a CSV file, read character by character (RFC 4180); None if it is not CSV."""
    records, fields, field, state = [], [], "", "start"
    for character in text + "\n":
        if state == "quoted":
            if character == '"':
                state = "quote"
            else:
                field += character
        elif character == '"' and state == "quote":
            field, state = field + '"', "quoted"
        elif character == '"' and state == "start":
            state = "quoted"
        elif character in (separator, "\n", "\r"):
            fields.append(field)
            field, state = "", "start"
            if character != separator:
                records.append(fields)
                fields = []
        elif state == "quote":
            return None
        else:
            field, state = field + character, "plain"
    return None if state == "quoted" else [record for record in records if record != [""]]


def value_of(field, comma):
    """The number in a field of ASCII digits, converted by Python."""
    field = field.replace(",", ".") if comma else field
    assert set(field) <= NUMBER | set("\n\r\v\f"), f"{field!r} is not in plain digits"
    return float(field)


def same_column(fields, values, comma):
    return np.array_equal([value_of(field, comma) for field in fields], values)


def text_of(path):
    return path.read_bytes().decode("utf-8").removeprefix("\ufeff")


def in_some_dialect(path, agrees):
    """Asserts that the file has the given content with one of the separators."""
    reasons = []
    for separator in ",;\t":
        records = csv_records(text_of(path), separator)
        for comma in (False, True)[: 1 + (separator == ";")]:
            try:
                assert records is not None, "not CSV"
                agrees(records, comma)
            except (AssertionError, ValueError, LookupError) as error:
                reasons.append(f"{separator!r}: {error!r}")
            else:
                return
    raise AssertionError("; ".join(reasons))
