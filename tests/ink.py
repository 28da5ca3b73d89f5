"""Synthetic handwriting: words of a few letters, each one or two strokes, by many writers."""

import pathlib

import numpy as np

TURN = np.linspace(0, 2 * np.pi, 12)
LETTERS = {
    "i": [np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 1.5]])],
    "l": [np.array([[0.0, 3.0], [0.0, 0.0]])],
    "o": [np.stack([0.5 - np.cos(TURN) / 2, 0.5 + np.sin(TURN) / 2], 1)],
    "v": [np.array([[0.0, 1.0], [0.5, 0.0], [1.0, 1.0]])],
}
WORDS = ("oil", "viol", "lo", "iv", "vol", "olio", "vivo", "i", "ill")


def written(word: str, rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of a word, y upwards."""
    strokes, left = [], 0.0
    for letter in word:
        shape = LETTERS[letter]
        for stroke in shape:
            points = stroke * rng.uniform(0.9, 1.1, 2) + (left, 0)
            strokes.append(points + rng.normal(0, 0.02, points.shape))
        left += max(stroke[:, 0].max() for stroke in shape) + 0.4
    return strokes


def write_ink(path: pathlib.Path, pieces: int = 120, seed: int = 0) -> pathlib.Path:
    """A CSV file of words by twelve writers."""
    rng = np.random.default_rng(seed)
    lines = ["x,y,pen,ink,text,writer"]
    for n in range(pieces):
        word = WORDS[n % len(WORDS)]
        end = f"{n},{word},{n % 12:02}"
        for stroke in written(word, rng):
            lines += [f"{x:.4f},{-y:.4f},1,{end}" for x, y in stroke]
            lines.append(f"0,0,0,{end}")
    path.write_text("\n".join(lines) + "\n")
    return path
