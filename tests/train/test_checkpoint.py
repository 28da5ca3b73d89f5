"""Checkpoints: exact restoration, retention of the best and the latest, detection of damage."""

import ast
import contextlib
import errno
import gc
import json
import os
import pathlib
import pickle
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import lstm_jax
from lstm_jax.errors import UserError, printable
from lstm_jax.train import Checkpoints, TrainState, data_mesh
from lstm_jax.train.checkpoint import DamagedCheckpoint, digest
from lstm_jax.train.devices import AXIS


def make_state(step: int, *, average: bool = True) -> TrainState:
    """A small state with every kind of part, on two devices."""
    rng = np.random.default_rng(step)
    params = {
        "w": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
        "b": jnp.asarray([np.inf, -0.0, 1e-42], jnp.float32),
        "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 0.1))
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    mesh = data_mesh(4, 2)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        rest={
            "norm": {"mean": jnp.asarray(rng.normal(size=3), jnp.float32), "count": jnp.uint32(7)}
        },
        streams={"dropout": {"key": jax.random.key_data(jax.random.key(1))}},
        average=jax.tree.map(lambda leaf: leaf * 2, params) if average else None,
        opt_state=opt_state,
        carry=({"h": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},),
        key=jax.random.key_data(jax.random.key(step)),
    )
    carry = jax.device_put(state.carry, rows)
    return jax.device_put(state, everywhere)._replace(carry=carry)


@contextlib.contextmanager
def opened(folder, keep=3):
    with contextlib.closing(Checkpoints(folder, keep)) as checkpoints:
        yield checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    """Checkpoints of steps 1, 2 and 3; the first is the best."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with opened(folder) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.75), (3, 0.625)):
            checkpoints.save(make_state(step), {"data": {"at": step}}, loss)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
    """A copy of the checkpoints to damage."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def bits(tree) -> list[tuple[str, str, bytes]]:
    return [
        (jax.tree_util.keystr(path), str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


@pytest.mark.parametrize("average", [True, False])
def test_restored_state_is_identical(average, tmp_path):
    state = make_state(7, average=average)
    meta = {"data": {"next_index": 3}, "sums": {"loss": 0.1 + 0.2}, "fingerprint": "abc"}
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(state, meta, 0.5)
    with opened(tmp_path / "checkpoints") as checkpoints:
        restored, got = checkpoints.restore(7, make_state(0, average=average))
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert {key: got[key] for key in meta} == meta
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def test_digest_depends_on_names_types_shapes_and_bits():
    trees = [
        {"a": np.zeros(2, np.float32)},
        {"b": np.zeros(2, np.float32)},
        {"a": np.zeros(2, np.int32)},
        {"a": np.zeros((2, 1), np.float32)},
        {"a": -np.zeros(2, np.float32)},
        {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
    assert digest(trees[0]) == digest({"a": jnp.zeros(2)})


@pytest.mark.parametrize("reopened", [False, True], ids=["one process", "a process for each"])
def test_latest_and_best_checkpoints_are_kept(reopened, tmp_path):
    losses = {1: 0.9, 2: 0.3, 3: None, 4: 0.5, 5: 0.4, 6: None, 7: 0.35}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(opened(tmp_path, keep=2))
        for step, loss in losses.items():
            if reopened:
                stack.close()
                checkpoints = stack.enter_context(opened(tmp_path, keep=2))
            checkpoints.save(make_state(step), {}, loss)
            seen = {n: x for n, x in losses.items() if n <= step and x is not None}
            best = min(seen, key=seen.__getitem__)
            assert checkpoints.best_step() == best
            assert checkpoints.latest_step() == step
            latest = range(max(1, step - 1), step + 1)
            assert checkpoints.steps() == sorted({best, *latest}, reverse=True)
        restored, _ = checkpoints.restore(2, make_state(0))
    assert bits(restored) == bits(make_state(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "6", "7"]


@pytest.mark.parametrize("name", ["my [runs]", "**", "*", "gs:", "a?b", "%20#|", "two\nlines", "ü"])
def test_paths_with_special_characters_work(name, tmp_path, monkeypatch):
    """Orbax interprets some names as patterns or addresses."""
    links = tmp_path / "links"
    links.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(links))
    folder = tmp_path / name / "checkpoints"
    with opened(folder, keep=1) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.75), (3, 0.625)):
            checkpoints.save(make_state(step), {"data": step}, loss)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3"]
    with opened(folder, keep=1) as checkpoints:
        restored, meta = checkpoints.restore_latest(make_state(0), pytest.fail)
        flip(largest(folder / "3"))
        with pytest.raises(UserError) as caught:
            checkpoints.restore(3, make_state(0))
    assert bits(restored) == bits(make_state(3)) and meta["data"] == 3
    # The message names the user's path, not the link.
    assert str(caught.value).startswith(printable(f"{folder / '3'}: "))
    assert list(links.iterdir()) == []


def test_unreadable_first_checkpoint_is_reported(tmp_path, monkeypatch):
    """Simulates a disk that loses data; later checkpoints are not read back."""
    real_save = ocp.CheckpointManager.save
    reads: list[int] = []
    real_restore = ocp.CheckpointManager.restore

    def restore(self, step, *args, **kwargs):
        reads.append(step)
        return real_restore(self, step, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", restore)
    with opened(tmp_path / "good") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(make_state(step), {}, None)
    assert reads == [1]

    def lossy(self, step, *args, **kwargs):
        saved = real_save(self, step, *args, **kwargs)
        shutil.rmtree(tmp_path / "lossy" / str(step) / "state" / "d", ignore_errors=True)
        return saved

    monkeypatch.setattr(ocp.CheckpointManager, "save", lossy)
    with opened(tmp_path / "lossy") as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.save(make_state(1), {}, None)
    assert str(caught.value).startswith(f"{tmp_path / 'lossy' / '1'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: No space left\nSource: x"), "RESOURCE_EXHAUSTED: No sp"),
    ],
    ids=["system", "library"],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(error, reason, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    with opened(folder) as checkpoints:
        with monkeypatch.context() as full, pytest.raises(UserError) as caught:
            full.setattr(ocp.CheckpointManager, "save", fail)
            checkpoints.save(make_state(4), {}, None)
        message = str(caught.value)
        assert message.startswith(f"{folder / '4'}: cannot be written ({reason}")
        assert message.endswith("; the last good checkpoint is that of step 3")
        assert "\n" not in message
        assert checkpoints.restore_latest(make_state(0), pytest.fail)[0].step == 3


def test_best_is_the_latest_without_losses(tmp_path):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None and checkpoints.latest_step() is None
        assert checkpoints.restore_latest(make_state(0), pytest.fail) is None
        for step in (1, 2):
            checkpoints.save(make_state(step), {}, None)
        assert checkpoints.best_step() == 2


def test_saving_a_step_again_replaces_its_checkpoint(folder):
    other = make_state(3)._replace(key=jnp.array([5, 6], jnp.uint32))
    with opened(folder) as checkpoints:
        checkpoints.save(other, {"data": "new"}, 0.25)
        assert checkpoints.steps() == [3, 2, 1] and checkpoints.best_step() == 3
    with opened(folder) as checkpoints:
        restored, meta = checkpoints.restore(3, make_state(0))
    assert bits(restored) == bits(other) and meta["data"] == "new"


def files_of(checkpoint: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def largest(checkpoint: pathlib.Path) -> pathlib.Path:
    """The file that contains most of the arrays."""
    return max(files_of(checkpoint / "state"), key=lambda path: path.stat().st_size)


def halve(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


DAMAGE = {
    "data file cut short": lambda at: halve(largest(at)),
    "a byte of a data file flipped": lambda at: flip(largest(at)),
    "data file emptied": lambda at: empty(largest(at)),
    "data file removed": lambda at: largest(at).unlink(),
    "metadata of arrays removed": lambda at: (at / "state" / "_METADATA").unlink(),
    "meta removed": lambda at: shutil.rmtree(at / "meta"),
    "meta emptied": lambda at: [empty(path) for path in files_of(at / "meta")],
    "state removed": lambda at: shutil.rmtree(at / "state"),
    "folder emptied": lambda at: (shutil.rmtree(at), at.mkdir()),
}


@pytest.fixture
def no_traceback(capfd):
    """No library may print an error, neither immediately nor during garbage collection."""
    yield
    gc.collect()
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    assert "Exception ignored" not in printed.err


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_latest_checkpoint_is_skipped(kind, folder):
    DAMAGE[kind](folder / "3")
    warnings: list[str] = []
    with opened(folder) as checkpoints:
        restored, meta = checkpoints.restore_latest(make_state(0), warnings.append)
        assert checkpoints.best_step() == 1
        # Training reaches step 3 again.
        checkpoints.save(make_state(3), {}, 0.25)
        assert checkpoints.restore_latest(make_state(0), pytest.fail)[0].step == 3
    assert bits(restored) == bits(make_state(2)) and meta["data"] == {"at": 2}
    assert len(warnings) == 1 and str(folder / "3") in warnings[0]
    assert "\n" not in warnings[0]


@pytest.mark.usefixtures("no_traceback")
@pytest.mark.parametrize("harm", [empty, flip, pathlib.Path.unlink], ids=lambda f: f.__name__)
def test_damage_to_any_file_is_detected(harm, saved, tmp_path):
    """For any damaged file, the complete state or the previous checkpoint is restored."""
    for number, path in enumerate(files_of(saved / "3")):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        target = folder / path.relative_to(saved)
        if target.stat().st_size == 0:
            continue
        harm(target)
        warnings: list[str] = []
        with opened(folder) as checkpoints:
            restored, meta = checkpoints.restore_latest(make_state(0), warnings.append)
            assert checkpoints.best_step() == 1, path
        step = 2 if warnings else 3
        assert bits(restored) == bits(make_state(step)), path
        assert meta["data"] == {"at": step}, path
        assert all(str(folder / "3") in warning for warning in warnings)


@pytest.mark.usefixtures("no_traceback")
def test_unreadable_losses_do_not_stop_training(folder):
    """The best of the other checkpoints does not silently become the best."""
    for path in files_of(folder / "1"):
        if path.relative_to(folder / "1").parts[0] != "state":
            empty(path)
    warnings: list[str] = []
    with opened(folder) as checkpoints:
        with pytest.raises(DamagedCheckpoint, match="which could be the best; remove its folder"):
            checkpoints.best_step()
        restored, _ = checkpoints.restore_latest(make_state(0), warnings.append)
        checkpoints.save(make_state(4), {}, 0.7)
        assert checkpoints.best_step() == 3  # the lowest remaining loss
    assert bits(restored) == bits(make_state(3))
    assert len(warnings) == 1 and warnings[0].startswith(f"{folder / '1'}: damaged checkpoint (")
    assert warnings[0].endswith("; it is removed") and not (folder / "1").exists()


@pytest.mark.usefixtures("no_traceback")
def test_edited_loss_cannot_select_the_best(folder):
    """A digit of a loss is changed, with and without the list of digests."""
    path = folder / "1" / "meta" / "metadata"
    path.write_bytes(path.read_bytes().replace(b'"loss": 0.5', b'"loss": 0.9'))
    for digests in ("present", "missing"):
        if digests == "missing":
            (folder / "1" / "files.json").unlink()
        with opened(folder) as checkpoints, pytest.raises(DamagedCheckpoint, match="has changed"):
            checkpoints.best_step()


def test_swapped_checkpoints_are_rejected(folder):
    (folder / "1").rename(folder / "x")
    (folder / "2").rename(folder / "1")
    (folder / "x").rename(folder / "2")
    with opened(folder) as checkpoints, pytest.raises(UserError, match=r"do not fit \(it holds st"):
        checkpoints.restore(1, make_state(0))


def fail_to_read(monkeypatch, target: pathlib.Path, error: int) -> None:
    """Makes reading a file or listing a folder fail, also for root."""
    read, scan = pathlib.Path.read_bytes, os.scandir
    fault = OSError(error, os.strerror(error), str(target))

    def read_bytes(path):
        if path == target:
            raise fault
        return read(path)

    def scandir(path):
        if pathlib.Path(path) == target:
            raise fault
        return scan(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", read_bytes)
    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.ESTALE], ids=errno.errorcode.get)
@pytest.mark.parametrize("part", ["file", "folder"])
def test_unreadable_file_is_not_damage(part, error, folder, monkeypatch):
    """One line, and nothing is deleted: the next attempt finds the checkpoint intact."""
    target = largest(folder / "3") if part == "file" else folder / "3" / "state"
    before = files_of(folder)
    with opened(folder) as checkpoints, monkeypatch.context() as faulty:
        fail_to_read(faulty, target, error)
        for read in (
            lambda: checkpoints.restore_latest(make_state(0), pytest.fail),
            lambda: checkpoints.meta(3),
        ):
            with pytest.raises(UserError) as caught:
                read()
            assert not isinstance(caught.value, DamagedCheckpoint)
            expected = f"cannot be read ({os.strerror(error)}); nothing was deleted"
            assert str(caught.value) == f"{folder / '3'}: {expected}"
    assert files_of(folder) == before
    with opened(folder) as checkpoints:
        assert checkpoints.restore_latest(make_state(0), pytest.fail)[0].step == 3


def test_unreadable_loss_file_stops_the_run(folder, monkeypatch):
    """Without this error, the best checkpoint could be deleted."""
    fail_to_read(monkeypatch, folder / "1" / "meta" / "metadata", errno.EIO)
    with pytest.raises(UserError, match=r"cannot be read \(Input/output error\)"):
        Checkpoints(folder, 3)


def test_state_of_another_shape_is_not_damage(folder):
    """As after a change of the run's config."""
    like = make_state(0)
    like = like._replace(params={**like.params, "w": jnp.zeros((41, 30))})
    with opened(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore_latest(like, pytest.fail)
    assert str(caught.value).startswith(f"{folder / '3'}: its files are intact, but do not fit (")
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize("text", ["5", "[]", "{}", "null", "{", "[" * 10**5, '{"state/x": 1}'])
def test_damaged_digest_file_is_damage(text, folder):
    (folder / "3" / "files.json").write_text(text, "utf-8")
    warnings: list[str] = []
    with opened(folder) as checkpoints:
        assert checkpoints.restore_latest(make_state(0), warnings.append)[0].step == 2
    assert len(warnings) == 1 and "\n" not in warnings[0]


@pytest.mark.usefixtures("no_traceback")
def test_two_damaged_checkpoints_are_skipped(folder):
    flip(largest(folder / "3"))
    halve(largest(folder / "2"))
    warnings: list[str] = []
    with opened(folder) as checkpoints:
        restored, _ = checkpoints.restore_latest(make_state(0), warnings.append)
    assert bits(restored) == bits(make_state(1))
    assert all(str(folder / n) in text for n, text in zip("32", warnings, strict=True))


@pytest.mark.usefixtures("no_traceback")
def test_all_checkpoints_damaged_is_an_error(folder):
    for step in "123":
        flip(largest(folder / step))
    warnings: list[str] = []
    with opened(folder) as checkpoints, pytest.raises(UserError) as caught:
        checkpoints.restore_latest(make_state(0), warnings.append)
    assert str(folder) in str(caught.value) and "every checkpoint is damaged" in str(caught.value)
    assert len(warnings) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_interrupted_save_is_not_a_checkpoint(folder):
    """Orbax writes to a temporary folder and renames it."""
    (folder / "3").rename(folder / "3.orbax-checkpoint-tmp")
    with opened(folder) as checkpoints:
        assert checkpoints.steps() == [2, 1]
        restored, _ = checkpoints.restore_latest(make_state(0), pytest.fail)
        assert bits(restored) == bits(make_state(2))
        checkpoints.save(make_state(3), {}, None)
    with opened(folder) as checkpoints:
        assert checkpoints.restore_latest(make_state(0), pytest.fail)[0].step == 3


def test_nothing_is_unpickled(saved, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    with opened(saved) as checkpoints:
        restored, _ = checkpoints.restore(3, make_state(0))
    assert bits(restored) == bits(make_state(3))
    for path in files_of(saved):
        data = path.read_bytes()
        assert not (data.startswith(b"\x80") and data.endswith(b".")), path


def test_source_has_no_pickle():
    """The source uses no pickle module, function or argument; comments may mention them."""
    words = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "allow_pickle"}
    sources = sorted(pathlib.Path(lstm_jax.__file__).parent.rglob("*.py"))
    assert len(sources) > 20
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            used = {getattr(node, field, None) for field in ("id", "attr", "arg", "module")}
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            parts = {part for name in used if isinstance(name, str) for part in name.split(".")}
            assert not parts & words, f"{path}:{node.lineno}: {parts & words}"


def test_meta_is_json(saved):
    (text,) = (path for path in files_of(saved / "3" / "meta") if path.suffix == "")
    assert json.loads(text.read_text("utf-8"))["digest"] == digest(make_state(3))
