"""A second implementation of every cell, in NumPy and float64, one row at a time, from the papers.

A step is ``function(params, state, x, **options) -> (state, y)`` for one row: ``params`` and
``state`` are dicts of arrays without batch axes, and options are the cell's, functions by their
names.  It shares only the layout of the parameters with the library.
"""

import functools
import itertools
from types import SimpleNamespace

import numpy as np


def sigmoid(z):
    return 0.5 * (1.0 + np.tanh(0.5 * z))  # the logistic function, without overflow


def gelu(z):  # the approximation by tanh, which is the default of jax.nn.gelu
    return 0.5 * z * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (z + 0.044715 * z**3)))


def elu(z):
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0.0)))


FUNCTIONS = {
    "elu": elu,
    "exp": np.exp,
    "gelu": gelu,
    "hard_sigmoid": lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
    "hard_tanh": lambda z: np.clip(z, -1.0, 1.0),
    "identity": lambda z: z,
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "relu": lambda z: np.maximum(z, 0.0),
    "selu": lambda z: (
        1.0507009873554805 * np.where(z > 0, z, 1.6732632423543772 * np.expm1(np.minimum(z, 0.0)))
    ),
    "sigmoid": sigmoid,
    "silu": lambda z: z * sigmoid(z),
    "softplus": lambda z: np.logaddexp(z, 0.0),
    "softsign": lambda z: z / (1.0 + np.abs(z)),
    "tanh": np.tanh,
    # Hochreiter & Schmidhuber 1997, equations 5 and 4: ranges [-2, 2] and [-1, 1].
    "paper_g": lambda z: 4.0 * sigmoid(z) - 2.0,
    "paper_h": lambda z: 2.0 * sigmoid(z) - 1.0,
}


def functions(
    gate_fn="sigmoid",
    activation_fn="tanh",
    output_fn=None,
    preactivation_clip=None,
    cell_clip=None,
):
    """The functions that a cell's options select: gate, candidate, output and cell."""
    before = (lambda z: z) if preactivation_clip is None else limited(preactivation_clip)
    return SimpleNamespace(
        gate=lambda z: FUNCTIONS[gate_fn](before(z)),
        candidate=lambda z: FUNCTIONS[activation_fn](before(z)),
        output=FUNCTIONS[activation_fn if output_fn is None else output_fn],
        cell=(lambda c: c) if cell_clip is None else limited(cell_clip),
        before=before,
    )


def limited(limit):
    return lambda z: np.clip(z, -limit, limit)


def split(z, names):
    """Equal blocks of the last axis by one-letter names."""
    return dict(zip(names, np.split(z, len(names), -1), strict=True))


def affine(params, h, x):
    return x @ params["w_ih"] + h @ params["w_hh"] + params["b"]


# ---- the LSTM family ----


def lstm(params, state, x, **options):
    """Gers, Schmidhuber, Cummins 2000; Greff et al. 2017, variant NP."""
    fn = functions(**options)
    z = split(affine(params, state["h"], x), "ifgo")
    c = fn.cell(fn.gate(z["f"]) * state["c"] + fn.gate(z["i"]) * fn.candidate(z["g"]))
    h = fn.gate(z["o"]) * fn.output(c)
    return {"h": h, "c": c}, h


def lstm_1997(params, state, x, block_size=1, **options):
    """Hochreiter & Schmidhuber 1997: no forget gate; a block's cells share their gates."""
    fn = functions(**{"activation_fn": "paper_g", "output_fn": "paper_h"} | options)
    size = state["c"].shape[-1]
    blocks = size // block_size
    z = affine(params, state["h"], x)
    c, h = np.zeros(size), np.zeros(size)
    for cell in range(size):
        block = cell // block_size
        i = fn.gate(z[block])
        g = fn.candidate(z[blocks + cell])
        o = fn.gate(z[blocks + size + block])
        c[cell] = fn.cell(state["c"][cell] + i * g)
        h[cell] = o * fn.output(c[cell])
    return {"h": h, "c": c}, h


def peephole(params, state, x, **options):
    """Gers, Schraudolph, Schmidhuber 2002: i and f read the old cell state, o the new one."""
    fn = functions(**options)
    z = split(affine(params, state["h"], x), "ifgo")
    i = fn.gate(z["i"] + params["p_i"] * state["c"])
    f = fn.gate(z["f"] + params["p_f"] * state["c"])
    c = fn.cell(f * state["c"] + i * fn.candidate(z["g"]))
    h = fn.gate(z["o"] + params["p_o"] * c) * fn.output(c)
    return {"h": h, "c": c}, h


def coupled(params, state, x, peepholes=False, **options):
    """Greff et al. 2017, variant CIFG: the input gate is one minus the forget gate."""
    fn = functions(**options)
    z = split(affine(params, state["h"], x), "fgo")
    f = fn.gate(z["f"] + (params["p_f"] * state["c"] if peepholes else 0.0))
    c = fn.cell(f * state["c"] + (1.0 - f) * fn.candidate(z["g"]))
    h = fn.gate(z["o"] + (params["p_o"] * c if peepholes else 0.0)) * fn.output(c)
    return {"h": h, "c": c}, h


def odyssey(params, state, x, variant, **options):
    """Greff et al. 2017: the vanilla LSTM (with peepholes) and its variants."""
    fn = functions(**options)
    names = {"nig": "fgo", "nfg": "igo", "nog": "ifg"}.get(variant, "ifgo")
    z = split(affine(params, state["h"], x), names)
    if variant != "np":
        for gate in set(names) & set("if"):
            z[gate] = z[gate] + params[f"p_{gate}"] * state["c"]
    if variant == "fgr":
        before = np.concatenate([state["i"], state["f"], state["o"]])
        for gate, more in split(before @ params["w_gates"], "ifo").items():
            z[gate] = z[gate] + more
    i = fn.gate(z["i"]) if "i" in z else 1.0
    f = fn.gate(z["f"]) if "f" in z else 1.0
    g = fn.before(z["g"]) if variant == "niaf" else fn.candidate(z["g"])
    c = fn.cell(f * state["c"] + i * g)
    p_o = 0.0 if variant in ("np", "nog") else params["p_o"]
    o = fn.gate(z["o"] + p_o * c) if "o" in z else 1.0
    h = o * (c if variant == "noaf" else fn.output(c))
    new = {"h": h, "c": c}
    if variant == "fgr":
        new |= {"i": i, "f": f, "o": o}
    return new, h


def projected(params, state, x, proj_size=None, **options):
    """Sak, Senior, Beaufays 2014, without peepholes and without the non-recurrent part."""
    new, h = lstm(params, state, x, **options)
    h = h @ params["w_hr"]
    return {"h": h, "c": new["c"]}, h


def layer_norm(params, state, x, epsilon=1e-5, **options):
    """Ba, Kiros, Hinton 2016, the LSTM of its supplement."""

    def normalised(a, scale, shift):
        mean = a.sum() / a.size
        variance = ((a - mean) ** 2).sum() / a.size
        return scale * (a - mean) / np.sqrt(variance + epsilon) + shift

    fn = functions(**options)
    z = normalised(x @ params["w_ih"], params["scale_x"], params["shift_x"])
    z = z + normalised(state["h"] @ params["w_hh"], params["scale_h"], params["shift_h"])
    z = split(z + params["b"], "ifgo")
    c = fn.cell(fn.gate(z["f"]) * state["c"] + fn.gate(z["i"]) * fn.candidate(z["g"]))
    h = fn.gate(z["o"]) * fn.output(normalised(c, params["scale_c"], params["shift_c"]))
    return {"h": h, "c": c}, h


def multiplicative(params, state, x, **options):
    """Krause et al. 2017: the LSTM reads m instead of h."""
    m = (x @ params["w_mx"]) * (state["h"] @ params["w_mh"])
    return lstm(params, {"h": m, "c": state["c"]}, x, **options)


def mogrifier(params, state, x, rounds=5, rank=None, **options):
    """Melis, Kočiský, Blunsom 2020; each σ is a gate's."""
    fn = functions(**options)
    h = state["h"]
    for n in range(1, rounds + 1):
        name = f"w_q{n}" if n % 2 else f"w_r{n}"
        parts = [name] if rank is None else [f"{name}_left", f"{name}_right"]
        matrix = functools.reduce(np.matmul, [params[part] for part in parts])
        if n % 2:
            x = 2.0 * fn.gate(h @ matrix) * x
        else:
            h = 2.0 * fn.gate(x @ matrix) * h
    return lstm(params, {"h": h, "c": state["c"]}, x, **options)


def slstm(
    params,
    state,
    x,
    num_heads=1,
    forget_fn="sigmoid",
    gate_fn="sigmoid",
    activation_fn="tanh",
    preactivation_clip=None,
):
    """Beck et al. 2024, sLSTM: exponential gates, stabilised by m."""
    fn = functions(gate_fn, activation_fn, preactivation_clip=preactivation_clip)
    size = state["h"].size // num_heads
    recurrent = {gate: [] for gate in "ifgo"}
    for head in range(num_heads):
        own = state["h"][head * size : (head + 1) * size]
        for gate, block in split(own @ params["w_hh"][head], "ifgo").items():
            recurrent[gate].extend(block)
    z = split(x @ params["w_ih"] + params["b"], "ifgo")
    z = {gate: z[gate] + np.array(recurrent[gate]) for gate in z}
    log_i = fn.before(z["i"])
    log_f = fn.before(z["f"])
    if forget_fn == "sigmoid":
        log_f = -np.logaddexp(0.0, -log_f)
    m = np.maximum(log_f + state["m"], log_i)
    i, f = np.exp(log_i - m), np.exp(log_f + state["m"] - m)
    c = f * state["c"] + i * fn.candidate(z["g"])
    n = f * state["n"] + i
    h = fn.gate(z["o"]) * c / n
    return {"h": h, "c": c, "n": n, "m": m}, h


def slstm_unstabilised(params, state, x, forget_fn="sigmoid"):
    """The same paper's equations for one head, without the stabiliser m: the results must agree."""
    z = split(x @ params["w_ih"] + state["h"] @ params["w_hh"][0] + params["b"], "ifgo")
    i, f = np.exp(z["i"]), (sigmoid if forget_fn == "sigmoid" else np.exp)(z["f"])
    c = f * state["c"] + i * np.tanh(z["g"])
    n = f * state["n"] + i
    h = sigmoid(z["o"]) * c / n
    return {"h": h, "c": c, "n": n}, h


def ea_lstm(params, state, x, static_size=1, **options):
    """Kratzert et al. 2019: the input gate reads the static features."""
    fn = functions(**options)
    dynamic, static = x[:-static_size], x[-static_size:]
    b = split(params["b"], "ifgo")
    z = split(dynamic @ params["w_ih"] + state["h"] @ params["w_hh"], "fgo")
    i = fn.gate(static @ params["w_si"] + b["i"])
    f = fn.gate(z["f"] + b["f"])
    c = fn.cell(f * state["c"] + i * fn.candidate(z["g"] + b["g"]))
    h = fn.gate(z["o"] + b["o"]) * fn.output(c)
    return {"h": h, "c": c}, h


def correlate(x, kernel):
    """Each position of ``x`` ``[*space, in]`` with its neighbours; zeros outside."""
    space, width = x.shape[:-1], kernel.shape[:-2]
    out = np.zeros((*space, kernel.shape[-1]))
    for place in itertools.product(*map(range, space)):
        for offset in itertools.product(*map(range, width)):
            there = tuple(
                p + o - (k - 1) // 2 for p, o, k in zip(place, offset, width, strict=True)
            )
            if all(0 <= t < n for t, n in zip(there, space, strict=True)):
                out[place] += x[there] @ kernel[offset]
    return out


def conv_lstm(params, state, x, kernel_size=(3, 3), peepholes=False, spatial_shape=None, **options):
    """Shi et al. 2015."""
    fn = functions(**options)
    assert params["w_ih"].shape[:-2] == tuple(kernel_size)
    p = {g: params[f"p_{g}"] if peepholes else 0.0 for g in "ifo"}
    z = correlate(x, params["w_ih"]) + correlate(state["h"], params["w_hh"]) + params["b"]
    z = split(z, "ifgo")
    i = fn.gate(z["i"] + p["i"] * state["c"])
    f = fn.gate(z["f"] + p["f"] * state["c"])
    c = fn.cell(f * state["c"] + i * fn.candidate(z["g"]))
    h = fn.gate(z["o"] + p["o"] * c) * fn.output(c)
    return {"h": h, "c": c}, h


# ---- cells whose state is only h ----


def rnn(params, state, x, activation_fn="tanh", preactivation_clip=None):
    """Elman 1990."""
    fn = functions(activation_fn=activation_fn, preactivation_clip=preactivation_clip)
    h = fn.candidate(affine(params, state["h"], x))
    return {"h": h}, h


def ind_rnn(params, state, x, activation_fn="relu", preactivation_clip=None):
    """Li et al. 2018: each unit reads only its own past."""
    fn = functions(activation_fn=activation_fn, preactivation_clip=preactivation_clip)
    h = fn.candidate(x @ params["w_ih"] + params["u_hh"] * state["h"] + params["b"])
    return {"h": h}, h


def gru(params, state, x, reset_after=False, **options):
    """Cho et al. 2014, equations 5 to 8; ``reset_after`` as in version 1 of that paper."""
    fn = functions(**options)
    h = state["h"]
    w, u, b = (split(params[name], "rzg") for name in ("w_ih", "w_hh", "b"))
    r = fn.gate(x @ w["r"] + h @ u["r"] + b["r"])
    z = fn.gate(x @ w["z"] + h @ u["z"] + b["z"])
    if reset_after:
        g = fn.candidate(x @ w["g"] + b["g"] + r * (h @ u["g"] + params["b_hg"]))
    else:
        g = fn.candidate(x @ w["g"] + b["g"] + (r * h) @ u["g"])
    h = z * h + (1.0 - z) * g
    return {"h": h}, h


def mgu(params, state, x, **options):
    """Zhou et al. 2016."""
    fn = functions(**options)
    h = state["h"]
    w, u, b = (split(params[name], "fg") for name in ("w_ih", "w_hh", "b"))
    f = fn.gate(x @ w["f"] + h @ u["f"] + b["f"])
    g = fn.candidate(x @ w["g"] + (f * h) @ u["g"] + b["g"])
    h = (1.0 - f) * h + f * g
    return {"h": h}, h


def min_lstm(params, state, x, activation_fn="identity", **options):
    """Feng et al. 2024, minLSTM: the gates are independent of h and sum to one."""
    fn = functions(activation_fn=activation_fn, **options)
    z = split(x @ params["w_ih"] + params["b"], "ifg")
    i, f = fn.gate(z["i"]), fn.gate(z["f"])
    h = f / (f + i) * state["h"] + i / (f + i) * fn.candidate(z["g"])
    return {"h": h}, h


def min_gru(params, state, x, activation_fn="identity", **options):
    """Feng et al. 2024, minGRU."""
    fn = functions(activation_fn=activation_fn, **options)
    z = split(x @ params["w_ih"] + params["b"], "zg")
    write = fn.gate(z["z"])
    h = (1.0 - write) * state["h"] + write * fn.candidate(z["g"])
    return {"h": h}, h


ORACLES = {
    "lstm_1997": lstm_1997,
    "lstm": lstm,
    "peephole": peephole,
    "coupled": coupled,
    **{
        variant: functools.partial(odyssey, variant=variant)
        for variant in ("nig", "nfg", "nog", "niaf", "noaf", "np", "fgr")
    },
    "projected": projected,
    "layer_norm": layer_norm,
    "multiplicative": multiplicative,
    "mogrifier": mogrifier,
    "slstm": slstm,
    "min_lstm": min_lstm,
    "min_gru": min_gru,
    "gru": gru,
    "mgu": mgu,
    "rnn": rnn,
    "ind_rnn": ind_rnn,
    "ea_lstm": ea_lstm,
    "conv_lstm": conv_lstm,
}
"""Steps by the names of the cells."""


def zero_state(name, params, x):
    """The zero state of one row, for inputs like ``x``."""
    gates = {"min_lstm": 3, "min_gru": 2, "gru": 3, "mgu": 2, "rnn": 1, "ind_rnn": 1}
    if name in gates:
        return {"h": np.zeros(params["b"].size // gates[name])}
    if name == "slstm":
        size = params["b"].size // 4
        return {field: np.zeros(size) for field in "hcn"} | {"m": np.full(size, -1e30)}
    if name == "projected":
        size, projected_size = params["w_hr"].shape
        return {"h": np.zeros(projected_size), "c": np.zeros(size)}
    shape = (*x.shape[:-1], params["w_hh"].shape[-2])
    return {field: np.zeros(shape) for field in ("hcifo" if name == "fgr" else "hc")}


def unroll(
    name, params, xs, state=None, lengths=None, resets=None, reverse=False, mask=None, **options
):
    """A loop over rows and time: ``xs`` ``[T, B, ...]`` to ``(state, ys)``, states as dicts.

    The initial state, which resets restore, is zero, or the parameters ``<field>_0``.
    """
    params = {key: np.asarray(array, np.float64) for key, array in params.items()}
    xs = np.asarray(xs, np.float64)
    steps, batch = xs.shape[:2]
    start = zero_state(name, params, xs[0, 0])
    shape = {field: array.shape for field, array in start.items()}
    start = {
        field: np.broadcast_to(params.get(f"{field}_0", zero), zero.shape)
        for field, zero in start.items()
    }
    last = {field: np.zeros((batch, *shape[field])) for field in start}
    ys = np.zeros((steps, batch, *shape["h"]))
    for row in range(batch):
        if state is None:
            now = start
        else:
            now = {field: np.asarray(state[field], np.float64)[row] for field in start}
        times = range(steps if lengths is None else int(lengths[row]))
        times = [t for t in times if mask is None or mask[t][row]]
        for t in reversed(times) if reverse else times:
            if resets is not None and resets[t][row]:
                now = start
            now, ys[t, row] = ORACLES[name](params, now, xs[t, row], **options)
        for field in start:
            last[field][row] = now[field]
    return last, ys
