"""Runs an exported model, without the library that made it; `run.py` of what is exported.

    python run.py generate --prompt "The " --length 400 --temperature 0.8 --seed 0
    python run.py apply inputs.npz outputs.npz

It needs NumPy and, for a model in StableHLO, jax and flatbuffers, for one in ONNX, onnxruntime.
In Python::

    model = Model(folder)
    state = model.initial_state(rows)
    state, outputs = model.step(state, tokens=...)  # or model.sequence
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

State = dict[str, Any]  # arrays [rows, ...]
NOISE_BLOCK = 256  # characters for which noise is drawn at once


class Model:
    """An exported model.

    Attributes:
      about: its ``manifest.json``.
    """

    def __init__(self, folder: pathlib.Path):
        self.about = json.loads((folder / "manifest.json").read_text("utf-8"))
        runtime = {"stablehlo": StableHLO, "onnx": ONNX}[self.about["format"]]
        self.runtime = runtime(folder, self.about)

    def initial_state(self, rows: int) -> State:
        """The state where so many sequences begin."""
        return {
            name: np.repeat(row, rows, axis=0) for name, row in self.runtime.first_state.items()
        }

    def step(self, state: State, **inputs: Any) -> tuple[State, dict[str, Any]]:
        """One step in time of each sequence: the new state, and the outputs by name."""
        return self._call("step", state, inputs)

    def sequence(self, state: State, **inputs: Any) -> tuple[State, dict[str, Any]]:
        """A stretch of each sequence: the state after it, and the outputs by name."""
        return self._call("sequence", state, inputs)

    def _call(self, name: str, state: State, inputs: dict[str, Any]) -> Any:
        wanted = self._wanted(name, inputs)
        given = {key: np.asarray(inputs[key], spec["dtype"]) for key, spec in wanted.items()}
        return self.runtime.call(name, state, given)

    def _wanted(self, name: str, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs that a function has, which must be those that are given."""
        if name not in self.about["functions"]:
            raise ValueError(f"the model has no {name}: it needs the future, and runs whole alone")
        wanted = self.about["functions"][name]
        if set(inputs) != set(wanted):
            names = ", ".join(inputs) or "nothing"
            raise ValueError(f"{name} must be given {', '.join(wanted)}, got {names}")
        return wanted

    def apply(self, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
        """The outputs of whole sequences, in the units of the data: ``about["scaling"]``."""
        self._wanted("sequence", inputs)
        scaling = self.about.get("scaling", {})
        scaled = dict(inputs)
        for name in scaling.keys() & inputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            scaled[name] = (inputs[name] - mean) / deviation
        rows = len(next(iter(inputs.values())))
        _, outputs = self.sequence(self.initial_state(rows), **scaled)
        outputs = {name: np.asarray(array) for name, array in outputs.items()}
        for name in scaling.keys() & outputs.keys():
            mean, deviation = (np.array(scaling[name][key]) for key in ("mean", "deviation"))
            outputs[name] = outputs[name] * deviation + mean
        return outputs

    def generate(self, prompt: str, length: int, temperature: float, seed: int) -> str:
        """The prompt carried on by ``length`` characters, as ``lstm-jax generate`` does it."""
        vocabulary = self.about["vocabulary"]
        unknown = sorted(set(prompt) - set(vocabulary))
        if unknown:
            raise ValueError(f"prompt: the model does not know the character {unknown[0]!r}")
        given = [vocabulary.index(character) for character in prompt or self.about["opening"]]
        state, outputs = self.sequence(self.initial_state(1), tokens=[given])
        written = []
        for noise in self.runtime.noise(seed, length, len(vocabulary)):
            scores = np.asarray(outputs["logits"])[0, -1]
            if temperature > 0:  # the largest of logits and Gumbel noise is a draw
                scores = scores / np.float32(max(temperature, 1e-6)) + noise
            token = int(scores.argmax())
            written.append(vocabulary[token])
            state, outputs = self.step(state, tokens=[[token]])
        return prompt + "".join(written)


class StableHLO:
    """Functions as ``jax.export`` has written them, and their weights."""

    def __init__(self, folder: pathlib.Path, about: dict[str, Any]):
        import jax
        import jax.export

        self.jax = jax
        self.weights = {name: jax.numpy.asarray(a) for name, a in arrays(folder / "weights.npz")}
        self.first_state = dict(arrays(folder / "state.npz"))
        self.functions = {
            name: jax.jit(
                jax.export.deserialize(bytearray((folder / f"{name}.jaxexport").read_bytes())).call
            )
            for name in about["functions"]
        }

    def call(self, name: str, state: State, inputs: dict[str, Any]) -> Any:
        return self.functions[name](self.weights, state, inputs)

    def noise(self, seed: int, length: int, size: int) -> Iterator[np.ndarray]:
        """Gumbel noise for so many draws, float32 ``[size]`` each, as jax.random draws it."""
        random = self.jax.random
        draw = self.jax.jit(self.jax.vmap(lambda key: random.gumbel(key, (size,))))
        keys = random.split(random.key(seed), length)
        for start in range(0, length, NOISE_BLOCK):
            yield from np.asarray(draw(keys[start : start + NOISE_BLOCK]))


class ONNX:
    """Graphs that hold their weights."""

    def __init__(self, folder: pathlib.Path, about: dict[str, Any]):
        import onnxruntime

        self.first_state = dict(arrays(folder / "state.npz"))
        self.sessions = {
            name: onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
            for name in about["functions"]
        }

    def call(self, name: str, state: State, inputs: dict[str, Any]) -> Any:
        session = self.sessions[name]
        feeds = inputs | {f"state.{key}": array for key, array in state.items()}
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        new = {key: outputs.pop(f"new_state.{key}") for key in state}
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
    generate.add_argument("--seed", type=int, default=0, help="decides the draws")
    apply = commands.add_parser("apply", help="outputs of whole sequences")
    apply.add_argument("inputs", help=".npz file with the arrays that manifest.json names")
    apply.add_argument("outputs", help=".npz file to write")
    args = parser.parse_args()
    try:
        model = Model(pathlib.Path(__file__).parent)
        if args.command == "generate":
            check(args)
            if "vocabulary" not in model.about:
                raise ValueError("generate: this model writes no text")
            text = model.generate(args.prompt, args.length, args.temperature, args.seed)
            sys.stdout.buffer.write(f"{text}\n".encode())
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
