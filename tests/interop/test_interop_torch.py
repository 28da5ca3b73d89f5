"""Weights to and from PyTorch, against its own modules in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lstm_jax import LSTM, Bidirectional, LSTMCell, Stack
from lstm_jax.cells import CELLS, GRUCell, PeepholeLSTMCell, ProjectedLSTMCell, RNNCell
from lstm_jax.interop import from_torch, to_torch
from tests.interop.comparison import NUMBER, assert_close, draw, value_and_gradients, zero_state

T, B = 4, 3


def random_module(torch, seed):
    """A module of torch, the options that its arrays do not hold, and an input size."""
    rng = np.random.default_rng(seed)
    D, H = rng.choice([1, 3]), rng.choice([2, 4])
    kind = rng.choice(["LSTM", "LSTM", "GRU", "RNN"])
    options = {"bias": bool(rng.random() < 0.7), "dtype": torch.float64}
    if kind == "RNN" and rng.random() < 0.5:
        options["nonlinearity"] = "relu"
    told = {key: value for key, value in options.items() if key == "nonlinearity"}
    if rng.random() < 0.2:
        return getattr(torch.nn, f"{kind}Cell")(int(D), int(H), **options), told
    if kind == "LSTM" and rng.random() < 0.4:
        options["proj_size"] = int(rng.integers(1, H))
    options |= {
        "num_layers": int(rng.integers(1, 3)),
        "bidirectional": bool(rng.random() < 0.4),
        "batch_first": bool(rng.random() < 0.5),
    }
    return getattr(torch.nn, kind)(int(D), int(H), **options), told


def theirs_of_layer(torch, module, xs, h_0, c_0, lengths):
    """Outputs, time leading, and last h and c (or None) of a layer of torch."""
    inputs = xs.transpose(0, 1) if module.batch_first else xs
    if lengths is not None:
        inputs = torch.nn.utils.rnn.pack_padded_sequence(
            inputs, lengths, batch_first=module.batch_first, enforce_sorted=False
        )
    ys, last = module(inputs, h_0 if c_0 is None else (h_0, c_0))
    if lengths is not None:
        ys, _ = torch.nn.utils.rnn.pad_packed_sequence(
            ys, batch_first=module.batch_first, total_length=T
        )
    ys = ys.transpose(0, 1) if module.batch_first else ys
    return (ys, *last) if isinstance(last, tuple) else (ys, last, None)


def theirs_of_cell(torch, module, xs, h_0, c_0, lengths):
    h, c, ys = h_0[0], None if c_0 is None else c_0[0], []
    for x in xs:
        if c is None:
            h = module(x, h)
        else:
            h, c = module(x, (h, c))
        ys.append(h)
    return torch.stack(ys), h[None], None if c is None else c[None]


def stacked(state, name):
    """Our state's ``h`` or ``c`` of all layers and directions, as torch has it."""
    leaves = jax.tree.leaves(state, is_leaf=lambda leaf: hasattr(leaf, "h"))
    if not hasattr(leaves[0], name):
        return None
    return jnp.stack([getattr(leaf, name) for leaf in leaves])


def as_state(zeros, h, c):
    """The inverse: our state, of torch's ``h`` and ``c``."""
    leaves, tree = jax.tree.flatten(zeros, is_leaf=lambda leaf: hasattr(leaf, "h"))
    made = [
        type(leaf)(h=h[n]) if c is None else type(leaf)(h=h[n], c=c[n])
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(tree, made)


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(NUMBER))
def test_values_and_gradients_agree_with_torch(seed):
    torch = pytest.importorskip("torch", reason="needs the peer torch")
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        module, told = random_module(torch, seed)
        cell = not hasattr(module, "batch_first")
        arrays = {name: np.asarray(array) for name, array in module.state_dict().items()}
        layer, _ = from_torch(module.state_dict(), **told)
        zeros = zero_state(layer, (B,), "float64")
        xs = draw(rng, T, B, module.input_size, dtype="float64")
        lengths = None if cell or seed % 2 else rng.integers(1, T + 1, B)
        first = {name: stacked(zeros, name) for name in "hc"}
        first = {
            name: None if zero is None else draw(rng, *zero.shape, dtype="float64")
            for name, zero in first.items()
        }

        # Theirs.
        tensor = {
            name: None if value is None else torch.tensor(value, requires_grad=True)
            for name, value in {**first, "xs": xs}.items()
        }
        theirs = (theirs_of_cell if cell else theirs_of_layer)(
            torch, module, tensor["xs"], tensor["h"], tensor["c"], lengths
        )
        weights = [None if one is None else draw(rng, *one.shape, dtype="float64") for one in theirs]
        total = sum(
            (torch.tensor(weight) * one).sum()
            for weight, one in zip(weights, theirs, strict=True)
            if one is not None
        )
        total.backward()

        # Ours.
        def weigh(ys, last):
            ours = ys, stacked(last, "h"), stacked(last, "c")
            pairs = zip(weights, ours, strict=True)
            return sum((weight * one).sum() for weight, one in pairs if one is not None)

        (ys, last), (by_arrays, by_xs, by_state) = value_and_gradients(
            lambda arrays: from_torch(arrays, **told),
            arrays,
            xs,
            as_state(zeros, first["h"], first["c"]),
            lengths,
            weigh,
        )

        terms = T * B * 8
        for ours, their in zip((ys, stacked(last, "h"), stacked(last, "c")), theirs, strict=True):
            assert (ours is None) == (their is None)
            if ours is not None:
                assert_close(ours, their.detach(), terms)
        for name, parameter in module.named_parameters():
            assert_close(by_arrays[name], parameter.grad, terms, name)
        assert_close(by_xs, tensor["xs"].grad, terms, "xs")
        for name in "hc":
            if first[name] is not None:
                assert_close(stacked(by_state, name), tensor[name].grad, terms, name)
