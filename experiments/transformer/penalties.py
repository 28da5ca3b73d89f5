"""Chooses the beam search penalties of trained translators on the validation split.

    python experiments/transformer/penalties.py runs/multi30k...

prints the validation BLEU for each pair of length penalty and coverage penalty, and the test BLEU
for the config's pair and for the best pair.
"""

import itertools
import json
import pathlib
import sys

from lstm_jax.tasks.translating import Search, bleu, translations
from lstm_jax.train import load_run

LENGTH = (0.6, 1.0, 1.4, 1.8)  # alpha of Wu et al. 2016
COVERAGE = (0.0, 0.2)  # beta


def score(loaded, split: str, search: Search) -> float:
    source, target = loaded.task._pairs[split]
    found = translations(loaded.model, loaded.task.tokenizer.encode(source), search)
    lines = [loaded.task.tokenizer.decode(beam[0].tokens) for beam in found]
    return bleu(lines, target)[0]


def main(folder: pathlib.Path) -> None:
    loaded = load_run(folder)
    own = loaded.task.model.search
    validation = {
        pair: score(loaded, "validation", Search(own.beam, *pair))
        for pair in itertools.product(LENGTH, COVERAGE)
    }
    for pair, found in validation.items():
        print(f"length penalty {pair[0]}, coverage penalty {pair[1]}: validation BLEU {found:.2f}")
    best = max(validation, key=lambda pair: validation[pair])
    tested = {str(pair): score(loaded, "test", Search(own.beam, *pair)) for pair in (own[1:], best)}
    print("test BLEU:", json.dumps(tested))
    found = {"validation": {str(pair): each for pair, each in validation.items()}, "test": tested}
    (folder / "penalties.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        main(pathlib.Path(name))
