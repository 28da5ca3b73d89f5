"""Parallel text: two files whose lines are translations of each other."""

import gzip
import pathlib
import zlib
from collections.abc import Sequence

import grain
import numpy as np

from lstm_jax.data.pipelines import Batch, bucketed
from lstm_jax.data.tokens import padded
from lstm_jax.errors import UserError, expect


def read_lines(path: str | pathlib.Path) -> list[str]:
    """The lines of a UTF-8 text file, plain or compressed by gzip, without their line ends.

    Only line feeds end a line, so that line numbers agree with those of other programs.

    Raises:
      UserError: the file is missing, empty, a damaged gzip file, or not UTF-8 (the message gives
        the line).

    >>> read_lines("/no/such/file.en.gz")
    Traceback (most recent call last):
    lstm_jax.errors.UserError: /no/such/file.en.gz: no such file
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(f"{path}: expected a whole gzip file ({error})") from error
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not lines[-1]:
        lines.pop()  # a line feed ends the last line
    expect(lines, str(path), "lines of text", "an empty file")
    decoded = []
    for number, line in enumerate(lines, 1):
        try:
            decoded.append(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: line {number}: expected UTF-8 text, got byte "
                f"0x{line[error.start]:02x} at position {error.start}"
            ) from error
    return decoded


def read_parallel(
    source: str | pathlib.Path, target: str | pathlib.Path
) -> tuple[list[str], list[str]]:
    """The lines of two files that are translations of each other, line by line.

    Raises:
      UserError: the files have different numbers of lines, only one line of a pair is empty, or as
        in :func:`read_lines`.
    """
    pair = read_lines(source), read_lines(target)
    numbers = f"{source}: {len(pair[0])} lines, {target}: {len(pair[1])} lines"
    expect(len(pair[0]) == len(pair[1]), "parallel text", "as many lines in both files", numbers)
    for number, (one, other) in enumerate(zip(*pair, strict=True), 1):
        if bool(one.strip()) != bool(other.strip()):
            empty = source if not one.strip() else target
            raise UserError(f"{empty}: line {number}: expected a translation, got an empty line")
    filled = [n for n, line in enumerate(pair[0]) if line.strip()]
    expect(filled, f"{source}", "lines of text", "empty lines only")
    return [pair[0][n] for n in filled], [pair[1][n] for n in filled]


def least_padding(lengths: np.ndarray, buckets: int) -> tuple[int, ...]:
    """The bucket bounds that minimise the total padded length of sequences.

    They are found by dynamic programming. With n_j sequences no longer than the j-th length l_j,
    the cost of the first j lengths in k buckets is::

        C_k(j) = min_{i < j} C_{k-1}(i) + (n_j - n_i) l_j

    Args:
      lengths: integers ``[N]``.
      buckets: the largest number of bounds; there are fewer if there are fewer lengths.

    Returns:
      The bounds in increasing order; the last is the longest length.

    >>> least_padding(np.array([3, 3, 4, 5, 9, 20]), buckets=3)
    (5, 9, 20)
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    below = np.append(0, np.cumsum(counts))
    costs, chosen = np.append(0, np.full(len(sizes), np.inf)), []
    for _ in range(min(buckets, len(sizes))):
        # [i, j]: the last bucket holds the lengths from i up to j
        options = costs[:-1, None] + (below[1:] - below[:-1, None]) * sizes
        options[np.tri(len(sizes), k=-1, dtype=bool)] = np.inf
        chosen.append(options.argmin(0))
        costs = np.append(np.inf, options.min(0))
    bounds, j = [], len(sizes) - 1
    for before in reversed(chosen):
        bounds.append(int(sizes[j]))
        j = before[j] - 1
    return tuple(reversed(bounds))


def bucketed_pairs(
    sources: Sequence[np.ndarray],
    targets: Sequence[np.ndarray],
    batch_size: int,
    buckets: int,
    seed: int,
) -> grain.MapDataset:
    """Pairs of sequences in batches of similar length, padded to a few shapes.

    A program is compiled at most once for each bucket.

    Args:
      sources: integers ``[S_n]`` of N pairs.
      targets: integers ``[T_n]``.
      batch_size: B, at most N.
      buckets: the largest number of buckets; there are fewer if lengths hardly differ.
      seed: determines the order, which differs in each epoch.

    Returns:
      An endless data set of batches: ``source`` and ``target``, int32 ``[B, L]`` with padding past
      each row's end, ``source_lengths`` and ``target_lengths``, int32 ``[B]``.

    >>> xs = [np.arange(4, 4 + n) for n in (2, 3, 9, 8)]
    >>> batches = bucketed_pairs(xs, xs, batch_size=2, buckets=2, seed=0)
    >>> sorted(batches[n]["source"].shape for n in range(2))
    [(2, 3), (2, 9)]
    """
    longest = np.array([max(len(x), len(y)) for x, y in zip(sources, targets, strict=True)])

    def batch(chosen: tuple[np.ndarray, int]) -> Batch:
        rows, length = chosen
        arrays: dict[str, np.ndarray] = {}
        for name, side in (("source", sources), ("target", targets)):
            arrays[name], arrays[f"{name}_lengths"] = padded([side[n] for n in rows], length)
        return arrays

    bounds = least_padding(longest, buckets)
    return bucketed(longest, bounds, batch_size, seed).map(batch)
