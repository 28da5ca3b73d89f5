"""Config sections: types, ranges, and messages that say what was expected."""

import dataclasses
import math
import pathlib

import pytest

from lstm_jax.cli.generate import Sampling
from lstm_jax.config import TASKS, Section, option, sections_for, task_class
from lstm_jax.config.options import expectation, nearest, parse, read, section_from, sections_of
from lstm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example(Section):
    count: int = option(3, "an integer", at_least=1, at_most=9)
    share: float = option(0.5, "a number", above=0, below=1)
    scale: float = option(1.0, "a number without limits")
    flag: bool = option(False, "a flag")
    name: str = option("x", "a text")
    mode: str = option("fast", "a choice", choices=("fast", "slow"))


FIELDS = {field.name: field for field in dataclasses.fields(Example)}
GOOD = [
    ("count", 1), ("count", 9), ("share", 0.001), ("share", 0.999), ("scale", -1e30),
    ("flag", True), ("name", ""), ("mode", "slow"),
]  # fmt: skip
BAD = [
    ("count", 0, "an integer of at least 1 and at most 9", "0"),
    ("count", 10, "an integer of at least 1 and at most 9", "10"),
    ("count", 3.0, "an integer of at least 1 and at most 9", "3.0"),
    ("count", True, "an integer of at least 1 and at most 9", "True"),
    ("count", "3", "an integer of at least 1 and at most 9", "'3'"),
    ("share", 0.0, "a number above 0 and below 1", "0.0"),
    ("share", 1.0, "a number above 0 and below 1", "1.0"),
    ("share", 0, "a number above 0 and below 1", "0"),
    ("share", 1, "a number above 0 and below 1", "1"),
    ("share", -3, "a number above 0 and below 1", "-3"),
    ("share", math.nan, "a number above 0 and below 1", "nan"),
    ("scale", math.nan, "a number", "nan"),
    ("scale", math.inf, "a number", "inf"),
    ("scale", -math.inf, "a number", "-inf"),
    ("scale", True, "a number", "True"),
    ("scale", "1.0", "a number", "'1.0'"),
    ("scale", None, "a number", "None"),
    ("flag", 1, "true or false", "1"),
    ("flag", "true", "true or false", "'true'"),
    ("name", 5, "a string", "5"),
    ("name", ["a"], "a string", "['a']"),
    ("mode", "medium", "one of fast, slow", "'medium'"),
    ("mode", 1, "one of fast, slow", "1"),
    ("mode", ["fast"], "one of fast, slow", "['fast']"),
]


def test_every_integer_option_has_a_largest_value():
    """For built-in tasks, and for custom sections without an explicit limit."""
    sections = {kind for task in TASKS for kind in sections_for(task).values()}
    for kind in [*sections, Sampling, Unbounded]:
        for field in dataclasses.fields(kind):
            if field.type in (int, "int"):
                assert 1 < max(field.metadata["limits"].values()) < 2**32, field.name
                with pytest.raises(UserError, match=f"^{field.name}: .* at most .*, got 10{{12}}$"):
                    kind(**{field.name: 10**12})


@dataclasses.dataclass(frozen=True)
class Unbounded(Section):
    size: int = option(2, "a size", at_least=1)


@pytest.mark.parametrize("text", ["٣", "1_000", "1_0", "３", "9" * 5000, "0x10", "1e3", ""])
def test_integers_need_ascii_digits(text):
    assert parse(FIELDS["count"], text) == text
    with pytest.raises(UserError, match="expected an integer of at least 1"):
        read(FIELDS["count"], text)


@pytest.mark.parametrize("text", ["١٫٥", "1_0.5", "１", "nan", "inf", "1e999"])
def test_numbers_are_finite_with_ascii_digits(text):
    with pytest.raises(UserError, match="expected a number"):
        read(FIELDS["scale"], text)


@pytest.mark.parametrize(("key", "value"), GOOD)
def test_value_in_range_is_accepted(key, value):
    assert getattr(Example(**{key: value}), key) == value
    assert getattr(section_from(Example, {key: value}, "example", "file"), key) == value


@pytest.mark.parametrize(("key", "value", "wanted", "shown"), BAD)
def test_section_created_in_python_rejects_a_wrong_value(key, value, wanted, shown):
    with pytest.raises(UserError) as caught:
        Example(**{key: value})
    assert str(caught.value) == f"{key}: expected {wanted}, got {shown}"


@pytest.mark.parametrize(("key", "value", "wanted", "shown"), BAD)
def test_a_section_from_a_file_names_file_and_dotted_key(key, value, wanted, shown):
    with pytest.raises(UserError) as caught:
        section_from(Example, {"name": "y", key: value}, "example", "run.toml")
    assert str(caught.value) == f"run.toml: example.{key}: expected {wanted}, got {shown}"


def test_integer_is_accepted_as_a_number():
    for section in (Example(scale=2), section_from(Example, {"scale": 2}, "example", "file")):
        assert section.scale == 2.0
        assert type(section.scale) is float
    # So that sections that mean the same compare (and hash) the same.
    assert hash(Example(scale=2)) == hash(Example(scale=2.0))


def test_an_integer_too_large_for_a_float_is_an_error_for_the_user():
    with pytest.raises(
        UserError, match="scale: expected a number in the range of float32, got 1000"
    ):
        Example(scale=10**400)
    with pytest.raises(
        UserError, match=r"example\.scale: expected a number in the range of float32, got 1000"
    ):
        section_from(Example, {"scale": 10**400}, "example", "file")


def test_missing_keys_take_their_defaults():
    assert section_from(Example, {}, "example", "file") == Example()
    assert section_from(Example, {"count": 5}, "example", "file") == Example(count=5)


def test_an_unknown_key_is_named_with_the_nearest_known_one():
    with pytest.raises(UserError) as caught:
        section_from(Example, {"shares": 0.5}, "example", "run.toml")
    assert str(caught.value) == (
        "run.toml: unknown key example.shares; did you mean example.share?"
    )


def test_an_unknown_key_like_no_known_one_lists_them():
    with pytest.raises(UserError) as caught:
        section_from(Example, {"qqqqqqqqqqqqqqqq": 0.5}, "example", "run.toml")
    known = ", ".join(f"example.{name}" for name in FIELDS)
    assert str(caught.value) == (f"run.toml: unknown key example.qqqqqqqqqqqqqqqq; known: {known}")


def test_section_name_does_not_count_in_suggestions():
    with pytest.raises(UserError, match=r"; known: optimizer\.count, "):
        section_from(Example, {"zzz": 1}, "optimizer", "run.toml")


def test_nearest_prefers_the_closest_name():
    assert nearest("windw", ["lanes", "window", "windows"]) == "; did you mean window?"
    assert nearest("xyz", ["lanes", "window"]) == "; known: lanes, window"


@pytest.mark.parametrize("name", ["text_classification", "time_series_classification"])
def test_name_with_additional_words_is_not_a_misspelling(name):
    assert nearest(name, ["classification"]) == "; known: classification"
    assert nearest("clasification", ["classification"]) == "; did you mean classification?"


def test_limits_are_shown_in_full():
    @dataclasses.dataclass(frozen=True)
    class Seeded(Section):
        seed: int = option(0, "a seed", at_most=2**32 - 1)

    assert expectation(dataclasses.fields(Seeded)[0]) == "an integer of at most 4294967295"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "7", 7), ("count", "7.5", "7.5"), ("share", "0.25", 0.25), ("share", "1", 1.0),
        ("share", "half", "half"), ("flag", "true", True), ("flag", "False", False),
        ("flag", "yes", "yes"), ("name", "12", "12"), ("mode", "slow", "slow"),
    ],
)  # fmt: skip
def test_a_word_of_the_command_line_is_read_as_its_fields_type(key, text, value):
    parsed = parse(FIELDS[key], text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("task", TASKS)
def test_every_default_fits_its_own_field_and_has_a_meaning(task):
    sections = sections_of(task_class(task))
    assert list(sections) == ["data", "model"]
    for kind in sections.values():
        made = kind()
        assert section_from(kind, dataclasses.asdict(made), "section", "file") == made
        for field in dataclasses.fields(kind):
            assert field.metadata["meaning"], field.name
            assert expectation(field)


@dataclasses.dataclass(frozen=True)
class Files(Section):
    file: str = option("named", "a named set, a path or nothing", path_or=("named", ""))
    words: str = option("", "not a path")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("named", "named"),
        ("", ""),
        ("data.csv", "/runs/of/mine/data.csv"),
        ("/data.csv", "/data.csv"),
    ],
)
def test_relative_path_is_resolved_from_the_folder(value, expected):
    values = {"file": value, "words": "data.csv"}
    made = section_from(Files, values, "data", "run.toml", pathlib.Path("/runs/of/mine"))
    assert made == Files(expected, "data.csv")


def test_a_value_is_checked_once():
    """A check can be expensive, such as that of a cell."""
    checked = []

    @dataclasses.dataclass(frozen=True)
    class Checked(Section):
        name: str = option("x", "checked", check=checked.append)

    section_from(Checked, {"name": "y"}, "model", "run.toml")
    assert checked == ["y"]
