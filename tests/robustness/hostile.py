"""Hostile inputs, made from valid ones by seeded mutations, and the checks of each."""

import contextlib
import copy
import json
import os
import random
import re
import signal
import struct
import sys
import traceback
import zipfile
from collections import Counter

import jax

from lstm_jax.errors import UserError

SECONDS = 20  # limit for one input, which usually takes milliseconds

# ---- mutations of bytes ----

NUMBERS = [0, 1, -1, 2**7, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1]


def flipped_bits(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
    return bytes(data)


def changed_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 2, 16])):
        data[rng.randrange(len(data))] = rng.choice([0, 0xFF, 0x7F, 0x80, rng.randrange(256)])
    return bytes(data)


def truncated(rng, data):
    return data[: rng.randrange(len(data))]


def without_a_slice(rng, data):
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 65) :]


def with_a_slice_twice(rng, data):
    start, size = rng.randrange(len(data)), rng.randrange(1, 65)
    return data[: start + size] + data[start:]


def swapped_slices(rng, data):
    size = rng.randrange(1, 33)
    a, b = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    if a + size > b:
        return data[::-1]
    middle = data[a + size : b]
    return data[:a] + data[b : b + size] + middle + data[a : a + size] + data[b + size :]


def hostile_number(rng, data):
    """A size, offset or count of 1 to 8 bytes is replaced."""
    form = rng.choice("bhiq")
    size = struct.calcsize(f"<{form}")
    value = rng.choice(NUMBERS) & (2 ** (8 * size) - 1)
    place = rng.randrange(max(1, len(data) - size))
    return data[:place] + value.to_bytes(size, "little") + data[place + size :]


BYTES = [
    flipped_bits,
    changed_bytes,
    truncated,
    without_a_slice,
    with_a_slice_twice,
    swapped_slices,
    hostile_number,
]


def mutated_bytes(rng, data):
    for _ in range(rng.choice([1, 1, 1, 3])):
        data = rng.choice(BYTES)(rng, data or b"\0")
    return data


# ---- mutations of JSON ----

VALUES = [
    None,
    True,
    -1,
    0,
    2**70,
    1e400,
    0.5,
    "",
    "../../etc/passwd",
    "\x1b[2J\n",
    "é" * 300,
    [],
    {},
    [[]],
    {"class_name": "LSTM"},
    ["float32"],
]


def mutated_json(rng, tree):
    """A tree in which an entry is replaced, removed, renamed, duplicated or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_places(tree))
        if not places:
            return rng.choice(VALUES)
        parent, key = rng.choice(places)
        what = rng.randrange(5)
        if what == 0 and isinstance(parent, dict):
            del parent[key]
        elif what == 1 and isinstance(parent, dict):
            parent[rng.choice(["x", "", key + "\n", "config", "layers"])] = parent.pop(key)
        elif what == 2:
            parent[key] = [parent[key], copy.deepcopy(parent[key])]
        elif what == 3:
            other, name = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                parent[key] = copy.deepcopy(other[name])
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def _places(tree):
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])


def mutated_safetensors(rng, data):
    """A mutated header, with its correct length."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(mutated_json(rng, json.loads(data[8 : 8 + size]))).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def mutated_zip(rng, path, change):
    """A zip file with one changed member, and correct sizes and checksums."""
    with zipfile.ZipFile(path) as file:
        members = [(info.filename, file.read(info)) for info in file.infolist()]
    n = rng.randrange(len(members))
    name, content = members[n]
    members[n] = rng.choice([name, name, name, "../x", name + "\n"]), change(rng, name, content)
    if rng.random() < 0.1:
        members.pop(rng.randrange(len(members)))
    compression = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)


SHAPES = ["(2, 8)", "(-1,)", "(4294967296, 8)", "()", "(0, 9223372036854775807)", "8", "(8,)" * 3]
DTYPES = ["<f4", ">f8", "|O", "<U9", "|V3", "<c8", "<f2", "|b1", "<i8", "f4,f4", "<M8[s]", "<f16"]


def mutated_npy(rng, name, content):
    """A header of another shape or type, or other bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(rng, content)
    header = f"{{'descr': '{rng.choice(DTYPES)}', 'fortran_order': {rng.choice([True, False])}, "
    header = (header + f"'shape': {rng.choice(SHAPES)}, }}").ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content[128:]


# ---- mutations of protocol buffers ----


def mutated_message(rng, message):
    """A message in which some fields are replaced, swapped, removed or duplicated."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        places = list(_fields(message))
        owner, field = rng.choice(places)
        value = getattr(owner, field.name)
        if field.is_repeated and len(value):
            n = rng.randrange(len(value))
            what = rng.randrange(3)
            if what == 0:
                del value[n]
            elif what == 1:
                value.append(value[n])
            elif field.message_type is None:
                value[n] = _hostile(rng, field, [*value])
        elif not field.is_repeated and field.message_type is None:
            others = [getattr(o, f.name) for o, f in places if f.type == field.type]
            others = [other for other in others if not isinstance(other, list) and other]
            with contextlib.suppress(TypeError, ValueError):
                setattr(owner, field.name, _hostile(rng, field, others))
        elif rng.random() < 0.3:
            owner.ClearField(field.name)
    return message


def _fields(message):
    for field, value in message.ListFields():
        if not hasattr(field, "is_repeated"):  # older protobuf
            raise RuntimeError("protobuf without FieldDescriptor.is_repeated")
        yield message, field
        if field.message_type is not None:
            for inner in value if field.is_repeated else [value]:
                yield from _fields(inner)


def _hostile(rng, field, others):
    if others and rng.random() < 0.5:
        return rng.choice(others)
    kind = field.cpp_type
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(["", "x", "LSTM", "Loop", "\x1b\n", "../../etc/passwd"])
        return text.encode() if field.type == field.TYPE_BYTES else text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, float("nan"), float("inf"), -1e30])
    return rng.choice(NUMBERS) % 2**31 if "32" in str(kind) else rng.choice([0, 1, 2, 7, 16])


# ---- checks ----


class Hang(BaseException):
    """An input takes too long; a reader cannot mistake this for an error of the file."""


class WrongError(AssertionError):
    """The result differs from the content of the input."""


OPENED: list[str] = []
_watching = False


def _watch(event, arguments):
    if _watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_watch)


@contextlib.contextmanager
def limited(path):
    """Raises an error if the time limit is exceeded."""

    def stop(signum, frame):
        raise Hang(f"more than {SECONDS} s for {path}")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def watched(path):
    """Raises an error if a file other than ``path`` is opened, or the time limit is exceeded."""
    global _watching

    OPENED.clear()
    _watching = True
    try:
        with limited(path):
            yield
    finally:
        _watching = False
    others = [name for name in OPENED if name != str(path) and not _is_module(name)]
    assert not others, f"{path}: opened {others}"


def _is_module(name):
    """Whether a file belongs to Python, to a package that is imported now, or to JAX's cache."""
    cache = jax.config.jax_compilation_cache_dir
    roots = (sys.prefix, sys.base_prefix, "/proc/", "/sys/", *([cache] if cache else []))
    endings = (".py", ".pyc", ".so", "entry_points.txt", "METADATA")
    return name.endswith(endings) or name.startswith(roots)


def attempt(path, read, check, *, around=watched, names=None):
    """Reads an input: ``"read"`` if the result is right, ``"rejected"`` if there is a one-line
    error.

    Args:
      path: of the input.
      read: reads it.
      check: raises an error if the result differs from the content of the input.
      around: the context in which the input is read.
      names: a pattern of what a message must name; by default the file.
    """
    try:
        with around(path):
            result = read(path)
    except (UserError, ValueError) as error:
        message = str(error)
        assert isinstance(error, UserError), f"{path}: {error!r} would reach the command line"
        assert len(message.splitlines()) == 1 and message.isprintable(), repr(message)
        named = re.search(names or re.escape(path.name), message)
        assert named, f"{message} does not name {names or path.name}"
        return "rejected"
    try:
        check(path, result)
    except Exception as error:
        raise WrongError(f"{path}: {error}") from error
    return "read"


def tried(kind, budget, make, read, check, **how):
    """Tries ``budget`` inputs of a kind and prints the numbers of outcomes.

    Args:
      kind: the kind of inputs, for the report.
      budget: the number of inputs.
      make: writes an input, ``make(rng) -> path``; the generator of input n is
        ``random.Random(f"{kind} {n}")``, so that each input is reproducible.
      read, check, how: as in :func:`attempt`.

    Raises:
      AssertionError: after all inputs, with the first input of each kind of failure.
    """
    outcomes, failures = Counter(), {}
    for n in range(budget):
        path = make(random.Random(f"{kind} {n}"))
        try:
            outcomes[attempt(path, read, check, **how)] += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            what = {Hang: "hangs", WrongError: "wrong results"}.get(type(error), "other exceptions")
            outcomes[what] += 1
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "lstm_jax" in frame.filename] or frames
            place = (type(error), ours[-1].filename, ours[-1].lineno)
            failures.setdefault(place, (n, error))
    print(
        f"{kind}: {budget} inputs, {outcomes['read']} read, {outcomes['rejected']} rejected, "
        f"{outcomes['other exceptions']} other exceptions, {outcomes['hangs']} hangs, "
        f"{outcomes['wrong results']} wrong results"
    )
    if failures:
        lines = [
            f"input {n} of {kind}: {type(error).__name__}: {error} ({file}:{line})"
            for (_, file, line), (n, error) in failures.items()
        ]
        raise AssertionError("\n".join(lines)) from next(iter(failures.values()))[1]
    return outcomes
