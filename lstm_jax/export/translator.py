"""Translates with an exported model, without the library that exported it; this is its `run.py`.

    python run.py --text "A dog runs."
    python run.py sentences.txt > translations.txt

It needs NumPy, jax, flatbuffers and tokenizers, and `runner.py` in the same folder.  In Python::

    translator = Translator(folder)
    translator.translate(["A dog runs."])  # the hypotheses of each sentence, with scores

A file that has changed since the export is an error, and so is an input whose kind, shape or range
differs from `manifest.json`.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lstm_jax.export import runner

Carry = dict[str, Any]  # arrays [rows, ...] by name; those of the source begin with "memory."
PROGRAMS = ("encode", "step", "sequence")
START, END = 2, 3
ROWS = 64  # sentences per batch
SHORTEST = 8  # lengths are rounded up to this or a larger power of two, so few programs compile


class Found(NamedTuple):
    """The hypotheses that a search has found for a batch of sources, the best first.

    Attributes:
      tokens: int32 ``[B, K, T]``; each hypothesis is padded with the end token.
      lengths: int32 ``[B, K]``, including the end token.
      scores: ``[B, K]``; -inf if there are fewer than K hypotheses.
      finished: whether each hypothesis has reached the end token; booleans ``[B, K]``.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray
    finished: np.ndarray


class Translator:
    """An exported encoder-decoder.

    Attributes:
      metadata: its ``manifest.json``.

    Raises:
      ValueError: a file is missing, damaged or has changed since the export.
    """

    def __init__(self, folder: pathlib.Path):
        import jax
        import jax.export

        files = {name: runner.program_file("stablehlo", name) for name in PROGRAMS}
        self.metadata = runner.read_manifest(folder, {"weights.npz", *files.values()})
        try:
            self.weights = dict(runner.arrays(folder / "weights.npz"))
            self.programs = {
                name: jax.jit(jax.export.deserialize(bytearray((folder / file).read_bytes())).call)
                for name, file in files.items()
            }
        except ImportError:
            raise
        except Exception as error:  # jax has its own errors
            raise ValueError(
                f"{folder}: the model cannot be loaded: {runner.brief(error)}"
            ) from error

    def encode(self, *, source: np.ndarray, lengths: np.ndarray) -> Carry:
        """Encodes sources ``[B, S]``, and returns the carry before the first target token.

        Raises:
          ValueError: an input's type, shape or range is not the model's.
        """
        inputs = {"source": source, "lengths": lengths}
        specs = {name: self.metadata["inputs"][name] for name in inputs}
        return self.programs["encode"](self.weights, runner.checked(inputs, specs))

    def __call__(self, carry: Carry, *, tokens: np.ndarray) -> tuple[Carry, dict[str, Any]]:
        """Returns the carry after target tokens ``[B, T]``, and ``logits`` and ``attention``.

        Raises:
          ValueError: the tokens, or the carry, have another type, shape or range than the model's.
        """
        specs, shapes = {"tokens": self.metadata["inputs"]["tokens"]}, self.metadata["carry"]
        inputs = runner.checked({"tokens": tokens}, specs)
        if set(carry) != set(shapes):
            names = ", ".join(carry) or "nothing"
            raise ValueError(f"the model's carry has the parts {', '.join(shapes)}, got {names}")
        sizes: dict[str, int] = {}
        runner.check_shape("tokens", inputs["tokens"].shape, specs["tokens"]["shape"], sizes)
        for name, shape in shapes.items():
            runner.check_shape(f"carry {name}", np.shape(carry[name]), shape, sizes)
        program = "step" if inputs["tokens"].shape[1] == 1 else "sequence"
        return self.programs[program](self.weights, carry, inputs)

    def search(
        self, source: np.ndarray, lengths: np.ndarray, beam: int, alpha: float, beta: float
    ) -> Found:
        """Beam search with the length penalty α and the coverage penalty β of Wu et al. 2016."""
        (rows, size), steps = np.shape(source), 2 * np.shape(source)[1]
        carry = self.encode(source=source, lengths=lengths)
        carry = {name: np.repeat(np.asarray(array), beam, 0) for name, array in carry.items()}
        present = np.repeat(np.arange(size) < np.asarray(lengths)[:, None], beam, 0)
        coverage = np.zeros((rows * beam, size))
        first = np.arange(rows)[:, None] * beam
        if beam == 1:
            alpha = beta = 0.0

        def bonus(coverage: np.ndarray) -> np.ndarray:
            logs = np.log(np.clip(coverage, np.finfo(np.float32).tiny, 1.0))
            return beta * np.where(present, logs, 0.0).sum(-1).reshape(rows, beam)

        live = np.full((rows, beam, steps), END, np.int32)
        log_probs = np.full((rows, beam), -np.inf)
        log_probs[:, 0] = 0.0
        ended, scores, t = live.copy(), np.full((rows, beam), -np.inf), 0
        while t < steps and not np.isfinite(scores).all():
            last = live[:, :, t - 1] if t else np.full((rows, beam), START)
            carry, outputs = self(carry, tokens=last.reshape(-1, 1))
            coverage = coverage + np.asarray(outputs["attention"])[:, 0]
            logits = np.asarray(outputs["logits"])[:, 0]
            runner.check_finite("logits", logits, "output")
            values, token = largest(log_softmax(logits), 2 * beam)
            values = values.reshape(rows, beam, -1) + log_probs[..., None]
            width = values.shape[-1]
            values, index = largest(values.reshape(rows, -1), 2 * beam)
            parent = index // width
            token = np.take_along_axis(token.reshape(rows, -1), index, 1)
            candidates = np.take_along_axis(live, parent[..., None], 1)
            candidates[:, :, t] = token
            ends, searching = token == END, np.isinf(scores).any(-1, keepdims=True)

            finishing = ends[:, :beam] & np.isfinite(values[:, :beam]) & searching
            new = values[:, :beam] / ((6.0 + t) / 6.0) ** alpha
            new = new + np.take_along_axis(bonus(coverage), parent[:, :beam], 1)
            new = np.where(finishing, new, -np.inf)
            scores, best = largest(np.concatenate([scores, new], 1), beam)
            both = np.concatenate([ended, candidates[:, :beam]], 1)
            ended = np.take_along_axis(both, best[..., None], 1)

            log_probs, best = largest(np.where(ends, -np.inf, values), beam)
            live = np.take_along_axis(candidates, best[..., None], 1)
            index = (first + np.take_along_axis(parent, best, 1)).reshape(-1)
            coverage = coverage[index]
            carry = {
                name: array if name.startswith("memory.") else np.asarray(array)[index]
                for name, array in carry.items()
            }
            t += 1
        cut, best = largest(log_probs / ((5.0 + t) / 6.0) ** alpha + bonus(coverage), beam)
        live = np.take_along_axis(live, best[..., None], 1)
        finished = np.isfinite(scores)
        index = np.cumsum(~finished, -1) - 1  # finished hypotheses come first
        live = np.take_along_axis(live, index[..., None], 1)
        tokens = np.where(finished[..., None], ended, live)
        scores = np.where(finished, scores, np.take_along_axis(cut, index, 1))
        return Found(tokens, np.minimum((tokens != END).sum(-1) + 1, steps), scores, finished)

    def translate(self, lines: Sequence[str]) -> Iterator[list[tuple[str, float]]]:
        """Translates sentences; yields each sentence's hypotheses with their scores.

        Raises:
          ValueError: a sentence is empty or longer than those of the training data, or the model
            has no tokenizer.
        """
        from tokenizers import Tokenizer

        if "tokenizer" not in self.metadata:
            raise ValueError("this model does not translate text: it has no tokenizer")
        library = Tokenizer.from_str(self.metadata["tokenizer"])
        library.encode_special_tokens = True  # treats "</s>" in a sentence as ordinary text
        limit, how = self.metadata["max_tokens"], self.metadata["search"]
        rows = [[*library.encode(valid(line)).ids, END] for line in lines]
        for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
            if not line.strip() or len(row) - 1 > limit:
                raise ValueError(
                    f"sentence {number}: expected 1 to {limit} subwords, got "
                    f"{len(row) - 1 if line.strip() else 'none'}"
                )
        for start in range(0, len(rows), ROWS):
            batch = rows[start : start + ROWS]
            size = max(SHORTEST, 1 << (max(map(len, batch)) - 1).bit_length())
            source = np.array([row + [0] * (size - len(row)) for row in batch], np.int32)
            lengths = np.array([len(row) for row in batch], np.int32)
            found = self.search(
                source, lengths, how["beam"], how["length_penalty"], how["coverage_penalty"]
            )
            for tokens, scores in zip(found.tokens, found.scores, strict=True):
                yield [
                    (library.decode([t for t in each if t > END], skip_special_tokens=False), score)
                    for each, score in zip(tokens.tolist(), scores.tolist(), strict=True)
                    if np.isfinite(score)
                ]


def valid(text: str) -> str:
    r"""Replaces lone surrogates, which represent bytes that are not UTF-8.

    >>> valid("a\udcff") == "a\ufffd"
    True
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities ``[..., V]``."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def largest(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest values of each row in descending order, and their indices.

    >>> [part.tolist() for part in largest(np.array([[1.0, 3.0, 2.0]]), 2)]
    [[[3.0, 2.0]], [[1, 2]]]
    """
    count = min(count, values.shape[-1])
    index = np.argpartition(-values, count - 1, -1)[..., :count]
    order = np.argsort(-np.take_along_axis(values, index, -1), -1, kind="stable")
    index = np.take_along_axis(index, order, -1)
    return np.take_along_axis(values, index, -1), index


def sentences(content: bytes, name: str) -> list[str]:
    """Splits UTF-8 text into lines.

    Raises:
      ValueError: the text is empty, or a byte is not UTF-8.

    >>> sentences(b"A dog runs.\\r\\nTwo dogs.\\n", "lines.txt")
    ['A dog runs.', 'Two dogs.']
    """
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = f"0x{content[error.start]:02x} at position {error.start}"
        raise ValueError(f"{name}: expected UTF-8 text, got byte {byte}") from error
    if not text.strip():
        raise ValueError(f"{name}: expected one sentence per line, got an empty file")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def main() -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description="Translates with the model in this folder.")
    parser.add_argument(
        "file", nargs="?", help="file with one sentence per line (default: standard input)"
    )
    parser.add_argument("--text", action="append", help="a sentence; prints the beam with scores")
    args = parser.parse_args()
    if args.text and args.file:
        parser.error("expected a file or --text, got both")
    return runner.reported(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Writes the translations."""
    if sys.stdout is None:
        raise ValueError("the standard output is closed")
    if args.text:
        lines = args.text
    elif args.file:
        try:
            content = pathlib.Path(args.file).read_bytes()
        except OSError as error:
            raise ValueError(f"{args.file}: cannot be read ({error.strerror})") from error
        lines = sentences(content, args.file)
    else:
        lines = sentences(sys.stdin.buffer.read() if sys.stdin else b"", "standard input")
    for found in Translator(pathlib.Path(__file__).parent).translate(lines):
        for text, score in found if args.text else found[:1]:
            line = f"{score:8.3f}  {text}\n" if args.text else f"{text}\n"
            sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
