"""Wrong arguments give an error that names the argument, what was expected and what was passed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import unroll
from lstm_jax.cells import CELLS
from lstm_jax.cells.base import BaseCell, LSTMFamilyCell

T, B, D, H = 4, 2, 3, 5
SPACE = {"conv_lstm": (3, 2)}
FAMILY = sorted(name for name in CELLS if isinstance(CELLS[name](hidden_size=H), LSTMFamilyCell))
GATED = sorted(name for name in CELLS if hasattr(CELLS[name](hidden_size=H), "gate_fn"))

ones = jax.nn.initializers.ones

over_cells = pytest.mark.parametrize("name", CELLS)


def definitions(name, methods):
    """The class that defines each of a cell's methods."""
    kinds = type(CELLS[name](hidden_size=H)).__mro__
    return tuple(next(kind for kind in kinds if method in vars(kind)) for method in methods)


def over_definitions(*methods):
    """Runs a test over one cell of each set of classes that define these methods."""
    cells = {definitions(name, methods): name for name in reversed(CELLS)}
    return pytest.mark.parametrize("name", sorted(cells.values()))


# The methods that check the arguments of a step, and those that the checks use.
CHECKS = ("step", "prepared", "check_params", "check_x", "check_state", "init")
READ = ("num_feature_axes", "all_parameters", "input_size", "zero_state")

over_steps = over_definitions(*CHECKS, *READ)
over_sequences = over_definitions("num_feature_axes", "zero_state")


def test_cells_share_the_code_of_checks():
    """A cell with additional checks is a case of ``over_steps``, and is listed here."""
    own = {
        (name, method)
        for name in CELLS
        for method in CHECKS
        if definitions(name, [method]) != (BaseCell,)
    }
    assert own == {("conv_lstm", "check_x"), ("conv_lstm", "check_state")}


def fitting(name):
    """A cell with matching parameters, one input and a state."""
    cell = CELLS[name](hidden_size=H)
    space = SPACE.get(name, ())
    params = cell.init(jax.random.key(0), D)
    return cell, params, jnp.ones((B, *space, D)), cell.zero_state((B, *space))


def refused(error, *parts):
    """Asserts that the message contains these parts in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, parts)))


# ---- a step ----


@over_steps
def test_x_without_axes(name):
    cell, params, _, state = fitting(name)
    with refused(ValueError, "x must be [..., ", "D]", "got shape ()"):
        cell.step(params, state, jnp.float32(1.0))


@over_steps
def test_x_with_wrong_feature_size(name):
    cell, params, x, state = fitting(name)
    x = jnp.concatenate([x, x], -1)
    with refused(ValueError, "x must be [..., ", f"D={D}", f"got shape {x.shape}"):
        cell.step(params, state, x)


@over_steps
def test_complex_x(name):
    cell, params, x, state = fitting(name)
    with refused(TypeError, "x must be real, got complex64"):
        cell.step(params, state, x + 1j)


def test_x_without_the_spatial_axes():
    cell, params, x, state = fitting("conv_lstm")
    with refused(ValueError, "x must be [..., ", "D]", "got shape (3,)"):
        cell.step(params, state, x[0, 0, 0])


@over_steps
def test_state_with_wrong_structure(name):
    cell, params, x, state = fitting(name)
    kind = type(state).__name__
    expected = f"state must be {kind}({', '.join(state._fields)})"
    for other in (tuple(state), state._asdict(), state.h):
        with refused(TypeError, expected, f"got {type(other).__name__}"):
            cell.step(params, other, x)


@over_steps
def test_state_with_wrong_size(name):
    cell, params, x, state = fitting(name)
    for field in state._fields:
        size = getattr(cell.zero_state(), field).shape[-1]
        short = getattr(state, field)[..., :-1]
        with refused(
            ValueError,
            f"state.{field} must have shape [...",
            f"{size}]",
            f"got shape {short.shape}",
        ):
            cell.step(params, state._replace(**{field: short}), x)


@over_steps
def test_state_without_axes(name):
    cell, params, x, state = fitting(name)
    with refused(ValueError, "state.h must have shape [...", "got shape ()"):
        cell.step(params, state._replace(h=jnp.float32(0.0)), x)


def test_state_without_the_spatial_axes():
    cell, params, x, _ = fitting("conv_lstm")
    with refused(
        ValueError, "state.h must be [..., *space, H] with H=5", "(3, 3)", "got shape (2, 5)"
    ):
        cell.step(params, cell.zero_state((B,)), x)


@over_steps
def test_integer_state(name):
    cell, params, x, state = fitting(name)
    for field in state._fields:
        whole = state._replace(**{field: getattr(state, field).astype("int32")})
        with refused(TypeError, f"state.{field} must be float32 or a similar type, got int32"):
            cell.step(params, whole, x)


@over_steps
def test_a_missing_parameter(name):
    cell, params, x, state = fitting(name)
    for missing in params.keys() - {"w_ih"}:
        fewer = {key: array for key, array in params.items() if key != missing}
        with refused(TypeError, f"params of {type(cell).__name__} must have", missing, "got"):
            cell.step(fewer, state, x)


@over_steps
def test_without_the_parameter_that_determines_the_input_size(name):
    cell, params, x, state = fitting(name)
    fewer = {key: array for key, array in params.items() if key != "w_ih"}
    expected = f"params of {type(cell).__name__} must have", "w_ih", "got"
    with refused(TypeError, *expected):
        cell.step(fewer, state, x)
    with refused(TypeError, *expected):
        unroll(cell, fewer, jnp.stack([x] * T))


@over_steps
def test_an_extra_parameter(name):
    cell, params, x, state = fitting(name)
    with refused(TypeError, f"params of {type(cell).__name__} must have", "got", "surplus"):
        cell.step({**params, "surplus": jnp.ones(H)}, state, x)


@over_cells
def test_parameters_of_another_cell(name):
    cell, params, x, state = fitting(name)
    for other in CELLS:
        theirs = CELLS[other](hidden_size=H).init(jax.random.key(0), D)
        same = {key: array.shape for key, array in theirs.items()}
        if same == {key: array.shape for key, array in params.items()}:
            continue
        with refused((TypeError, ValueError), "params", f"of {type(cell).__name__}", "must have"):
            cell.step(theirs, state, x)


@over_steps
def test_parameters_with_wrong_hidden_size(name):
    cell, _, x, state = fitting(name)
    params = CELLS[name](hidden_size=2 * H).init(jax.random.key(0), D)
    with refused(
        ValueError, f"of {type(cell).__name__} with hidden_size={H} must have shape", "got ("
    ):
        cell.step(params, state, x)


# ---- a sequence ----


def sequence(name):
    cell, params, x, state = fitting(name)
    return cell, params, jnp.stack([x] * T), state


@over_sequences
def test_xs_without_a_time_axis(name):
    cell, params, x, _ = fitting(name)
    row = x[0]  # only features (and space)
    with refused(ValueError, "xs must be [T, ..., ", "D]", f"got shape {row.shape}"):
        unroll(cell, params, row)


@over_sequences
def test_xs_with_wrong_feature_size(name):
    cell, params, xs, _ = sequence(name)
    with refused(ValueError, "xs must be [T, ..., ", f"D={D}", f"got shape {xs[..., 1:].shape}"):
        unroll(cell, params, xs[..., 1:])


@over_sequences
def test_state_with_wrong_batch_shape(name):
    cell, params, xs, _ = sequence(name)
    space = SPACE.get(name, ())
    state = cell.zero_state((B + 1, *space))
    shapes = (B, *space, cell.output_size), state.h.shape
    with refused(ValueError, f"state.h must have shape {shapes[0]}", f"got shape {shapes[1]}"):
        unroll(cell, params, xs, state)


@over_sequences
def test_state_of_another_type(name):
    cell, params, xs, state = sequence(name)
    expected = f"state must be {type(state).__name__}({', '.join(state._fields)}), got tuple"
    with refused(TypeError, expected):
        unroll(cell, params, xs, tuple(state))
    with refused(TypeError, "state.h must be float32", "got int32"):
        unroll(cell, params, xs, state._replace(h=state.h.astype("int32")))


@over_sequences
@pytest.mark.parametrize(
    ("lengths", "error", "parts"),
    [
        (
            np.ones(B + 1, int),
            ValueError,
            ("lengths must have", f"({B},)", f"got shape ({B + 1},)"),
        ),
        (np.ones((B, 1), int), ValueError, ("lengths must have", f"({B},)", f"shape ({B}, 1)")),
        (np.int32(2), ValueError, ("lengths must have", f"({B},)", "got shape ()")),
        (np.ones(B), TypeError, ("lengths must be integers, got float",)),
        (np.ones(B, bool), TypeError, ("lengths must be integers, got bool",)),
        (np.array([1, -1]), ValueError, ("lengths must lie between 0 and T=4", "-1 to 1")),
        (np.array([5, 1]), ValueError, ("lengths must lie between 0 and T=4", "1 to 5")),
    ],
)
def test_lengths(name, lengths, error, parts):
    cell, params, xs, _ = sequence(name)
    with refused(error, *parts):
        unroll(cell, params, xs, lengths=lengths)


@over_sequences
@pytest.mark.parametrize(
    ("resets", "error", "parts"),
    [
        (np.ones((T, B + 1), bool), ValueError, (f"({T}, {B})", f"got shape ({T}, {B + 1})")),
        (np.ones((B, T), bool), ValueError, (f"({T}, {B})", f"got shape ({B}, {T})")),
        (np.ones(T, bool), ValueError, (f"({T}, {B})", f"got shape ({T},)")),
        (np.ones((T, B), np.int32), TypeError, ("booleans, got int32",)),
        (np.ones((T, B), np.float32), TypeError, ("booleans, got float32",)),
    ],
)
def test_resets(name, resets, error, parts):
    cell, params, xs, _ = sequence(name)
    with refused(error, "resets must", *parts):
        unroll(cell, params, xs, resets=resets)


@over_cells
def test_engines(name):
    cell, params, xs, _ = sequence(name)
    with refused(ValueError, "engine must be one of auto, scan", "got 'warp'"):
        unroll(cell, params, xs, engine="warp")
    if not cell.is_linear:
        with refused(ValueError, "engine 'associative' is for cells whose recurrence is linear"):
            unroll(cell, params, xs, engine="associative")


@pytest.mark.parametrize(
    ("name", "options"),
    [("min_lstm", {}), ("min_gru", {}), ("ind_rnn", {"activation_fn": "identity"})],
)
def test_the_associative_engine_has_the_checks_of_a_step(name, options):
    _, params, xs, _ = sequence(name)
    cell = CELLS[name](hidden_size=H, **options)
    who = type(cell).__name__
    fewer = {key: array for key, array in params.items() if key != "b"}
    with refused(TypeError, f"params of {who} must have", "got"):
        unroll(cell, fewer, xs, engine="associative")
    wider = CELLS[name](hidden_size=2 * H).init(jax.random.key(0), D)
    with refused(ValueError, f"of {who} with hidden_size={H} must have shape", "got ("):
        unroll(cell, wider, xs, engine="associative")
    with refused(TypeError, "x must be real, got complex64"):
        unroll(cell, params, xs + 1j, engine="associative")
    with refused(ValueError, f"x must be [..., D] with D={D}", "got shape"):
        cell.linear_recurrence(params, xs[..., 1:])


# ---- options ----


@over_definitions("__post_init__")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"hidden_size": 0}, ValueError, "hidden_size must be at least 1, got 0"),
        ({"hidden_size": 2.0}, TypeError, "hidden_size must be an int, got 2.0"),
        ({"hidden_size": True}, TypeError, "hidden_size must be an int, got True"),
        ({"dtype": "int32"}, TypeError, "dtype must be a floating type such as 'float32', got 'i"),
        ({"dtype": "complex64"}, TypeError, "dtype must be a floating type"),
        ({"dtype": "float33"}, TypeError, "dtype must be a floating type such as 'float32', got"),
        ({"param_dtype": "int8"}, TypeError, "param_dtype must be a floating type such as"),
        ({"param_dtype": None}, TypeError, "param_dtype must be a floating type such as"),
        (
            {"learn_initial_state": 1},
            TypeError,
            "learn_initial_state must be True or False, got 1",
        ),
    ],
)
def test_options_of_every_cell(name, options, error, message):
    with refused(error, message):
        CELLS[name](**{"hidden_size": H} | options)


@over_definitions("__init__")
def test_an_unknown_option(name):
    with refused(TypeError, "unexpected keyword argument 'colour'"):
        CELLS[name](hidden_size=H, colour="red")


@over_definitions("__init__")
def test_options_by_position(name):
    with refused(TypeError, "positional argument"):
        CELLS[name](H, "bfloat16")


@over_definitions("init", "all_parameters")
@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_impossible_input_size(name, size, error):
    with refused(error, "input_size must be", f"got {size}"):
        CELLS[name](hidden_size=H).init(jax.random.key(0), size)


FUNCTION = [
    ("tahn", ValueError, "must be a function or one of ", "tanh", "got 'tahn'"),
    (3.0, TypeError, "must be a function or the name of one, got 3.0"),
]
LIMIT = [
    (0, ValueError, "must be above 0, got 0"),
    (-1.5, ValueError, "must be above 0, got -1.5"),
    (float("nan"), ValueError, "must be above 0, got nan"),
    ("3", TypeError, "must be a positive number or None, got '3'"),
    (True, TypeError, "must be a positive number or None, got True"),
]
CHRONO = [
    (2, ValueError, "must be above 2 (steps), got 2"),
    (1.5, ValueError, "must be above 2 (steps), got 1.5"),
    ("long", TypeError, "must be a positive number or None, got 'long'"),
]


def cases(names, options):
    return [
        (name, option, *rest)
        for name in names
        for option, table in options.items()
        for rest in table
        if hasattr(CELLS[name](hidden_size=H), option)
    ]


@pytest.mark.parametrize(
    ("name", "option", "value", "error", "parts"),
    [
        (name, option, value, error, parts)
        for name, option, value, error, *parts in (
            cases(GATED, {"gate_fn": FUNCTION, "chrono": CHRONO})
            + cases(CELLS, {"activation_fn": FUNCTION, "preactivation_clip": LIMIT})
            + cases(FAMILY, {"output_fn": FUNCTION, "cell_clip": LIMIT})
        )
    ],
)
def test_options_of_the_families(name, option, value, error, parts):
    with refused(error, option, *parts):
        CELLS[name](hidden_size=H, **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [
        ("lstm_1997", {"block_size": 2}, ("block_size", "hidden_size", "2")),  # 5 cells
        ("lstm_1997", {"block_size": 0}, ("block_size must be at least 1, got 0",)),
        ("lstm_1997", {"block_size": 1.0}, ("block_size must be an int, got 1.0",)),
        ("lstm_1997", {"forget_bias": 0.5}, ("forget_bias", "0.5")),
        ("lstm_1997", {"chrono": 10.0}, ("chrono", "10.0")),
        ("nfg", {"forget_bias": 0.5}, ("forget_bias must be left at 0.0", "nfg", "got 0.5")),
        ("nfg", {"chrono": 10.0}, ("chrono must be left at None", "nfg", "got 10.0")),
        ("noaf", {"output_fn": "tanh"}, ("output_fn must be left at None", "noaf", "got 'tanh'")),
        ("np", {"peephole_init": ones}, ("peephole_init must be left at zeros", "'np'", "ones")),
        ("coupled", {"peephole_init": ones}, ("peephole_init must be left at zeros", "ones")),
        ("coupled", {"peepholes": "no"}, ("peepholes must be True or False, got 'no'",)),
        ("gru", {"reset_after": 1}, ("reset_after must be True or False, got 1",)),
        ("projected", {"proj_size": 0}, ("proj_size must be at least 1, got 0",)),
        ("projected", {"proj_size": "2"}, ("proj_size must be an int, got '2'",)),
        ("layer_norm", {"epsilon": 0.0}, ("epsilon must be above 0, got 0.0",)),
        ("layer_norm", {"epsilon": -1e-5}, ("epsilon must be above 0, got -1e-05",)),
        ("mogrifier", {"rounds": -1}, ("rounds must be at least 0 and at most 100, got -1",)),
        ("mogrifier", {"rounds": 10**10}, ("at most 100, got 10000000000",)),
        ("mogrifier", {"rounds": 1.5}, ("rounds must be an int, got 1.5",)),
        ("mogrifier", {"rank": 0}, ("rank must be at least 1, got 0",)),
        ("mogrifier", {"rank": 1.5}, ("rank must be an int, got 1.5",)),
        ("slstm", {"num_heads": 2}, ("num_heads", "hidden_size", "2")),  # 5 cells
        ("slstm", {"num_heads": 0}, ("num_heads must be at least 1, got 0",)),
        ("slstm", {"forget_fn": "tanh"}, ("forget_fn must be", "sigmoid", "exp", "got 'tanh'")),
        ("min_lstm", {"gate_fn": "hard_sigmoid"}, ("gate_fn", "'sigmoid'", "got 'hard_sigmoid'")),
        ("ea_lstm", {"static_size": 0}, ("static_size must be at least 1, got 0",)),
        ("ea_lstm", {"static_size": None}, ("static_size must be an int, got None",)),
        ("conv_lstm", {"kernel_size": ()}, ("kernel_size must", "got ()")),
        ("conv_lstm", {"kernel_size": (3, 3, 3, 3)}, ("kernel_size must", "got (3, 3, 3, 3)")),
        ("conv_lstm", {"kernel_size": (3, 0)}, ("kernel_size", "0")),
        ("conv_lstm", {"kernel_size": (3, 1.5)}, ("kernel_size", "1.5")),
        ("conv_lstm", {"peepholes": 1}, ("peepholes must be True or False, got 1",)),
        (
            "conv_lstm",
            {"spatial_shape": (3, 2)},
            ("spatial_shape must be left at None", "no peepholes", "got (3, 2)"),
        ),
        ("conv_lstm", {"peephole_init": ones}, ("peephole_init must be left at zeros", "ones")),
        ("conv_lstm", {"peepholes": True, "spatial_shape": (4,)}, ("spatial_shape", "(4,)")),
        ("conv_lstm", {"peepholes": True, "spatial_shape": (4, 0)}, ("spatial_shape", "0")),
    ],
)
def test_options_of_one_cell(name, options, parts):
    with refused((TypeError, ValueError), *parts):
        CELLS[name](hidden_size=H, **options)


def test_an_unknown_variant():
    odyssey = CELLS["np"].func
    with refused(ValueError, "variant must be", "nig", "got 'nothing'"):
        odyssey(H, variant="nothing")
    with refused(TypeError, "variant"):
        odyssey(H)


def test_more_static_features_than_features():
    cell = CELLS["ea_lstm"](hidden_size=H, static_size=3)
    with refused(ValueError, "input_size", "static_size", "3"):
        cell.init(jax.random.key(0), 3)


def test_x_whose_spatial_shape_does_not_fit_the_peepholes():
    cell = CELLS["conv_lstm"](hidden_size=H, peepholes=True, spatial_shape=(3, 2))
    params = cell.init(jax.random.key(0), D)
    with refused(ValueError, "(3, 2)", "(4, 2"):
        cell.step(params, cell.zero_state((4, 2)), jnp.ones((4, 2, D)))
