"""Parameters to and from Flax (linen and nnx), compared with its cells in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from lstm_jax import unroll
from lstm_jax.cells import (
    ConvLSTMCell,
    GRUCell,
    LSTMCell,
    LSTMState,
    PeepholeLSTMCell,
    RNNCell,
    RNNState,
)
from lstm_jax.interop import from_flax, to_flax
from lstm_jax.interop.weights import flattened
from tests.interop.comparison import NUMBER, assert_cells_agree, draw, draw_like, sizes

T, B = 3, 2
LINEN = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell", "ConvLSTMCell"]


def as_state(carry):
    return LSTMState(h=carry[1], c=carry[0]) if isinstance(carry, tuple) else RNNState(carry)


@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_linen(seed):
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    kind = rng.choice(LINEN)
    options, given, space = {}, {}, ()
    if kind == "ConvLSTMCell":
        options = {"kernel_size": (3, 1), "use_bias": bool(rng.random() < 0.5)}
        space = (4, 3)
        D, H = 3, 2
    elif rng.random() < 0.5:
        given = {"activation_fn": "relu"}
    functions = {name: jax.nn.relu for name in given}
    module = getattr(linen, kind)(H, **options, **functions, param_dtype="float64")
    with jax.enable_x64(True):
        xs = draw(rng, T, B, *space, D, dtype="float64")
        key = jax.random.key(seed)
        shapes = jax.eval_shape(lambda: module.initialize_carry(key, xs[0].shape))
        carry = draw_like(rng, shapes)
        shapes = jax.eval_shape(lambda: module.init(key, carry, xs[0]))
        arrays = draw_like(rng, shapes)["params"]

        def step(arrays, carry, x):
            return module.apply({"params": arrays}, carry, x)

        def convert(arrays):
            return from_flax(arrays, **given)

        assert_cells_agree(convert, arrays, step, carry, as_state, xs, rng)
        if kind != "ConvLSTMCell":  # whose forget bias is rounded
            again = to_flax(*convert(arrays), **given)
            jax.tree.map(np.testing.assert_array_equal, again, arrays)


@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_nnx(seed):
    rng = np.random.default_rng(seed)
    D, H = sizes(rng)
    kind = rng.choice(LINEN[:4])
    given = {"activation_fn": "relu"} if rng.random() < 0.5 else {}
    if kind in ("LSTMCell", "GRUCell") and rng.random() < 0.3:
        given["gate_fn"] = "hard_sigmoid"
    functions = {name: getattr(jax.nn, function) for name, function in given.items()}
    with jax.enable_x64(True):
        types = {"dtype": "float64", "param_dtype": "float64"}
        module = getattr(nnx, kind)(D, H, **functions, **types, rngs=nnx.Rngs(seed))
        xs = draw(rng, T, B, D, dtype="float64")
        h, c = draw(rng, 2, B, H, dtype="float64")
        state = nnx.state(module, nnx.Param)
        from_flax(state, **given)  # accepts it unchanged
        arrays = draw_like(rng, nnx.to_pure_dict(state))

        graph, state = nnx.split(module)

        def step(arrays, carry, x):
            leaves = jax.tree.leaves(arrays)  # in the state's order, by name
            filled = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), leaves))
            return filled(carry, x)

        def convert(arrays):
            return from_flax(arrays, **given)

        carry = (c, h) if "LSTM" in kind else h
        assert_cells_agree(convert, arrays, step, carry, as_state, xs, rng)
        optimized = kind.startswith("Optimized")
        again = to_flax(*convert(arrays), api="nnx", optimized=optimized, **given)
        jax.tree.map(np.testing.assert_array_equal, again, arrays)


@pytest.mark.parametrize("cell", [LSTMCell(3), GRUCell(3, reset_after=True), RNNCell(3)])
@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize("optimized", [False, True])
def test_round_trip_is_exact(cell, api, optimized):
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2))
    params = draw_like(np.random.default_rng(0), shapes)
    if "b_hg" in params and api == "nnx":
        with pytest.raises(ValueError, match=r"b_hg is not zero and would be lost"):
            to_flax(cell, params, api=api)
        params["b_hg"] *= 0
    again, back = from_flax(to_flax(cell, params, api=api, optimized=optimized))
    assert again == cell
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_a_new_convolutional_cell_round_trips_exactly():
    cell = ConvLSTMCell(3, forget_bias=1.0)  # flax adds 1 at run time, not to a parameter
    params = cell.init(jax.random.key(0), 2)
    arrays = to_flax(cell, params)
    assert not arrays["ih"]["bias"].any()
    again, back = from_flax(arrays)
    assert again == ConvLSTMCell(3)  # the forget bias is part of the parameters
    jax.tree.map(np.testing.assert_array_equal, back, params)


REFUSED = [
    (PeepholeLSTMCell(3), {}, "p_i, p_f, p_o of PeepholeLSTMCell would be lost: flax has LSTMCell"),
    (LSTMCell(3, output_fn="identity"), {}, "output_fn='identity' of LSTMCell would be lost"),
    (LSTMCell(3), {"gate_fn": "hard_sigmoid"}, "gate_fn='sigmoid' of LSTMCell would be lost"),
    (GRUCell(3), {}, "reset_after=False of GRUCell would be lost: flax has reset_after=True"),
    (ConvLSTMCell(3), {"api": "nnx"}, "ConvLSTMCell would be lost: flax.nnx has"),
    (ConvLSTMCell(3, forget_bias=2.0), {"use_bias": False}, "b is not zero and would be lost"),
    (ConvLSTMCell(3), {"gate_fn": "relu"}, "gate_fn and activation_fn are not options"),
    (LSTMCell(3), {"use_bias": False}, "ConvLSTMCell has the option use_bias=False"),
    (LSTMCell(3), {"api": "haiku"}, "api must be 'linen' or 'nnx', got 'haiku'"),
]


@pytest.mark.parametrize(("cell", "options", "message"), REFUSED)
def test_unsupported_options_are_rejected(cell, options, message):
    with pytest.raises(ValueError, match=message):
        to_flax(cell, cell.init(jax.random.key(0), 2), **options)


def dense(*shape, bias=None):
    arrays = {"kernel": jnp.ones(shape)}
    return arrays if bias is None else {**arrays, "bias": jnp.ones(bias)}


LSTM = {f"{a}{g}": dense(2 if a == "i" else 3, 3) for a in "ih" for g in "ifgo"}
WAYS = ("forward", "backward")
WRONG = [
    ({"rnn": dense(2, 3)}, "^dense_h/kernel is missing from the arrays of flax, got rnn/kernel"),
    ({"cell": {"ii": dense(2, 3)}}, "^cell/hi/kernel is missing from the arrays of flax, got cell"),
    (
        {"cell": LSTM, "head": dense(3, 1)},
        "^head/kernel is not an array of a recurrent layer of flax; pass the part cell$",
    ),
    (
        {"params": {"encoder": {"cell": LSTM}, "LSTMCell_0": LSTM, "head": dense(3, 1)}},
        "^params must be those of one cell, RNN or Bidirectional of flax, got a larger model; "
        "pass one of its parts: encoder, LSTMCell_0$",
    ),
    (
        {"layers": {n: {f"{way}_rnn": {"cell": LSTM} for way in WAYS} for n in (0, 1)}},
        "got a larger model; pass one of its parts: layers/0, layers/1$",
    ),
    (
        {"forward_rnn": {"cell": LSTM}, "backward_rnn": {"cell": {"ii": dense(2, 3)}}},
        "^backward_rnn/cell/hi/kernel is missing",
    ),
    (
        {"forward_rnn": {"cell": LSTM}, "other_rnn": {"cell": LSTM}},
        "pass one of its parts: forward_rnn, other_rnn$",
    ),
    ({"ii": dense(2, 3), "if": dense(2, 3)}, "^hi/kernel is missing"),
    (
        {f"{a}{g}": dense(2 if a == "i" else 3, 3) for a in "ih" for g in "ifgo"}
        | {"hz": dense(1)},
        "^hz/kernel is not an array of a recurrent layer of flax",
    ),
    (
        {**LSTM, "hg": dense(3, 4)},
        r"^hg/kernel must have the shape of hi/kernel, \(3, 3\), got \(3, 4\)",
    ),
    ({"dense_h": dense(3, 5)}, r"^dense_h/kernel must have shape \(H, 4H\), .* got \(3, 5\)"),
    (
        {"dense_h": dense(3, 12, bias=11), "dense_i": dense(2, 12)},
        r"^dense_h/bias must have shape \(4H,\), \(12,\) with these weights, got \(11,\)",
    ),
    (
        {"ih": dense(2, 3, 1, 8), "hh": dense(2, 3, 2, 8)},
        r"^hh/kernel must have odd kernel sizes, got \(2, 3\)",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_wrong_arrays_are_named(arrays, message):
    with pytest.raises(ValueError, match=message):
        from_flax(arrays)


XS = jax.random.normal(jax.random.key(1), (B, T, 2))


@pytest.mark.parametrize("kind", LINEN)
def test_whole_modules_of_linen(kind):
    """RNN and Bidirectional, from variables, from their parameters and from files."""
    options = {"kernel_size": (3, 1)} if kind == "ConvLSTMCell" else {}
    xs = XS[..., None, None, :] + jnp.arange(3.0)[:, None] if options else XS
    first, second = (linen.RNN(getattr(linen, kind)(3, **options)) for _ in WAYS)
    ys, variables = first.init_with_output(jax.random.key(0), xs)
    cell, params = from_flax(variables["params"]["cell"])
    for arrays in (variables, variables["params"], dict(flattened(variables))):
        again, weights = from_flax(arrays)
        assert again == cell
        jax.tree.map(np.testing.assert_array_equal, weights, params)
    _, zs = unroll(cell, params, xs.swapaxes(0, 1))
    np.testing.assert_allclose(zs.swapaxes(0, 1), ys, atol=1e-5)

    both = linen.Bidirectional(first, second, merge_fn=jnp.add)
    ys, variables = both.init_with_output(jax.random.key(0), xs)
    layer, params = from_flax(variables, merge="sum")
    _, zs = layer.apply(params, xs.swapaxes(0, 1))
    np.testing.assert_allclose(zs.swapaxes(0, 1), ys, atol=1e-5)
    if not options:  # whose forget bias is rounded
        again = {"params": to_flax(layer, params)}
        jax.tree.map(np.testing.assert_array_equal, again, variables)


@pytest.mark.parametrize("kind", LINEN[:4])
def test_whole_modules_of_nnx(kind):
    """RNN and Bidirectional, from their state with random streams and from their parameters."""
    first, second = (nnx.RNN(getattr(nnx, kind)(2, 3, rngs=nnx.Rngs(n))) for n in (0, 1))
    cell, params = from_flax(nnx.state(first.cell, nnx.Param))
    assert jax.tree.leaves(nnx.state(first, nnx.RngState))
    for arrays in (
        nnx.state(first),
        nnx.state(first, nnx.Param),
        nnx.to_pure_dict(nnx.state(first)),
    ):
        again, weights = from_flax(arrays)
        assert again == cell
        jax.tree.map(np.testing.assert_array_equal, weights, params)

    both = nnx.Bidirectional(first, second)
    layer, params = from_flax(nnx.state(both))
    _, ys = layer.apply(params, XS.swapaxes(0, 1))
    np.testing.assert_allclose(ys.swapaxes(0, 1), both(XS), atol=1e-5)
    optimized = kind.startswith("Optimized")
    again = to_flax(layer, params, api="nnx", optimized=optimized)
    jax.tree.map(np.testing.assert_array_equal, again, nnx.to_pure_dict(nnx.state(both, nnx.Param)))
    nnx.update(both, again)


def test_models_of_nnx_name_their_parts():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.head = nnx.Linear(3, 1, rngs=rngs)
            self.layers = nnx.List(nnx.RNN(nnx.GRUCell(3, 3, rngs=rngs)) for _ in range(2))

    state = nnx.state(Model(nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"pass one of its parts: layers/0, layers/1$"):
        from_flax(state)
    assert from_flax(state["layers"][1])[0] == GRUCell(3, reset_after=True)


def test_merge_is_for_both_directions():
    with pytest.raises(ValueError, match="merge is an option of Bidirectional, got one cell"):
        from_flax(LSTM, merge="sum")
