"""Time and memory of training steps and of streamed steps on this machine."""

import collections
import itertools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from lstm_jax.config import Config
from lstm_jax.models import Compiled
from lstm_jax.train.programs import own_programs

LENGTHS = {
    "characters": (64, 256, 1024, 4096),  # that the Transformer attends to
    "translation": (16, 64, 256, 1024),  # of the source, which both attend to
}
TIMED = {"steps": 3, "streamed": 200}

ConfigOf = Callable[[str, str, dict[str, object]], Config]


def write(
    command: str, folder: pathlib.Path, kinds: dict[str, dict[str, str]], config_of: ConfigOf
) -> None:
    """Runs the measurement ``command`` for each kind of model and writes FOLDER/COMMAND.json."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = {"steps": steps, "streamed": streamed}[command]
    found = {
        task: {kind: measured(task, kind, config_of) for kind in each}
        for task, each in kinds.items()
    }
    (folder / f"{command}.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def seconds(function: Callable[[], Any], count: int) -> float:
    """The median time of a call, excluding the first."""
    times = []
    for _ in range(1 + count):
        began = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def steps(task_name: str, kind: str, config_of: ConfigOf) -> dict[str, float]:
    """Number of parameters, and time and memory of an epoch's training steps, shape by shape."""
    config = config_of(task_name, kind, {})
    task = config.build_task()
    programs = own_programs(config, task)
    state = programs.new_state()
    counts, first = collections.Counter(), {}
    for batch in itertools.islice(task.batches(0), steps_of_an_epoch(task)):
        shape = batch["source" if "source" in batch else "inputs"].shape
        counts[shape] += 1
        first.setdefault(shape, batch)
    epoch = memory = 0.0
    for shape, count in counts.items():
        compiled = programs.take_step.lower(state, first[shape]).compile()
        analysis = compiled.memory_analysis()
        memory = max(memory, analysis.temp_size_in_bytes + analysis.argument_size_in_bytes)

        def step(batch: Any = first[shape]) -> Any:
            nonlocal state
            state, metrics = programs.take_step(state, batch)
            return metrics

        epoch += count * seconds(step, TIMED["steps"])
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "training steps of an epoch": counts.total(),
        "seconds of an epoch": epoch,
        "MB of a training step": memory / 1e6,
    }


def steps_of_an_epoch(task: Any) -> int:
    if task.unit == "sentences":
        return len(task._training.source) // task.batch_size
    return len(task._split[0]) // task.units_per_step


def streamed(task_name: str, kind: str, config_of: ConfigOf) -> dict[str, dict[str, float]]:
    """Time of a streamed step of one row, and bytes of its carry, by number of positions."""
    result = {}
    for length, model in streaming_models(task_name, kind, config_of):
        token = np.full((1, 1), 5, np.int32)
        if task_name == "translation":
            lengths = np.array([length], np.int32)
            carry = model.encode(source=np.full((1, length), 5, np.int32), lengths=lengths)
        else:
            carry = model.initial_carry(1)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))

        def step(model: Any = model, token: Any = token) -> Any:
            nonlocal carry
            carry, outputs = model(carry, tokens=token)
            return carry, outputs

        milliseconds = 1e3 * seconds(step, TIMED["streamed"])
        result[str(length)] = {"milliseconds": milliseconds, "kB of the carry": size / 1e3}
    return result


def streaming_models(
    task_name: str, kind: str, config_of: ConfigOf
) -> Iterator[tuple[int, Compiled]]:
    """Untrained models with the sizes of the configs, and the numbers of positions a step reads."""
    for length in LENGTHS[task_name]:
        context = task_name == "characters" and kind == "Transformer"
        values: dict[str, object] = {"model.context": length} if context else {}
        tokens = 6000 if task_name == "translation" else 65
        yield length, Compiled(config_of(task_name, kind, values).model.build(tokens, nnx.Rngs(0)))
