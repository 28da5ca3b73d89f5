"""Runs an exported model without the library that made it; this is its `run.py`.

    python run.py generate --prompt "The " --length 400 --temperature 0.8 --seed 0
    python run.py apply inputs.npz outputs.npz

It needs NumPy and, for a model in StableHLO, jax and flatbuffers, for one in ONNX, onnxruntime.
In Python::

    model = Model(folder)
    carry = model.initial_carry(rows)
    carry, outputs = model(carry, tokens=...)  # any number of steps, also a single one
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

Carry = dict[str, Any]  # arrays [rows, ...]
NOISE_BLOCK = 256  # characters for which noise is computed at once


class Model:
    """An exported model, called as the trained one.

    Attributes:
      metadata: its ``manifest.json``.
    """

    def __init__(self, folder: pathlib.Path):
        self.metadata = json.loads((folder / "manifest.json").read_text("utf-8"))
        runtime = {"stablehlo": StableHLO, "onnx": ONNX}[self.metadata["format"]]
        self.runtime = runtime(folder, self.metadata["programs"])

    def initial_carry(self, rows: int) -> Carry:
        """The carry before the first step of ``rows`` sequences."""
        return {name: np.repeat(row, rows, axis=0) for name, row in self.runtime.first.items()}

    def __call__(self, carry: Carry, **inputs: Any) -> tuple[Carry, dict[str, Any]]:
        """The carry after a stretch of each sequence, and the outputs by name."""
        self._check(inputs)
        specs = self.metadata["inputs"]
        given = {name: np.asarray(inputs[name], spec["dtype"]) for name, spec in specs.items()}
        one_step = all(is_one_step(given[name].shape, specs[name]["shape"]) for name in specs)
        step = one_step and "step" in self.metadata["programs"]
        return self.runtime.call("step" if step else "sequence", carry, given)

    def _check(self, inputs: dict[str, Any]) -> None:
        wanted = self.metadata["inputs"]
        if set(inputs) != set(wanted):
            names = ", ".join(inputs) or "nothing"
            raise ValueError(f"the model's inputs are {', '.join(wanted)}, got {names}")

    def apply(self, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The outputs of whole sequences, in the units of the data: ``metadata["scaling"]``."""
        self._check(inputs)
        scaling = self.metadata.get("scaling", {})
        scaled = dict(inputs)
        for name in scaling.keys() & inputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            scaled[name] = (inputs[name] - mean) / deviation
        rows = len(next(iter(inputs.values())))
        _, outputs = self(self.initial_carry(rows), **scaled)
        outputs = {name: np.asarray(array) for name, array in outputs.items()}
        for name in scaling.keys() & outputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            outputs[name] = outputs[name] * deviation + mean
        return outputs

    def generate(self, prompt: str, length: int, temperature: float, seed: int) -> Iterator[str]:
        """The prompt, then ``length`` more characters, as ``lstm-jax generate`` writes them."""
        vocabulary = self.metadata["vocabulary"]
        unknown = sorted(set(prompt) - set(vocabulary))
        if unknown:
            raise ValueError(f"prompt: the model does not know the character {unknown[0]!r}")
        yield prompt
        given = [vocabulary.index(character) for character in prompt or self.metadata["opening"]]
        carry, outputs = self(self.initial_carry(1), tokens=[given])
        for noise in self.runtime.noise(seed, length, len(vocabulary)):
            scores = np.asarray(outputs["logits"])[0, -1]
            if temperature > 0:  # the largest of logits and Gumbel noise is a random choice
                scores = scores / np.float32(max(temperature, 1e-6)) + noise
            token = int(scores.argmax())
            yield vocabulary[token]
            carry, outputs = self(carry, tokens=[[token]])


def is_one_step(shape: tuple[int, ...], symbolic: str) -> bool:
    """Whether an input's shape is that of one step in time.

    >>> is_one_step((3, 4, 7), "b, 4*t, 7"), is_one_step((3, 8, 7), "b, 4*t, 7")
    (True, False)
    """
    sizes = [size.strip().split("*") for size in symbolic.split(",")]
    steps = [n for n, factors in enumerate(sizes) if "t" in factors]
    return all(shape[n] == int(([f for f in sizes[n] if f != "t"] or [1])[0]) for n in steps)


class StableHLO:
    """Programs as ``jax.export`` has written them, and their weights."""

    def __init__(self, folder: pathlib.Path, programs: list[str]):
        import jax
        import jax.export

        self.jax = jax
        self.weights = {name: jax.numpy.asarray(a) for name, a in arrays(folder / "weights.npz")}
        self.first = dict(arrays(folder / "carry.npz"))
        self.programs = {
            name: jax.jit(
                jax.export.deserialize(bytearray((folder / f"{name}.jaxexport").read_bytes())).call
            )
            for name in programs
        }

    def call(self, name: str, carry: Carry, inputs: dict[str, Any]) -> Any:
        return self.programs[name](self.weights, carry, inputs)

    def noise(self, seed: int, length: int, size: int) -> Iterator[np.ndarray]:
        """Gumbel noise for ``length`` choices, float32 ``[size]`` each, from jax.random."""
        random = self.jax.random
        draw = self.jax.jit(self.jax.vmap(lambda key: random.gumbel(key, (size,))))
        keys = random.split(random.key(seed), length)
        for start in range(0, length, NOISE_BLOCK):
            yield from np.asarray(draw(keys[start : start + NOISE_BLOCK]))


class ONNX:
    """Graphs that hold their weights."""

    def __init__(self, folder: pathlib.Path, programs: list[str]):
        import onnxruntime

        self.first = dict(arrays(folder / "carry.npz"))
        self.sessions = {
            name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx")) for name in programs
        }

    def call(self, name: str, carry: Carry, inputs: dict[str, Any]) -> Any:
        session = self.sessions[name]
        feeds = inputs | {f"carry.{key}": array for key, array in carry.items()}
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        new = {key: outputs.pop(f"new_carry.{key}") for key in carry}
        return new, outputs

    def noise(self, seed: int, length: int, size: int) -> Iterator[np.ndarray]:
        """What ``jax.random`` draws, in NumPy: the same bits, and logarithms to a rounding."""
        root = np.array([[seed >> 32, seed & 0xFFFFFFFF]], np.uint32)
        for start in range(0, length, NOISE_BLOCK):
            numbers = np.arange(start, min(start + NOISE_BLOCK, length))
            keys = np.stack(threefry(root, numbers), -1)[0]
            yield from gumbel(np.bitwise_xor(*threefry(keys, np.arange(size))))


def arrays(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a file by name; NumPy's files tell of bfloat16 only that it has two bytes."""
    with np.load(path) as file:
        for name in file.files:
            array = file[name]
            if array.dtype == "V2":
                import ml_dtypes  # comes with jax

                array = array.view(ml_dtypes.bfloat16)
            yield name, array


def threefry(keys: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two random words of each count below 2**32 under each key.

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
    """-log(-log u), float32, with u uniform in [0, 1) but not 0, of 23 of the random bits."""
    uniform = (bits >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    return -np.log(-np.log(np.maximum(uniform, np.finfo(np.float32).tiny)))


def main() -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Runs the exported model beside this file.")
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="write text")
    generate.add_argument("--prompt", default="", help="what the text begins with")
    generate.add_argument("--length", type=int, default=400, help="characters after the prompt")
    generate.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest")
    generate.add_argument("--seed", type=int, default=0, help="decides the random choices")
    apply = commands.add_parser("apply", help="outputs of whole sequences")
    apply.add_argument("inputs", help=".npz file with the arrays that manifest.json names")
    apply.add_argument("outputs", help=".npz file to write")
    args = parser.parse_args()
    try:
        model = Model(pathlib.Path(__file__).parent)
        if args.command == "generate":
            check(args)
            if "vocabulary" not in model.metadata:
                raise ValueError("generate: this model does not generate text")
            how = (args.prompt, args.length, args.temperature, args.seed)
            for text in itertools.chain(model.generate(*how), "\n"):
                sys.stdout.buffer.write(text.encode())
                sys.stdout.buffer.flush()
        else:
            np.savez(args.outputs, **model.apply(dict(arrays(pathlib.Path(args.inputs)))))
    except (ImportError, OSError, ValueError) as error:
        print(f"run.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def check(args: argparse.Namespace) -> None:
    """Raises where an option of ``generate`` is out of its range."""
    ranges = {
        "length": (args.length >= 0, "at least 0"),
        "temperature": (0 <= args.temperature < float("inf"), "at least 0"),
        "seed": (0 <= args.seed < 2**32, "from 0 to 2**32 - 1"),
    }
    for name, (fits, words) in ranges.items():
        if not fits:
            raise ValueError(f"--{name}: expected a number {words}, got {getattr(args, name)}")


if __name__ == "__main__":
    sys.exit(main())
