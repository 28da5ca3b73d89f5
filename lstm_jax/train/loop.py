"""The training loop, top to bottom."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from lstm_jax._files import make_folder, write_content
from lstm_jax.config import Config, OptimizerConfig, TrainConfig, task_name
from lstm_jax.errors import UserError
from lstm_jax.models import Compiled
from lstm_jax.tasks.base import Metrics, Task
from lstm_jax.tasks.protocols import Generates
from lstm_jax.train.checkpoint import Checkpoints, DamagedCheckpoint
from lstm_jax.train.devices import data_mesh
from lstm_jax.train.memory import check_memory
from lstm_jax.train.metrics import (
    Callback,
    MetricsLog,
    check_tensorboard,
    loss_curve,
    plot_content,
    read_metrics,
)
from lstm_jax.train.optimizer import build_optimizer
from lstm_jax.train.programs import Programs, own_programs
from lstm_jax.train.report import Clock, Report
from lstm_jax.train.start import Source, started_from
from lstm_jax.train.step import (
    NOT_YET,
    PlainMean,
    StepMetrics,
    TrainState,
    abstract_state,
    batch_spec,
    state_shardings,
    trained_model,
)
from lstm_jax.train.workdir import (
    RUN_FILE,
    claimed,
    load_workdir,
    read_run_file,
    stored_metadata,
)

VALIDATION_LOSS = "validation/loss"
SAMPLES = "samples"  # folder of a run for files that its task generates
# By default grain prefetches 500 batches in 16 threads, which compete with the steps for cores.
READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)


class Diverged(UserError):  # noqa: N818 - as Stopped
    """A loss was not finite."""


class Stopped(Exception):  # noqa: N818 - not an error: the user asked for it
    """Training was stopped by a signal and can be resumed; ``signal`` is its number."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


@dataclasses.dataclass
class _Sums:
    """Sums over the steps since the last line of metrics; part of a checkpoint."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0

    def add(self, metrics: StepMetrics) -> None:
        self.steps += 1
        self.loss += float(metrics.loss)
        self.grad_norm += float(metrics.grad_norm)


def train(
    what: Config | Task,
    workdir: str | pathlib.Path,
    report: Report | None = None,
    *,
    optimizer: OptimizerConfig | None = None,
    options: TrainConfig | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Metrics]:
    """Trains to the end, from the start or from the last checkpoint in ``workdir``.

    A run that was stopped or killed at any point and then resumed gives exactly the same metrics
    and parameters, bit for bit, as an uninterrupted run (on the same number of devices).

    Args:
      what: a run's config, or a task.
      workdir: the run's folder.
      report: receives progress and results; by default the console.
      optimizer: section ``[optimizer]``, if ``what`` is a task.
      options: section ``[train]``, if ``what`` is a task.
      callbacks: loggers, each called as ``callback(step, metrics)`` with the metrics of every line
        of ``metrics.jsonl``, and with the speed.

    Returns:
      The best checkpoint's metrics by split, as in ``results.json``.

    Raises:
      UserError: the folder belongs to another run or process, the data have changed, a step
        needs more memory than there is, or the loss is not finite.
      Stopped: SIGINT, SIGTERM or SIGHUP arrived; the step was finished and everything is saved.
    """
    workdir, report = pathlib.Path(workdir), report or Report()
    if isinstance(what, Config):
        task = what.build_task()
        # A task may have filled in values of its sections from the data.
        config = dataclasses.replace(what, data=task.data, model=task.model)
    else:
        config, task = config_of(what, optimizer, options), what
    # This precedes the claim of the folder: an impossible config must not occupy it.
    data_mesh(task.batch_size, config.train.num_devices)
    if config.train.tensorboard:
        check_tensorboard()
    for name, patience in (
        ("train.patience", config.train.patience),
        ("optimizer.average_patience", config.optimizer.average_patience),
    ):
        if patience and "validation" not in task.splits:
            raise UserError(f"{name}: expected 0, got {patience}: there is no validation split")
    source = None if has_checkpoint(workdir) else load_source(config.train.init_from)
    if isinstance(task, Generates) and config.train.sample_length:
        _check_prompt(task, config.train.sample_prompt)
    with contextlib.ExitStack() as claim:
        with signals(report) as came:
            programs = own_programs(config, task)
            check_memory(config, task, programs)
            claim.enter_context(claimed(workdir, config, task.known))
            for line in task.described():
                report.say(line)
            run_steps(config, task, workdir, report, programs, came, source, callbacks)
        return evaluate(config, task, workdir, report)


def _check_prompt(task: Generates, prompt: str) -> None:
    """Reports a prompt that the task cannot continue before training, not after it."""
    try:
        task.generate(None, prompt=prompt, length=0, temperature=1.0, seed=0)
    except UserError as error:
        raise UserError(f"train.sample_prompt: {str(error).removeprefix('prompt: ')}") from error


def config_of(
    task: Task, optimizer: OptimizerConfig | None = None, options: TrainConfig | None = None
) -> Config:
    """The config that describes the training of a task."""
    return Config(
        task_name(type(task)),
        task.data,
        task.model,
        optimizer or OptimizerConfig(),
        options or TrainConfig(),
    )


def run_steps(
    config: Config,
    task: Task,
    workdir: pathlib.Path,
    report: Report,
    programs: Programs,
    signals: Sequence[int],
    source: Source | None = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Takes the steps of a run, from its last checkpoint to its end.

    Args:
      config, task, workdir, report, callbacks: as for :func:`train`; the folder is already claimed.
      programs: the compiled programs of the run.
      signals: once it is not empty, the run saves everything and stops after the current step.
      source: the run from whose parameters this one starts, if any.
    """
    options, mesh = config.train, programs.mesh
    state = programs.new_state()
    if source is not None:
        state = started_from(source, state, task.known, report.say, report.warn)
        state = jax.device_put(state, state_shardings(state, mesh))
    batches = iter(task.batches(options.seed).to_iter_dataset(READING))
    sums, cost = _Sums(), None  # cost: selects the best checkpoint
    _refuse_lost_checkpoints(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", options.keep_checkpoints)
    checkpoints.remove_unfinished()
    _refuse_other_data(checkpoints, task, workdir)
    restored = checkpoints.restore_latest(state, report.warn)
    if restored is not None:
        state, meta = restored
        batches.set_state(meta["data"])
        sums = _Sums(**meta["sums"])
        report.say(f"resuming from step {int(state.step)} in {workdir}")

    units = task.units_per_step * options.accumulate
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    report.say(
        f"{config.task}: {parameters:,} parameters, {options.num_steps:,} steps of "
        f"{units:,} {task.unit} on {mesh.size} {jax.default_backend()} device(s), "
        f"in {workdir}"
    )
    log = MetricsLog(workdir, int(state.step), options.tensorboard, callbacks, report.warn)
    if restored is not None and log.digest() != restored[1].get("metrics", log.digest()):
        report.warn(f"{log.path}: differs from what this run wrote up to step {int(state.step)}")
    clock = Clock(units)
    criterion = f"validation/{task.criterion}"
    sign = -1 if task.maximize else 1
    costs = [sign * line[criterion] for line in log.lines() if criterion in line]
    rows = NamedSharding(mesh, batch_spec(options.accumulate))

    def next_batch() -> Any:
        if options.accumulate == 1:
            return next(batches)
        several = [next(batches) for _ in range(options.accumulate)]
        if len({tuple(map(np.shape, jax.tree.leaves(batch))) for batch in several}) > 1:
            raise UserError(
                f"train.accumulate: expected 1, since batches of {config.task} differ in shape, "
                f"got {options.accumulate}"
            )
        return jax.tree.map(lambda *arrays: np.stack(arrays), *several)

    def save() -> None:
        log.flush()
        meta = {
            "run": read_run_file(workdir).get("digest"),
            "metrics": log.digest(),
            "fingerprint": task.fingerprint,
            "data": batches.get_state(),
            "sums": dataclasses.asdict(sums),
        }
        checkpoints.save(state, meta, cost)

    def diverged(step: int, what: str) -> Diverged:
        report.end_progress()
        kept = checkpoints.latest_step()
        return Diverged(
            f"step {step}: {what}: not finite, training stops; the last good checkpoint is "
            f"{'none' if kept is None else f'that of step {kept}'}; try a lower "
            "optimizer.learning_rate or optimizer.max_norm"
        )

    with contextlib.closing(log), contextlib.closing(checkpoints):
        if signals:
            report.say(f"stopped before the first step; resume with: lstm-jax train {workdir}")
            raise Stopped(signals[0])
        for step in range(int(state.step) + 1, options.num_steps + 1):
            if out_of_patience(costs, options.patience):
                report.end_progress()
                report.say(
                    f"stopped early after step {step - 1}: the validation {task.criterion} has not "
                    f"been {'higher' if task.maximize else 'lower'} for {options.patience} "
                    "evaluations (train.patience)"
                )
                break
            batch = jax.device_put(next_batch(), rows)
            clock.start()
            state, metrics = programs.take_step(state, batch)
            metrics = jax.device_get(metrics)
            clock.stop()
            if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
                raise diverged(step, f"loss {metrics.loss}, gradient norm {metrics.grad_norm}")
            sums.add(metrics)

            last = step == options.num_steps
            logged = last or step % options.log_every == 0
            evaluated = "validation" in task.splits and (last or step % options.eval_every == 0)
            means = {
                "train/loss": sums.loss / sums.steps,
                "train/grad_norm": sums.grad_norm / sums.steps,
                "learning_rate": float(metrics.learning_rate),
            }
            line = functools.partial(_progress_line, task, options.num_steps, step, clock)
            report.progress(line(means), lasting=logged and not evaluated)
            if logged:
                log.write(step, means)
                log.board(step, {f"{task.unit} per second": clock.units_per_second})
                sums = _Sums()

            cost, better = None, False
            if evaluated:
                validation = task.evaluate(programs.model(state), "validation")
                cost = sign * validation[task.criterion]
                for name, value in validation.items():
                    if not math.isfinite(value):
                        raise diverged(step, f"validation {name} {value}")
                log.write(step, {f"validation/{name}": x for name, x in validation.items()})
                better = cost < min(costs, default=math.inf)
                costs.append(cost)
                mean, patience = state.average, config.optimizer.average_patience
                if isinstance(mean, PlainMean) and begins(mean, costs, patience):
                    start = jax.device_put(np.int32(step), state.step.sharding)
                    state = state._replace(average=mean._replace(start=start))
                    report.say(f"averaging of parameters begins after step {step}")
                written = (means if logged else {}) | {VALIDATION_LOSS: validation["loss"]}
                written[criterion] = validation[task.criterion]
                report.progress(line(written), lasting=True)

            ended = last or out_of_patience(costs, options.patience)
            if ended or better or signals or step % options.checkpoint_every == 0:
                save()
            if signals:
                report.end_progress()
                report.say(
                    f"stopped after step {step} of {options.num_steps}; everything is saved;  "
                    f"resume with: lstm-jax train {workdir}"
                )
                raise Stopped(signals[0])
        report.end_progress()


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether the folder holds a checkpoint, so that training would resume from it."""
    return any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*"))


def load_source(folder: str) -> Source | None:
    """The parameters of a run's best checkpoint; None for an empty name."""
    if not folder:
        return None
    path = pathlib.Path(folder)
    try:
        config, metadata = load_workdir(path), stored_metadata(path)
        model, _ = best_model(config, config.build_task(metadata), path, check_data=False)
    except UserError as error:
        raise UserError(f"train.init_from: {error}") from error
    return Source(path, nnx.to_pure_dict(nnx.state(model.module, nnx.Param)), metadata)


def out_of_patience(costs: Sequence[float], patience: int) -> bool:
    """Whether the lowest validation cost is at least ``patience`` evaluations old.

    >>> out_of_patience([3.0, 1.0, 2.0, 1.0], patience=2)
    True
    >>> out_of_patience([3.0, 1.0, 2.0, 0.5], patience=2)
    False
    """
    return 0 < patience < len(costs) - costs.index(min(costs)) if costs else False


def begins(mean: PlainMean, costs: Sequence[float], patience: int) -> bool:
    """Whether averaging of the parameters begins after the last evaluation (NT-ASGD).

    It begins when the last cost is above the lowest of the costs more than ``patience`` evaluations
    earlier.

    References:
      Stephen Merity, Nitish Shirish Keskar, Richard Socher, "Regularizing and Optimizing LSTM
      Language Models", ICLR 2018, algorithm 1.
    """
    earlier = costs[: -1 - patience]
    return int(mean.start) == NOT_YET and bool(earlier) and costs[-1] > min(earlier)


def _progress_line(
    task: Task, num_steps: int, step: int, clock: Clock, metrics: Mapping[str, float]
) -> str:
    """A step's metrics as in ``metrics.jsonl``, with the speed and the time left."""
    formats = {
        "train/loss": ".4f",
        VALIDATION_LOSS: ".4f",
        f"validation/{task.criterion}": ".4f",
        "learning_rate": ".2e",
    }
    parts = [f"step {step}/{num_steps}"]
    parts += [f"{name} {metrics[name]:{form}}" for name, form in formats.items() if name in metrics]
    if speed := clock.units_per_second:  # known after the second step
        parts += [f"{speed:,.0f} {task.unit}/s", f"{clock.left(num_steps - step)} left"]
    return " | ".join(parts)


@contextlib.contextmanager
def signals(report: Report) -> Iterator[list[int]]:
    """Collects signals in a list, so that set-up or the current step can finish and be saved.

    The second signal only repeats the message. The third ends the process immediately and leaves
    the last good checkpoint. SIGHUP arrives when a terminal is closed.
    """
    came: list[int] = []

    def take(number: int, frame: Any) -> None:
        came.append(number)
        if number == getattr(signal, "SIGHUP", None):
            report.leave_terminal()
        if len(came) == 2:
            with contextlib.suppress(RuntimeError):  # while another message is printed
                report.warn(
                    "stopping after this step, everything is being saved; a third signal kills"
                )
        if len(came) == 3:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {getattr(signal, name): None for name in names if hasattr(signal, name)}
    before = {number: signal.getsignal(number) for number in before}
    if before.get(getattr(signal, "SIGHUP", None)) is signal.SIG_IGN:
        del before[signal.SIGHUP]  # nohup ignores it
    if threading.current_thread() is not threading.main_thread():
        before = {}  # only the main thread may set handlers
    for number in before:
        signal.signal(number, take)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_lost_checkpoints(workdir: pathlib.Path) -> None:
    """Raises if the checkpoints are gone: a new training would mix with their results.

    The folder of the checkpoints is created before ``metrics.jsonl``, and ``results.json`` is
    written after a checkpoint.
    """
    folder, results = workdir / "checkpoints", workdir / "results.json"
    empty = not folder.is_dir() or not any(folder.iterdir())
    if (not folder.exists() and (workdir / "metrics.jsonl").exists()) or (
        empty and results.exists()
    ):
        beside = results if results.exists() else workdir / "metrics.jsonl"
        raise UserError(
            f"{folder}: expected the checkpoints of the run that wrote {beside.name}, got none; "
            "put them back, or take another --workdir"
        )


def _refuse_other_data(checkpoints: Checkpoints, task: Task, workdir: pathlib.Path) -> None:
    """Raises if the data have changed.

    This check precedes reading a state, whose shapes can depend on the data.
    """
    for step in checkpoints.steps():
        try:
            meta = checkpoints.meta(step)
        except DamagedCheckpoint:
            continue  # restoring reports it
        _refuse_other_run(meta, workdir)
        began_with = meta["fingerprint"]
        if began_with != task.fingerprint:
            raise UserError(
                f"{workdir}: the data have changed since this run began: expected SHA-256 "
                f"{began_with}, got {task.fingerprint}"
            )
        return


def _refuse_other_run(meta: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Raises if the metadata belong to another run: the parameters would have another meaning."""
    wrote, here = meta.get("run"), read_run_file(workdir).get("digest")
    if wrote is not None and wrote != here:
        raise UserError(
            f"{workdir}: its checkpoints belong to another run: expected {RUN_FILE} with the "
            f"digest {wrote}, got {here}"
        )


def best_model(
    config: Config, task: Task, workdir: pathlib.Path, *, check_data: bool = True
) -> tuple[Compiled, int]:
    """The model of a run's best checkpoint, in evaluation mode, and the checkpoint's step.

    Args:
      config: the run.
      task: its task.
      workdir: its folder.
      check_data: whether the data must be the same as when the run began.

    Raises:
      UserError: there is no checkpoint, it is damaged, or the data have changed.
    """
    optimizer = build_optimizer(config.optimizer, lambda step: 0.0)
    averages, triggered = config.optimizer.averages, config.optimizer.average_patience > 0
    graph, like = abstract_state(task, optimizer, averages, triggered)
    state, step = best_state(config, task, workdir, like, check_data=check_data)
    return trained_model(graph, state), step


def best_state(
    config: Config, task: Task, workdir: pathlib.Path, like: TrainState, *, check_data: bool = True
) -> tuple[TrainState, int]:
    """The state in a run's best checkpoint, on one device, and its step; see :func:`best_model`.

    Args:
      like: a state of the same shapes and types.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir}: no checkpoint yet")
    checkpoints = Checkpoints(workdir / "checkpoints", config.train.keep_checkpoints)
    with contextlib.closing(checkpoints):
        step = checkpoints.best_step()
        if step is None:
            raise UserError(f"{workdir}: no checkpoint yet")
        if check_data:
            _refuse_other_data(checkpoints, task, workdir)
        _refuse_other_run(checkpoints.meta(step), workdir)
        return checkpoints.restore(step, like)[0], step


def evaluate(
    config: Config, task: Task, workdir: pathlib.Path, report: Report
) -> dict[str, Metrics]:
    """Metrics of the best checkpoint and of simple methods, plots, and a sample.

    Writes ``results.json`` and ``plots/*.png`` into the run's folder.

    Returns:
      The metrics by split.

    Raises:
      UserError: there is no checkpoint, the data have changed, or a metric is not finite.
    """
    model, step = best_model(config, task, workdir)
    results = write_results(task, model, step, workdir)
    for note in task.notes():
        report.say(note)
    baselines = {split: task.baselines(split) for split in task.splits}
    for split in task.splits:
        rows = {f"this run, step {step}": results[split], **baselines[split]}
        report.metrics(f"{split} split", rows)
    # The curve shows the validation loss, if there is one.
    for path in _plot(task, model, workdir, baselines.get("validation", {}), report):
        report.say(f"plotted {path}")
    if isinstance(task, Generates) and config.train.sample_length:
        _generate_sample(task, model, config.train, task.unit, workdir, report)
    return results


def write_results(
    task: Task, model: Compiled, step: int, workdir: pathlib.Path
) -> dict[str, Metrics]:
    """Writes the metrics of a run's best model by split, with its step, into ``results.json``."""
    results = {split: task.evaluate(model, split) for split in task.splits}
    for split, metrics in results.items():
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise UserError(f"{split} split: {name}: expected a finite number, got {value}")
    notes = {"notes": task.notes()} if task.notes() else {}
    text = json.dumps({"step": step, **results, **notes}, indent=2, allow_nan=False) + "\n"
    write_content(workdir / "results.json", text)
    return results


def _generate_sample(
    task: Generates,
    model: Compiled,
    options: TrainConfig,
    unit: str,
    workdir: pathlib.Path,
    report: Report,
) -> None:
    """Generates one sample: text is printed, files are written into the run's folder."""
    text = ""
    for piece in task.generate(
        model,
        prompt=options.sample_prompt,
        length=options.sample_length,
        temperature=options.sample_temperature,
        seed=0,
    ):
        if isinstance(piece, str):
            text += piece
        else:
            make_folder(workdir / SAMPLES)
            write_content(workdir / SAMPLES / piece.name, piece.content)
            report.say(f"generated {workdir / SAMPLES / piece.name}")
    if text:
        report.say(f"\na sample of {options.sample_length} {unit}:\n")
        report.say(text + "\n")


def _plot(
    task: Task,
    model: Compiled,
    workdir: pathlib.Path,
    baselines: dict[str, Metrics],
    report: Report,
) -> Iterator[pathlib.Path]:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        report.warn("no plots: matplotlib is not installed (pip install 'lstm_jax[plot]')")
        return
    plots = workdir / "plots"
    make_folder(plots)
    curve = loss_curve(read_metrics(workdir / "metrics.jsonl"), task.loss_unit, baselines)
    for name, plot in (*task.plots(model), ("loss", curve)):
        suffix, content = plot_content(plot)
        path = plots / (name if "." in name else name + suffix)
        write_content(path, content)
        yield path
