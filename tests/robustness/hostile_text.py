"""Text files whose fields, lines, line ends or encoding are changed, by seeded mutations."""

FIELDS = [
    "", " ", "?", "nan", "NaN", "inf", "-inf", "1e400", "-1e400", "1e308", "1e-400", "1e38",
    "1e39", "0", "-0", "+1", "1.", ".5", ".", "1e", "1e5", "1E+05", "0x10", "1_000", "1 000",
    "1,5", '"1,5"', '"1.5"', '"1"5', '1"5', '"', '""', "'1'", "١٢", "１２", "²", "½", "1\u00a0000",
    "\u20091", "1\v2", "\v1", "1\x1c", "−1", "1.2.3", "1-2", "12:30", "2024-02-30", "2024-01-05",
    "2023-12-31T23:59:59+05:00", "2024-01-01T00:00Z", "1.7976931348623157e308", "9" * 400,
    "9" * 5000 + "x", "1" + "0" * 30000 + "x", "True", "None", "#1", "=1+1", "note", "ill", "p0",
    "a\nb", '"a\nb"', "a;b", "a\tb", "\0", "é" * 50,
]  # fmt: skip
NAMES = [
    "", "date", "1", "2.5", "price", "é", "x" * 1000, '"a,b"', "a\tb", "\x1b[2J", "t", "who",
    "what", " who", "who ",
]  # fmt: skip
HEADERS = [
    "@data", "@classLabel true b a", "@classLabel true a a b", "@classLabel false",
    "@CLASSLABEL TRUE a b c", "@DATA", "@dimensions 2", "@", "#", "@timeStamps true",
    "@classLabel", "?", ":::a", "1,2:a", "NaN:NaN:NaN:a",
]  # fmt: skip


def mutated_lines(rng, text, separators=","):
    """A text file with some changed fields, lines or line ends."""
    lines = text.split("\n")
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        n = rng.randrange(len(lines))
        line, separator = lines[n], rng.choice(separators)
        fields, what = line.split(separator), rng.randrange(12)
        m = rng.randrange(len(fields))
        if what <= 3:
            fields[m] = rng.choice(FIELDS if n or ":" in text else NAMES + FIELDS)
            lines[n] = separator.join(fields)
        elif what == 4:
            fields.insert(m, rng.choice([fields[m], rng.choice(FIELDS)]))
            lines[n] = separator.join(fields)
        elif what == 5:
            del fields[m]
            lines[n] = separator.join(fields)
        elif what == 6:
            del lines[n]
        elif what == 7:
            lines.insert(
                rng.randrange(len(lines)), rng.choice([line, "", " ", separator * 3, lines[0]])
            )
        elif what == 8:
            rng.shuffle(lines)
        elif what == 9:
            lines.insert(rng.randrange(len(lines)), rng.choice(HEADERS))
        elif what == 10:  # a whole column
            value = rng.choice(FIELDS)
            rows = [each.split(separator) for each in lines]
            lines = [
                separator.join(value if k == m and j else x for k, x in enumerate(row))
                for j, row in enumerate(rows)
            ]
        else:
            lines[n] = line.replace(
                rng.choice("0123456789.,:"), rng.choice(["", " ", ";", "\t", "0", '"', "e", "x"])
            )
        lines = lines or [""]
    text = "\n".join(lines)
    if rng.random() < 0.2:
        text = text.replace(",", rng.choice([";", "\t", ";", " ", ", ", "|"]))
        if rng.random() < 0.5:
            text = text.replace(".", ",")
    if rng.random() < 0.2:
        text = text.replace(
            "\n", rng.choice(["\r\n", "\r", "\n\r", "\n\n", "\v", "\u2028", "\x1c"])
        )
    return text


def encoded(rng, text):
    """The text in the encoding of another program."""
    coding = rng.choice(
        ["utf-8"] * 6 + ["utf-8-sig", "utf-8-sig", "utf-16", "utf-32", "latin-1", "utf-16-le"]
    )
    return text.encode(coding, "xmlcharrefreplace")
