"""Damaged or malicious config files, by seeded mutations."""

import tomli_w

from tests.robustness import hostile

INTEGERS = [
    "0", "-1", "1", "2", "7", "2147483648", "-9223372036854775808", "9223372036854775808",
    "1" + "0" * 30, "9" * 5000, "0x7fffffff", "0x" + "f" * 5000, "0b11", "+5", "1_000",
]  # fmt: skip
FLOATS = [
    "nan", "-inf", "inf", "1e400", "-1e400", "1e308", "5e-324", "-0.0", "0.5", "1.0",
    "0.999999999999", "1e-9", "3.0",
]  # fmt: skip
STRINGS = [
    "", " ", "nan", "x" * 5000, "é" * 300, "\u202eabc", "\U0001f600", "a\nb", "\t", "\x1b[2J",
    "\x7f", "\u2028", "%s%d%(x)s", "{0}", "$\\frac{$", "<script>", "~", "~nobody/x", "..", "/",
    "/dev/null", "/etc", "table.csv", "text.txt", "sequences.ts", "no\0thing", "[a]*?",
    "a" * 300 + ".csv", "python_reference", "etth1", "japanese_vowels", "mean", "cosine", "adamw",
    "bfloat16", "float64", "\ud7ff", "\ufeff", "CON", "-", "--help",
]  # fmt: skip
OTHERS = [
    "true", "false", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "[]", "[1, 2]", "{}",
    "{a = 1}", "[[[[]]]]", "", "None", "'", '"', '"""', "[" * 200, "{ a = { b = { c = 1 } } }",
]  # fmt: skip
TASKS = [
    "", ".", "..", "a.", ".a", "json.loads", "json.JSONDecoder", "lstm_jax.tasks.Task",
    "no_such.Task", "a b.c", "next_character ", "Forecasting", "clasification", "1.2", "\n.x",
    "lstm_jax..tasks", "é.é", "x" * 5000 + ".y",
]  # fmt: skip
NAMES = [
    "lstm", "gru", "peephole", "layer_norm", "mogrifier", "projected", "conv_lstm", "rnn",
    "min_lstm", "slstm", "zoneout", "recurrent_dropout", "variational_dropout", "drop_connect",
    "lstn", "os.system", "json.JSONDecoder", "no_such.Cell", "", "é", "lambda", "None", "ind_rnn",
    "ea_lstm", "lstm_1997", "mgu",
]  # fmt: skip
OPTIONS = [
    "forget_bias", "hidden_rate", "cell_rate", "rate", "projection_size", "rounds", "rank",
    "activation", "hidden_size", "dtype", "cell", "x", "é", "gate_activation", "use_bias",
    "static_size",
]  # fmt: skip
VALUES = [
    "1e400", "-1e400", "1e308", "0", "-1", "1", "2", "0.5", "10**9", "1" + "0" * 400, "None",
    "True", "'x'", "''", "'tanh'", "[1]", "(1, 2)", "{}", "{1: 2}", "b'x'", "1j", "...", "x",
    "-x", "lambda: 0", "f'{1}'", "__import__('os')", "float('nan')", "1 if 1 else 2", "(((1)))",
    "'\\x1b'", "1_0", "0.1",
]  # fmt: skip


def literal(rng):
    """A value in TOML syntax."""
    kind = rng.randrange(5)
    if kind == 0:
        return quoted(rng.choice(STRINGS + TASKS))
    if kind == 1:
        return quoted(cell(rng))
    return rng.choice([INTEGERS, FLOATS, OTHERS][kind - 2])


def quoted(text):
    return tomli_w.dumps({"a": text})[4:].rstrip("\n")


def cell(rng):
    """The string of a cell, with hostile names, options and nesting."""
    if rng.random() < 0.05:
        return rng.choice(
            [
                "zoneout(" * 3000,
                "-" * 100000 + "lstm",
                "(" * 100,
                "lstm" * 3000,
                "lstm\0",
                "lstm # x",
                "\n lstm",
            ]
        )
    if rng.random() < 0.03:
        return "zoneout(" * 90 + "lstm" + ")" * 90
    name = rng.choice(NAMES)
    inner = [cell(rng)] if rng.random() < 0.3 else []
    options = [
        f"{rng.choice(OPTIONS)}={rng.choice(VALUES)}" for _ in range(rng.choice([0, 0, 1, 1, 2]))
    ]
    if rng.random() < 0.05:
        options.append(rng.choice(["**{}", "*[]", "**x", "1", "a := 1"]))
    form = rng.choice(["{}({})", "{}({})", "{}({})", "{} ({})", "{}[{}]", "{}({})()", "-{}({})"])
    return form.format(name, ", ".join([*inner, *options])) if inner or options else name


def mutated_config(rng, text):
    """A config file with some changed lines."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        n = rng.randrange(len(lines))
        keys = [m for m, line in enumerate(lines) if "=" in line and not line.startswith("#")]
        key, _, value = lines[rng.choice(keys)].partition(" = ") if keys else ("x", "", "1")
        if keys:
            n = rng.choice(keys)
            key, _, value = lines[n].partition(" = ")
        what = rng.randrange(9)
        if what <= 3:
            new = literal(rng)
            if key == "task" and rng.random() < 0.8:
                new = quoted(
                    rng.choice([*TASKS, "next_character", "forecasting", "classification"])
                )
            lines[n] = f"{key} = {new}"
        elif what == 4:
            names = [
                key.upper(),
                key[:-1],
                f"{key}x",
                f'"{key}"',
                '""',
                "é",
                f"{key}.a",
                f"data.{key}",
                key.replace("_", "-"),
                "'a\u0007'",
            ]
            lines[n] = f"{rng.choice(names)} = {value}"
        elif what == 5:
            lines.insert(rng.randrange(len(lines)), f"{key} = {rng.choice([value, literal(rng)])}")
        elif what == 6:
            del lines[n]
        elif what == 7:
            section = rng.choice(
                [
                    "[data]",
                    "[model]",
                    "[optimizer]",
                    "[train]",
                    "[[data]]",
                    "[x]",
                    "[data.x]",
                    "[]",
                    "[data",
                    "[Train]",
                ]
            )
            lines.insert(rng.randrange(len(lines)), section)
        else:
            lines.insert(n, f"cell = {quoted(cell(rng))}")
            if rng.random() < 0.8 and "[model]" in lines:
                lines.insert(lines.index("[model]") + 1, lines.pop(n))
    return "\n".join(lines)


def mutated_file(rng, content):
    """The bytes of a config file: as written by another editor, or damaged."""
    what = rng.randrange(8)
    if what == 0:
        return b"\xef\xbb\xbf" + content
    if what == 1:
        return content.replace(
            b"\n", rng.choice([b"\r\n", b"\r", b"\n\r", b"\n\n", b"\0", b"\x0b"])
        )
    if what == 2:
        return content.decode("utf-8").encode(
            rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-7"])
        )
    if what == 3:
        return rng.choice(
            [b"", b"\n", b"\0" * 100, b"# \xff\n" + content, content * 2, b"x" * 10**6]
        )
    return hostile.mutated_bytes(rng, content)
