"""``lstm-jax export``: what it prints and writes, and one line for a mistake."""

import re

import pytest

from lstm_jax.cli import main


def test_metrics_sizes_and_times_are_printed(workdir, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert main(["export", str(workdir), "--dtype", "int8"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    number = r" +-?\d[\d,]*\.\d+ │"
    rows = re.findall(rf"^│ (.*?) +│{number}{number}.*│$", printed.out, re.MULTILINE)
    assert rows == [
        "this run, step 1",
        "exported, stablehlo int8",
        "difference",
    ]
    folder = workdir / "export" / "stablehlo-int8"
    names = ["carry.npz", "manifest.json", "run.py", "sequence.jaxexport", "step.jaxexport"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "weights.npz"]
    summary = rf"^{re.escape(str(folder))}: [\d.,]+ kB: (.*)$"
    (sizes,) = re.findall(summary, printed.out, re.MULTILINE)
    assert re.findall(r"(\S+) [\d.,]+ kB", sizes) == [*names, "weights.npz"]
    seconds = r"\(the first \d+\.\d\d s\)"
    assert re.search(
        rf"^loaded in \d+\.\d{{3}} s; a step of one row \d+\.\d{{3}} ms {seconds}, "
        rf"64 steps at once \d+\.\d{{3}} ms {seconds}$",
        printed.out,
        re.MULTILINE,
    )


@pytest.mark.peers
def test_onnx_with_dynamic_int8_quantisation(workdir, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(workdir), "--format", "onnx", "--dtype", "dynamic-int8"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "exported, onnx dynamic-int8" in printed.out
    files = {path.name for path in (workdir / "export" / "onnx-dynamic-int8").iterdir()}
    assert files == {
        "manifest.json", "run.py", "sequence.onnx", "carry.npz", "step.onnx", "weights.bin",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--dtype", "int4"], 2, ["--dtype", "int4", "bfloat16"]),
        (["--format", "tflite"], 2, ["--format", "tflite", "onnx"]),
        (["--dtype", "dynamic-int8"], 1, ["--dtype dynamic-int8", "--format onnx"]),
        (["--dtypo", "int8"], 2, ["--dtypo: unknown option", "--dtype"]),
    ],
)
def test_mistakes_give_one_line(workdir, words, code, said, capsys):
    assert main(["export", str(workdir), *words]) == code
    err = capsys.readouterr().err
    assert err.startswith("lstm-jax: error: ") and err.count("\n") == 1
    for word in said:
        assert word in err


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["export", str(tmp_path)]) == 1
    assert f"{tmp_path}: no run here" in capsys.readouterr().err
