"""Runs an exported model, without the library that exported it; this is its `run.py`.

    python run.py generate --prompt "The " --length 400 --temperature 0.8 --seed 0
    python run.py apply inputs.npz outputs.npz

It needs NumPy; a StableHLO model also needs jax and flatbuffers, and an ONNX model onnxruntime.
In Python::

    model = Model(folder)
    carry = model.initial_carry(rows)
    carry, outputs = model(carry, tokens=...)  # one or more steps

A file that has changed since the export is an error, and so is an input whose kind, shape or range
differs from `manifest.json`.
"""

import argparse
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np

Carry = dict[str, Any]  # arrays [rows, ...]
NOISE_BLOCK = 256  # the number of characters for which noise is computed at once
LONGEST = 10_000_000  # the maximum number of characters to generate


class Model:
    """An exported model, called like the trained one.

    Attributes:
      metadata: its ``manifest.json``.

    Raises:
      ValueError: a file is missing, damaged or has changed since the export.
    """

    def __init__(self, folder: pathlib.Path):
        self.metadata = read_manifest(folder)
        runtime = {"stablehlo": StableHLO, "onnx": ONNX}[self.metadata["format"]]
        try:
            self.runtime = runtime(folder, self.metadata["programs"])
        except ImportError:
            raise
        except Exception as error:  # each runtime has its own errors
            raise ValueError(f"{folder}: the model cannot be loaded: {brief(error)}") from error

    def initial_carry(self, rows: int) -> Carry:
        """The initial carry of ``rows`` sequences."""
        return {name: np.repeat(row, rows, axis=0) for name, row in self.runtime.first.items()}

    def __call__(self, carry: Carry, **inputs: Any) -> tuple[Carry, dict[str, Any]]:
        """Runs one or more steps; returns the new carry, and the outputs by name.

        Raises:
          ValueError: the name, type, shape or range of an input or of the carry is not the
            model's, or a number is not finite.
        """
        specs = self.metadata["inputs"]
        given = checked(inputs, specs)
        wanted = {name: tuple(shape) for name, shape in self.metadata["carry"].items()}
        found = {name: np.shape(array)[1:] for name, array in carry.items()}
        if found != wanted:
            raise ValueError(f"the model's carry has the shapes {wanted} per row, got {found}")
        one_step = all(is_one_step(given[name].shape, specs[name]["shape"]) for name in specs)
        step = one_step and "step" in self.metadata["programs"]
        return self.runtime.call("step" if step else "sequence", carry, given)

    def apply(self, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The outputs of whole sequences, scaled to the units of the data, ``metadata["scaling"]``.

        Raises:
          ValueError: an input does not fit, as in :meth:`__call__`; or an output is not finite,
            because inputs are far from those of the training data.
        """
        scaling = self.metadata.get("scaling", {})
        scaled = checked(inputs, self.metadata["inputs"])
        for name in scaling.keys() & inputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            scaled[name] = (np.asarray(inputs[name], np.float64) - mean) / deviation
        rows = len(next(iter(scaled.values())))
        _, outputs = self(self.initial_carry(rows), **scaled)
        outputs = {name: np.asarray(array) for name, array in outputs.items()}
        for name in scaling.keys() & outputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            outputs[name] = outputs[name] * deviation + mean
        for name, array in outputs.items():
            check_finite(name, array, "output")
        return outputs

    def generate(self, prompt: str, length: int, temperature: float, seed: int) -> Iterator[str]:
        """Yields the prompt and ``length`` more characters, like ``lstm-jax generate``."""
        vocabulary = self.metadata["vocabulary"]
        unknown = sorted(set(prompt) - set(vocabulary))
        if unknown:
            raise ValueError(f"prompt: the model does not know the character {unknown[0]!r}")
        yield prompt
        given = [vocabulary.index(character) for character in prompt or self.metadata["opening"]]
        carry, outputs = self(self.initial_carry(1), tokens=[given])
        for noise in self.runtime.noise(seed, length, len(vocabulary)):
            scores = np.asarray(outputs["logits"])[0, -1]
            if temperature > 0:  # the argmax of logits plus Gumbel noise samples from the softmax
                scores = scores / np.float32(max(temperature, 1e-6)) + noise
            token = int(scores.argmax())
            yield vocabulary[token]
            carry, outputs = self(carry, tokens=[[token]])


# ---- checks ----


def brief(error: BaseException) -> str:
    """Formats an error as one printable line.

    >>> brief(KeyError("a\\nb"))
    "KeyError: 'a b'"
    """
    words = " ".join(f"{type(error).__name__}: {error}".replace("\\n", " ").split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words)[:400]


def read_manifest(folder: pathlib.Path, needed: Collection[str] = ("carry.npz",)) -> dict[str, Any]:
    """Reads ``manifest.json``; checks its digest and those of the files that it lists.

    Args:
      folder: the folder of the export.
      needed: files that the manifest must list besides the programs.

    Raises:
      ValueError: a file is missing or has changed since the export.
    """
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        intact = manifest["sha256"] == digest_of(manifest)
        files = {name: str(digest) for name, digest in manifest["files"].items()}
        programs = [program_file(manifest["format"], name) for name in manifest["programs"]]
        fits = {*programs, *needed} <= files.keys()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path}: expected the manifest of an exported model, got something else"
        ) from error
    if not intact or not fits:
        raise ValueError(f"{path}: has changed since the export; export the model again")
    for name, digest in files.items():
        if pathlib.PurePath(name).name != name:
            raise ValueError(f"{path}: expected files of its own folder, got {name!r}")
        try:
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError as error:
            raise ValueError(f"{folder / name}: cannot be read ({error.strerror})") from error
        if found != digest:
            raise ValueError(f"{folder / name}: has changed since the export: wrong SHA-256")
    return manifest


def digest_of(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest without its own digest, ``manifest["sha256"]``.

    >>> digest_of({"a": 1, "sha256": "?"}) == digest_of({"a": 1})
    True
    """
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def program_file(format: str, name: str) -> str:
    """The file name of a program.

    >>> program_file("onnx", "step")
    'step.onnx'
    """
    if name not in ("encode", "step", "sequence"):
        raise ValueError(f"unknown program {name!r}")
    return name + {"stablehlo": ".jaxexport", "onnx": ".onnx"}[format]


def checked(inputs: dict[str, Any], specs: dict[str, Any]) -> dict[str, np.ndarray]:
    """Checks inputs, and converts them to arrays of the model's types.

    Args:
      inputs: arrays by name.
      specs: each input's ``shape`` (``"b, t, 3"``), ``dtype`` and, for some integers, ``range``:
        the minimum and the maximum, which can be a size from the shape, ``"4*t"``; and
        ``missing``, true if NaN stands for a missing value.

    Raises:
      ValueError: an input does not fit; the message names it.

    >>> specs = {"tokens": {"shape": "b, t", "dtype": "int32", "range": [0, 9]}}
    >>> checked({"tokens": [[3, 10]]}, specs)
    Traceback (most recent call last):
    ValueError: tokens[0, 1]: expected an integer from 0 to 9, got 10
    """
    if set(inputs) != set(specs):
        names = ", ".join(inputs) or "nothing"
        raise ValueError(f"the model's inputs are {', '.join(specs)}, got {names}")
    arrays = {name: as_array(name, inputs[name], spec["dtype"]) for name, spec in specs.items()}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        check_shape(name, array.shape, specs[name]["shape"], sizes)
    for name, array in arrays.items():
        dtype = np.dtype(specs[name]["dtype"])
        if dtype.kind in "iu":
            least, largest = specs[name].get("range", (np.iinfo(dtype).min, np.iinfo(dtype).max))
            if isinstance(largest, str):
                largest = math.prod(sizes.get(f) or int(f) for f in largest.split("*"))
            check_range(name, array, least, largest)
        with np.errstate(over="ignore", invalid="ignore"):
            arrays[name] = array.astype(dtype)
        if dtype.kind == "f":
            missing = specs[name].get("missing", False)
            filled = np.where(np.isnan(array), 0, arrays[name]) if missing else arrays[name]
            check_finite(name, filled, f"{dtype} input")
    return arrays


def as_array(name: str, value: Any, dtype: str) -> np.ndarray:
    """Converts an input to an array, whose type must be convertible to ``dtype``."""
    try:
        array = np.asarray(value)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: expected an array, got {brief(error)}") from error
    kinds = {"i": "iu", "u": "iu", "f": "fiu", "b": "b"}[np.dtype(dtype).kind]
    narrow = "f" in kinds and array.dtype.name == "bfloat16"
    if array.dtype.kind not in kinds and not narrow:
        raise ValueError(f"{name}: expected numbers of type {dtype}, got {array.dtype}")
    return array


def check_shape(name: str, shape: tuple[int, ...], symbolic: str, sizes: dict[str, int]) -> None:
    """Raises if a shape does not fit ``"b, 4*t, 7"``; adds the values of its letters to ``sizes``.

    >>> check_shape("xs", (3, 8, 7), "b, 4*t, 7", sizes := {})
    >>> sizes
    {'b': 3, 't': 2}
    >>> check_shape("numbers", (3, 0), "b, 0", sizes)  # a model without such features
    >>> check_shape("lengths", (0,), "b", {})
    Traceback (most recent call last):
    ValueError: lengths: expected shape [b], letters at least 1 and equal in all inputs, got (0,)
    """
    axes = [axis.strip().split("*") for axis in symbolic.split(",")]
    fits = len(shape) == len(axes)
    for size, factors in zip(shape, axes, strict=False):
        number = math.prod(int(factor) for factor in factors if factor.isdigit())
        letters = [factor for factor in factors if not factor.isdigit()]
        if not letters:
            fits = fits and size == number
            continue
        count, rest = divmod(size, number)
        equal = all(sizes.setdefault(letter, count) == count for letter in letters)
        fits = fits and rest == 0 and count >= 1 and equal
    if not fits:
        raise ValueError(
            f"{name}: expected shape [{symbolic}], letters at least 1 and equal in all inputs, "
            f"got {tuple(shape)}"
        )


def check_range(name: str, array: np.ndarray, least: int, largest: int) -> None:
    """Raises if an integer is outside a range."""
    for position in np.argwhere((array < least) | (array > largest))[:1]:
        index = ", ".join(map(str, position))
        raise ValueError(
            f"{name}[{index}]: expected an integer from {least} to {largest}, got "
            f"{array[tuple(position)]}"
        )


def check_finite(name: str, array: np.ndarray, what: str) -> None:
    """Raises if a number is infinite or NaN."""
    for position in np.argwhere(~np.isfinite(array))[:1]:
        index = ", ".join(map(str, position))
        raise ValueError(f"{name}[{index}]: expected a finite {what}, got {array[tuple(position)]}")


def is_one_step(shape: tuple[int, ...], symbolic: str) -> bool:
    """Whether an input's shape is that of one step in time.

    >>> is_one_step((3, 4, 7), "b, 4*t, 7"), is_one_step((3, 8, 7), "b, 4*t, 7")
    (True, False)
    """
    sizes = [size.strip().split("*") for size in symbolic.split(",")]
    steps = [n for n, factors in enumerate(sizes) if "t" in factors]
    return all(shape[n] == int(([f for f in sizes[n] if f != "t"] or [1])[0]) for n in steps)


class StableHLO:
    """Programs that ``jax.export`` has written, and their weights."""

    def __init__(self, folder: pathlib.Path, programs: list[str]):
        import jax
        import jax.export

        self.jax = jax
        self.weights = {name: jax.numpy.asarray(a) for name, a in arrays(folder / "weights.npz")}
        self.first = dict(arrays(folder / "carry.npz"))
        self.programs = {
            name: jax.jit(
                jax.export.deserialize(
                    bytearray((folder / program_file("stablehlo", name)).read_bytes())
                ).call
            )
            for name in programs
        }

    def call(self, name: str, carry: Carry, inputs: dict[str, Any]) -> Any:
        return self.programs[name](self.weights, carry, inputs)

    def noise(self, seed: int, length: int, size: int) -> Iterator[np.ndarray]:
        """Yields Gumbel noise for ``length`` samples, float32 ``[size]`` each, from jax.random."""
        random = self.jax.random
        draw = self.jax.jit(self.jax.vmap(lambda key: random.gumbel(key, (size,))))
        keys = random.split(random.key(seed), length)
        for start in range(0, length, NOISE_BLOCK):
            yield from np.asarray(draw(keys[start : start + NOISE_BLOCK]))


class ONNX:
    """ONNX graphs, which share the weights in ``weights.bin``."""

    def __init__(self, folder: pathlib.Path, programs: list[str]):
        import onnxruntime

        self.first = dict(arrays(folder / "carry.npz"))
        self.sessions = {
            name: onnxruntime.InferenceSession(str(folder / program_file("onnx", name)))
            for name in programs
        }

    def call(self, name: str, carry: Carry, inputs: dict[str, Any]) -> Any:
        session = self.sessions[name]
        feeds = inputs | {f"carry.{key}": array for key, array in carry.items()}
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        new = {key: outputs.pop(f"new_carry.{key}") for key in carry}
        return new, outputs

    def noise(self, seed: int, length: int, size: int) -> Iterator[np.ndarray]:
        """The noise of ``jax.random`` in NumPy: equal bits, and logarithms equal up to rounding."""
        root = np.array([[seed >> 32, seed & 0xFFFFFFFF]], np.uint32)
        for start in range(0, length, NOISE_BLOCK):
            numbers = np.arange(start, min(start + NOISE_BLOCK, length))
            keys = np.stack(threefry(root, numbers), -1)[0]
            yield from gumbel(np.bitwise_xor(*threefry(keys, np.arange(size))))


def arrays(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """Reads the arrays of a .npz file by name.

    NumPy stores bfloat16 as a type of two bytes, which is converted back.

    Raises:
      ValueError: the file is missing, damaged or of another kind; nothing is unpickled.
    """
    try:
        with np.load(path) as file:
            found = {name: file[name] for name in file.files}
        for name, array in found.items():
            if not isinstance(array, np.ndarray):  # NumPy returns other members unchanged
                raise ValueError(f"{name} is not an array")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # zipfile, zlib and NumPy have their own errors
        raise ValueError(f"{path}: expected a .npz file of numbers ({brief(error)})") from error
    for name, array in found.items():
        if array.dtype == "V2":
            import ml_dtypes  # a dependency of jax

            array = array.view(ml_dtypes.bfloat16)
        yield name, array


def write_npz(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Writes a .npz file. Any name is allowed; :func:`numpy.savez` rejects ``"file"``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array))


def write_arrays(path: pathlib.Path, outputs: dict[str, Any]) -> None:
    """Writes a .npz file; an existing file is replaced once the new one is complete.

    Raises:
      ValueError: the file cannot be written.
    """
    if path.suffix != ".npz":
        raise ValueError(f"{path}: expected a name that ends in .npz")
    part = path.with_name(f".{os.getpid()}.part")
    try:
        try:
            write_npz(part, outputs)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror or error})") from error


def threefry(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two random words of each count below 2**32 for each key.

    Args:
      keys: uint32 ``[N, 2]``.
      counts: integers ``[M]``.

    Returns:
      Two arrays of uint32 ``[N, M]``.

    References:
      John Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Threefry-2x32,
      20 rounds), as ``jax.random`` uses it with ``jax_threefry_partitionable``.
    """
    schedule = [keys[:, :1], keys[:, 1:], keys[:, :1] ^ keys[:, 1:] ^ np.uint32(0x1BD11BDA)]
    a = np.zeros((len(keys), len(counts)), np.uint32) + schedule[0]
    b = counts.astype(np.uint32) + schedule[1]
    for n in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[n % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a = a + schedule[(n + 1) % 3]
        b = b + schedule[(n + 2) % 3] + np.uint32(n + 1)
    return a, b


def gumbel(bits: np.ndarray) -> np.ndarray:
    """-log(-log u), float32, with u uniform in (0, 1), from 23 of the random bits."""
    uniform = (bits >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    return -np.log(-np.log(np.maximum(uniform, np.finfo(np.float32).tiny)))


def integer(text: str) -> int:
    """Parses an integer in ASCII digits; ``int`` would also accept ``1_000`` and other digits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        raise ValueError
    return int(text)


def number(text: str) -> float:
    """Parses a number in ASCII digits."""
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
        raise ValueError
    return float(text)


def main() -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Runs the exported model in this folder.")
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="generate text")
    generate.add_argument("--prompt", default="", help="the beginning of the text")
    generate.add_argument("--length", type=integer, default=400, help="characters after the prompt")
    generate.add_argument(
        "--temperature", type=number, default=0.8, help="0: always the most likely character"
    )
    generate.add_argument("--seed", type=integer, default=0, help="random seed of the samples")
    apply = commands.add_parser("apply", help="compute the outputs of whole sequences")
    apply.add_argument("inputs", help=".npz file with the input arrays that manifest.json lists")
    apply.add_argument("outputs", help=".npz file to write")
    args = parser.parse_args()
    return reported(lambda: run(args))


def reported(command: Callable[[], None]) -> int:
    """Runs a command, prints an error as one line, and returns the exit status."""
    try:
        command()
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ImportError, ValueError) as error:
        return fail(f"error: {error}", 1)
    except OSError as error:  # for instance a full disk; the interpreter flushes stdout at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail(f"error: the text cannot be written ({error.strerror or error})", 1)
    except Exception as error:  # a runtime's own error, for instance out of memory
        return fail(f"error: {brief(error)}", 1)
    return 0


def run(args: argparse.Namespace) -> None:
    """Runs a command."""
    if args.command == "generate":
        check(args)
    model = Model(pathlib.Path(__file__).parent)
    if args.command == "apply":
        inputs = dict(arrays(pathlib.Path(args.inputs)))
        write_arrays(pathlib.Path(args.outputs), model.apply(inputs))
        return
    if "vocabulary" not in model.metadata:
        raise ValueError("generate: this model does not generate text")
    if sys.stdout is None:
        raise ValueError("generate: the standard output is closed")
    how = (args.prompt, args.length, args.temperature, args.seed)
    for text in itertools.chain(model.generate(*how), "\n"):
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()


def fail(message: str, status: int) -> int:
    """Prints a one-line message, and returns an exit status."""
    print(f"run.py: {message}", file=sys.stderr)
    return status


def check(args: argparse.Namespace) -> None:
    """Raises if an option of ``generate`` is out of range."""
    ranges = {
        "length": (0 <= args.length <= LONGEST, f"from 0 to {LONGEST}"),
        "temperature": (0 <= args.temperature < float("inf"), "at least 0"),
        "seed": (0 <= args.seed < 2**32, "from 0 to 2**32 - 1"),
    }
    for name, (fits, words) in ranges.items():
        if not fits:
            raise ValueError(f"--{name}: expected a number {words}, got {getattr(args, name)}")


if __name__ == "__main__":
    sys.exit(main())
