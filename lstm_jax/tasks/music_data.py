"""The section ``[data]`` of music: the pieces, and how files are read and written."""

import dataclasses

from lstm_jax.config import Section, option
from lstm_jax.data import NAMED_MUSIC, Piece, fetch, read_collection
from lstm_jax.errors import UserError

SETS = tuple(NAMED_MUSIC)


@dataclasses.dataclass(frozen=True)
class MusicData(Section):
    """Section ``[data]`` of task ``music``."""

    pieces: str = option(
        "jsb", f"{', '.join(SETS)}, a .mat or .json file of piano rolls, or a folder of MIDI files",
        path_or=SETS,
    )  # fmt: skip
    frames_per_beat: int = option(
        1, "frames per quarter note, in MIDI files that are read or written", at_least=1, at_most=96
    )
    held_out_fraction: float = option(
        0.1,
        "fraction of a folder's files for validation, and the same for the test",
        above=0,
        below=0.5,
    )
    transpose: int = option(
        0,
        "training pieces are transposed by up to this number of semitones, up or down",
        at_least=0,
    )
    lanes: int = option(16, "rows of a batch, each reading the pieces in its own order", at_least=1)
    window: int = option(
        64, "frames per row and step, through which gradients flow back", at_least=1
    )
    tempo: float = option(90.0, "beats per minute of generated tunes", at_least=10, at_most=400)
    instrument: int = option(
        0, "General MIDI program of generated tunes; 0: grand piano", at_least=0, at_most=127
    )

    def read(self) -> dict[str, list[Piece]]:
        """The pieces by split.

        Raises:
          UserError: they are missing or broken.
        """
        path = fetch(NAMED_MUSIC[self.pieces]) if self.pieces in SETS else self.pieces
        try:
            return read_collection(path, self.frames_per_beat, self.held_out_fraction)
        except UserError as error:
            raise UserError(f"data.pieces: {error}") from error
