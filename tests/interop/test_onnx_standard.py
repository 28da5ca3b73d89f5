"""The standard's own node tests, run with the importer."""

import functools
import warnings

import jax
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs onnx")

from lstm_jax.interop.onnx import from_onnx  # noqa: E402
from lstm_jax.interop.onnx.operators import OPERATORS, TYPES  # noqa: E402

# Tests run each compiled program once or twice.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

RECURRENT = {"test_lstm_": 6, "test_gru_": 6, "test_rnn_": 1, "test_simple_rnn_": 5}  # how many
CASES = 4  # of each plain operator; most differ in types alone


@pytest.fixture(scope="module")
def cases():
    """Tests of a single node by its operator, and all recurrent tests by their names."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of NumPy, where tests provoke infinities
        collected = collect_testcases(None)
    found = {
        prefix: [case for case in collected if case.name.startswith(prefix)] for prefix in RECURRENT
    }
    for case in collected:
        if len(case.model.graph.node) == 1 and _types(case.model) <= set(TYPES):
            found.setdefault(case.model.graph.node[0].op_type, []).append(case)
    return found


def _types(model):
    """The types of all inputs and outputs; None if one is not a tensor."""
    return {
        onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        if value.type.HasField("tensor_type")
        else None
        for value in (*model.graph.input, *model.graph.output)
    }


def check(case, compiled=lambda f: f):
    """Compares outputs, shapes and types with the standard's, within its tolerances."""
    f = from_onnx(case.model, engine="scan")
    for inputs, expected in case.data_sets:
        given = [_array(value) for value in inputs]
        outputs = compiled(f)(**dict(zip(f.inputs, given, strict=True)))
        for name, wanted in zip(f.outputs, map(_array, expected), strict=True):
            got = np.asarray(outputs[name])
            assert got.dtype == wanted.dtype, f"{case.name}: {name}"
            np.testing.assert_allclose(
                got.astype(np.float64) if got.dtype.kind == "V" else got,
                wanted.astype(np.float64) if wanted.dtype.kind == "V" else wanted,
                rtol=case.rtol,
                atol=case.atol,
                err_msg=f"{case.name}: {name}",
                strict=True,
            )


def _array(value):
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


@pytest.mark.parametrize("prefix", RECURRENT)
def test_every_recurrent_node_test_passes(cases, prefix):
    assert len(cases[prefix]) >= RECURRENT[prefix]
    for case in cases[prefix]:
        check(case, quickly)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_node_tests_of_plain_operators_pass(cases, operator):
    with jax.enable_x64(True):
        for case in cases[operator][:CASES]:
            if "training" in case.name or "empty_set" in case.name:
                continue  # no random numbers, and no maximum of an empty array
            check(case)


@pytest.mark.parametrize("name", ["test_scan9_sum", "test_scan9_multi_state", "test_scan9_scalar"])
def test_node_tests_of_scan_pass(cases, name):
    (case,) = (case for case in cases["Scan"] if case.name == name)
    check(case)


def test_node_tests_of_if_pass(cases):
    (case,) = (case for case in cases["If"] if case.name == "test_if")
    check(case)
