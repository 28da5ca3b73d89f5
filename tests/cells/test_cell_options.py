"""The effect of options on initial parameters, and functions by name."""

import copy
import dataclasses
import functools
import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lstm_jax.cells import ACTIVATIONS, CELLS, LSTMFamilyCell
from lstm_jax.sequence import DropConnect
from tests import oracles

D, H = 5, 6
KEY = jax.random.key(0)

# The gates of each cell's bias in order, and the letters of the gates that retain and that write.
GATES = {
    "lstm": "ifgo",
    "peephole": "ifgo",
    "coupled": "fgo",
    "nig": "fgo",
    "nfg": "igo",
    "nog": "ifg",
    "niaf": "ifgo",
    "noaf": "ifgo",
    "np": "ifgo",
    "fgr": "ifgo",
    "projected": "ifgo",
    "layer_norm": "ifgo",
    "multiplicative": "ifgo",
    "mogrifier": "ifgo",
    "slstm": "ifgo",
    "min_lstm": "ifg",
    "min_gru": "zg",
    "gru": "rzg",
    "mgu": "fg",
    "rnn": "g",
    "ind_rnn": "g",
    "ea_lstm": "ifgo",
    "conv_lstm": "ifgo",
}
KEEPS = {name: "f" for name, gates in GATES.items() if "f" in gates} | {"gru": "z", "mgu": ""}
WRITES = {name: "i" for name, gates in GATES.items() if "i" in gates} | {"mgu": "f", "min_gru": "z"}
# lstm_1997 has blocks of unequal size (and with block_size=1 equal ones) and no forget gate.
# Options that are rejected because they would have no effect.
WITHOUT = {
    "lstm_1997": ("forget_bias", "chrono"),
    "nfg": ("forget_bias", "chrono"),
    "noaf": ("output_fn",),
    "min_lstm": ("gate_fn",),
}
GATED = sorted({*GATES, "lstm_1997"} - {"rnn", "ind_rnn"})


def test_every_cell_is_listed():
    assert set(GATES) | {"lstm_1997"} == set(CELLS)


def has(name, option):
    return hasattr(CELLS[name](hidden_size=H), option) and option not in WITHOUT.get(name, ())


def having(option):
    """Runs a test over the cells that have an option."""
    return pytest.mark.parametrize("name", [name for name in GATES if has(name, option)])


def parameters(name, size=H, **options):
    return CELLS[name](hidden_size=size, **options).init(KEY, D)


def biases(name, **options):
    """The bias of each gate, by its letter."""
    b = parameters(name, **options)["b"]
    return dict(zip(GATES[name], np.split(np.asarray(b), len(GATES[name])), strict=True))


# ---- biases ----


@pytest.mark.parametrize("name", CELLS)
def test_biases_are_zero_except_the_forget_gate(name):
    if not has(name, "forget_bias"):
        b = parameters(name)["b"]
        np.testing.assert_array_equal(b, np.zeros_like(b))
        return
    for options, expected in (
        ({}, 1.0 if name == "min_lstm" else 0.0),  # as its paper recommends
        ({"forget_bias": 1.0}, 1.0),
        ({"forget_bias": -2.5}, -2.5),
    ):
        for gate, b in biases(name, **options).items():
            np.testing.assert_array_equal(b, np.full(H, expected if gate == "f" else 0.0), gate)


@having("forget_bias")
def test_forget_bias_is_added_to_the_initial_values(name):
    threes = jax.nn.initializers.constant(3.0)
    for gate, b in biases(name, bias_init=threes, forget_bias=0.5).items():
        np.testing.assert_array_equal(b, np.full(H, 3.5 if gate == "f" else 3.0), err_msg=gate)


@having("chrono")
def test_chrono(name):
    """b_keep = log u and b_write = -log u, u uniform in [1, chrono - 1]."""
    longest, size = 50.0, 400
    own = CELLS[name](hidden_size=size, chrono=longest).parameters(D)["b"]
    # Only the biases, since the matrices would take long.
    b = np.asarray(own.init(KEY, own.shape, "float32"))
    drawn = dict(zip(GATES[name], np.split(b, len(GATES[name])), strict=True))
    keeps, writes = KEEPS.get(name, ""), WRITES.get(name, "")
    assert keeps or writes
    for gate, b in drawn.items():
        if gate in keeps + writes:
            u = np.exp(b if gate in keeps else -b)
            assert u.min() >= 1 - 1e-6 and u.max() <= longest - 1 + 1e-4, gate
            # The mean of 400 uniform samples has the deviation (longest - 2) / sqrt(12 * 400) =
            # 0.7.
            assert abs(u.mean() - longest / 2) < 5 * 0.7, gate
        else:
            np.testing.assert_array_equal(b, 0.0, err_msg=gate)
    if keeps and writes:
        np.testing.assert_array_equal(drawn[keeps], -drawn[writes])


# ---- matrices ----


def square_blocks(name, params):
    """The H by H blocks of the recurrent matrices, which are initialised for each gate."""
    w = np.asarray(params["w_hh"], np.float64)
    if name == "slstm":
        return [block for head in w for block in np.split(head, 4, -1)]
    blocks = np.split(w, w.shape[-1] // H, -1)
    if name == "multiplicative":
        blocks.append(np.asarray(params["w_mh"], np.float64))
    return blocks


@pytest.mark.parametrize(
    "name",
    # projected: (P, H) blocks, below.  conv_lstm: kernels.  The others have no w_hh.
    sorted(set(CELLS) - {"projected", "conv_lstm", "min_lstm", "min_gru", "ind_rnn"}),
)
def test_recurrent_weights_are_orthogonal_for_each_gate(name):
    blocks = square_blocks(name, parameters(name))
    for block in blocks:
        np.testing.assert_allclose(block @ block.T, np.eye(H), atol=1e-5)
    for n, block in enumerate(blocks):
        assert not any(np.array_equal(block, other) for other in blocks[:n]), "equal gates"


def test_heads_and_projections_are_orthogonal_too():
    heads = np.asarray(parameters("slstm", num_heads=3)["w_hh"], np.float64)
    assert heads.shape == (3, 2, 8)
    for head in heads:
        for block in np.split(head, 4, -1):
            np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-5)
    rows = np.asarray(parameters("projected", proj_size=4)["w_hh"], np.float64)  # (P, 4H)
    for block in np.split(rows, 4, -1):
        np.testing.assert_allclose(block @ block.T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(CELLS) - {"conv_lstm", "lstm_1997"}))
def test_input_weights_are_lecun_normal(name):
    size, features = 64, 32 + (name == "ea_lstm")  # of which the last is static
    w = np.asarray(CELLS[name](hidden_size=size).init(KEY, features)["w_ih"], np.float64)
    distribution = scipy.stats.truncnorm(-2, 2)
    for block in np.split(w, w.shape[-1] // size, -1):
        z = block.ravel() * np.sqrt(32) * distribution.std()  # variance 1 / D
        assert scipy.stats.kstest(z, distribution.cdf).pvalue > 1e-6


@pytest.mark.parametrize("name", CELLS)
def test_initialisers_can_be_replaced(name):
    constant = jax.nn.initializers.constant
    params = parameters(
        name,
        kernel_init=constant(2.0),
        recurrent_kernel_init=constant(3.0),
        bias_init=constant(4.0),
        **({"forget_bias": 0.0} if has(name, "forget_bias") else {}),
    )
    np.testing.assert_array_equal(params["w_ih"], np.full_like(params["w_ih"], 2.0))
    if "w_hh" in params:
        np.testing.assert_array_equal(params["w_hh"], np.full_like(params["w_hh"], 3.0))
    np.testing.assert_array_equal(params["b"], np.full_like(params["b"], 4.0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *[(name, {}) for name in CELLS],
        *[(name, {"peepholes": True}) for name in ("coupled", "conv_lstm")],
        ("gru", {"reset_after": True}),
        ("lstm_1997", {"block_size": 3}),
        ("mogrifier", {"rank": 2}),
        ("slstm", {"num_heads": 2, "learn_initial_state": True}),
    ],
)
def test_parameters_have_the_role_of_their_initialiser(name, options):
    """With another initialiser in one option, the parameters of its role change and no others."""
    cell = CELLS[name](hidden_size=H, **options)
    params, found = cell.init(KEY, D), {}
    for field in dataclasses.fields(cell):
        role = field.name.removesuffix("_init")
        if role == field.name:
            continue
        try:
            other = dataclasses.replace(cell, **{field.name: jax.nn.initializers.constant(7.0)})
        except ValueError:  # the cell has no peepholes
            continue
        changed = {key for key, array in other.init(KEY, D).items() if (array != params[key]).any()}
        found |= dict.fromkeys(changed, role)
    declared = cell.all_parameters(D)
    assert {key: found.get(key) for key in params} == {key: p.role for key, p in declared.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("peephole", {}),
        ("coupled", {"peepholes": True}),
        ("conv_lstm", {"peepholes": True}),
        ("conv_lstm", {"peepholes": True, "spatial_shape": (2, 3)}),
        *[(variant, {}) for variant in ("nig", "nfg", "nog", "niaf", "noaf", "fgr")],
    ],
)
def test_peepholes_are_initially_zero_or_as_configured(name, options):
    own = [key for key in parameters(name, **options) if key.startswith("p_")]
    gates = GATES[name] if name != "conv_lstm" else "ifo"
    assert own == [f"p_{gate}" for gate in "ifo" if gate in gates]
    space = options.get("spatial_shape", ())
    ones = jax.nn.initializers.ones
    for key in own:
        assert not np.any(parameters(name, **options)[key])
        drawn = parameters(name, peephole_init=ones, **options)[key]
        np.testing.assert_array_equal(drawn, np.ones((*space, H)))


def test_cells_without_peepholes_have_no_peephole_parameters():
    for name in ("coupled", "conv_lstm", "np"):
        assert not [key for key in parameters(name) if key.startswith("p_")]


def test_layer_norms_are_initially_standardisation():
    params = parameters("layer_norm")
    for part, size in (("x", 4 * H), ("h", 4 * H), ("c", H)):
        np.testing.assert_array_equal(params[f"scale_{part}"], np.ones(size))
        np.testing.assert_array_equal(params[f"shift_{part}"], np.zeros(size))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_param_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        cell = CELLS[name](hidden_size=H, param_dtype=dtype, learn_initial_state=True)
        shapes = jax.eval_shape(lambda: cell.init(KEY, D))
        own = {key for key in shapes if not key.endswith("_0")}
        assert {str(shapes[key].dtype) for key in own} == {dtype}
        state = jax.eval_shape(cell.zero_state)
        wide = "float64" if dtype == "float64" else "float32"
        assert state.h.dtype == dtype
        assert {str(array.dtype) for array in state[1:]} <= {wide}


@pytest.mark.parametrize("name", CELLS)
def test_a_state_preserves_its_types_in_a_scan_for_all_combinations(name):
    """All combinations of types of products, parameters, inputs and each field of the state."""
    types = ["float16", "bfloat16", "float32", "float64"]

    def run(cell, params, state, xs):
        return jax.lax.scan(functools.partial(cell.step, params), state, xs)

    def loss(cell, *given):
        return sum(leaf.astype("float64").sum() for leaf in jax.tree.leaves(run(cell, *given)))

    with jax.enable_x64(True):
        for i, j in itertools.product(range(5), range(5)):
            dtype = None if i == 4 else types[i]
            cell = CELLS[name](hidden_size=H, dtype=dtype, param_dtype=types[j % 4])
            space = (2,) * (cell.num_feature_axes - 1)
            zero = jax.eval_shape(functools.partial(cell.zero_state, (2, *space)))
            kinds = types if j == 4 else [types[(i + 2 * j) % 4]]  # all equal, or all different
            state = jax.tree.map(
                lambda leaf, kind: jax.ShapeDtypeStruct(leaf.shape, kind),
                zero,
                type(zero)(*itertools.islice(itertools.cycle(kinds), len(zero))),
            )
            xs = jax.ShapeDtypeStruct((3, 2, *space, D), types[(i + j) % 4])
            params = jax.eval_shape(functools.partial(cell.init, input_size=D), KEY)
            last, ys = jax.eval_shape(functools.partial(run, cell), params, state, xs)
            assert [leaf.dtype for leaf in last] == [leaf.dtype for leaf in state]
            assert ys.dtype == last.h.dtype
            if i == j:
                gradient = jax.grad(functools.partial(loss, cell), (0, 1, 2))
                jax.eval_shape(gradient, params, state, xs)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_can_be_copied_and_pickled(name):
    cell = CELLS[name](hidden_size=H)
    assert pickle.loads(pickle.dumps(cell)) == copy.deepcopy(cell) == cell


@pytest.mark.parametrize("name", CELLS)
def test_the_key_determines_the_parameters(name):
    cell = CELLS[name](hidden_size=H)
    first, again, other = (cell.init(jax.random.key(seed), D) for seed in (0, 0, 1))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["w_ih"], other["w_ih"])


@pytest.mark.parametrize("name", CELLS)
def test_a_learned_initial_state_is_initially_zero(name):
    """Except for the normaliser of slstm, which is one and not learned, since it is a divisor."""
    cell = CELLS[name](hidden_size=H, learn_initial_state=True)
    params = cell.init(KEY, D)
    state = cell.initial_state(params, (3,))._asdict()
    for field, zero in cell.zero_state()._asdict().items():
        if (name, field) == ("slstm", "n"):
            assert "n_0" not in params
            np.testing.assert_array_equal(state[field], np.ones((3, H)))
            continue
        np.testing.assert_array_equal(params[f"{field}_0"], np.zeros(zero.shape))
        np.testing.assert_array_equal(state[field], np.zeros((3, *zero.shape)))


@pytest.mark.parametrize("name", CELLS)
def test_recurrent_weights_are_parameters_that_drop_connect_drops(name):
    cell = CELLS[name](hidden_size=H)
    assert set(cell.recurrent_weights) <= set(cell.parameters(D))
    assert ("w_hh" in cell.parameters(D)) == ("w_hh" in cell.recurrent_weights)
    if name not in ("min_lstm", "min_gru"):
        assert DropConnect(cell).recurrent_weights
        return
    assert not cell.recurrent_weights
    with pytest.raises(ValueError, match=f"a cell with recurrent weights.*{type(cell).__name__}"):
        DropConnect(cell)


@pytest.mark.parametrize("kind", [LSTMFamilyCell, CELLS["projected"]])
def test_a_new_cell_of_the_lstm_family_has_its_zero_state(kind):
    class Own(kind):
        pass

    state = Own(4, dtype="bfloat16").zero_state((3,))
    assert state.h.shape == (3, 2 if kind is CELLS["projected"] else 4)
    assert state.c.shape == (3, 4)
    assert (state.h.dtype, state.c.dtype) == ("bfloat16", "float32")


# ---- functions ----


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_functions_by_name(name):
    x = jnp.linspace(-4.0, 4.0, 41)
    # Float32 functions of numbers up to exp(4) = 55: a few rounding errors of 6e-8 of them.
    np.testing.assert_allclose(
        ACTIVATIONS[name](x), oracles.FUNCTIONS[name](np.float64(x)), rtol=2e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", CELLS)
def test_a_name_and_its_function_are_equivalent(name):
    """Cells with either compute the same, for all options that accept functions."""
    plain = CELLS[name](hidden_size=H)
    names = {
        option: function
        for option, function in (
            ("gate_fn", "hard_sigmoid"),
            ("activation_fn", "softsign"),
            ("output_fn", "relu"),
        )
        if has(name, option)
    }
    assert "activation_fn" in names
    callables = {option: ACTIVATIONS[function] for option, function in names.items()}
    space = (2, 3) if name == "conv_lstm" else ()
    params = jax.tree.map(lambda a: a + 0.3, plain.init(KEY, D))
    x = jax.random.normal(jax.random.key(1), (*space, D))

    def second(cell):  # of two steps, so that the state is not zero
        state, _ = cell.step(params, cell.zero_state(space), x)
        return cell.step(params, state, x)[1]

    by_name = second(CELLS[name](hidden_size=H, **names))
    np.testing.assert_array_equal(by_name, second(CELLS[name](hidden_size=H, **callables)))
    assert not np.array_equal(by_name, second(plain)), "the options change something"


@pytest.mark.parametrize("name", GATED)
def test_each_function_option_has_an_effect(name):
    plain = CELLS[name](hidden_size=H)
    space = (2, 3) if name == "conv_lstm" else ()
    params = jax.tree.map(lambda a: 3.0 * a + 0.3, plain.init(KEY, D))
    x = jax.random.normal(jax.random.key(1), (*space, D))

    def second(cell):
        state, _ = cell.step(params, cell.zero_state(space), x)
        return cell.step(params, state, x)[1]

    for option, value in (
        ("gate_fn", "hard_sigmoid"),
        ("activation_fn", "softsign"),
        ("output_fn", "softsign"),
        ("preactivation_clip", 0.1),
        ("cell_clip", 0.1),
    ):
        if has(name, option):
            changed = CELLS[name](hidden_size=H, **{option: value})
            assert not np.array_equal(second(changed), second(plain)), option
