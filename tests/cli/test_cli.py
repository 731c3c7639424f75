"""info, check and demo, as a user sees them."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from typer.testing import CliRunner

import pykernels as pk
from pykernels import _native
from pykernels.cli import _console
from pykernels.cli import check as checks
from pykernels.cli import demo as demos
from pykernels.ops._check import inputs_of, tensors_of
from pykernels.ops._spec import all_specs
from pykernels_cli._app import app
from tests.fresh import as_module, run_fresh
from tests.harness import triton_reason

NATIVE = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))


def run(*arguments: str, **environment: str):
    """In this process: importing torch again would take most of the time."""
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160", **environment})


def words(text: str) -> str:
    return " ".join(text.split())


@NATIVE
def test_info_tells_what_there_is():
    done = run("info")
    assert done.exit_code == 0, done.output
    for word in ("torch", torch.__version__, "ISA in force", "avx512_vnni", "native library", "loaded"):
        assert word in done.output
    for spec in all_specs():
        assert spec.name in done.output
        for reason in spec.op.backends.values():
            assert reason is None or reason in words(done.output)


@NATIVE
def test_info_as_json_is_nothing_else():
    done = run("info", "--json")
    facts = json.loads(done.output)
    assert facts["native_error"] is None
    assert facts["isa"] in facts["isas_compiled"]
    assert set(facts["ops"]) == {s.name for s in all_specs()}
    assert facts["ops"]["lstm"]["cpu"] is None
    assert facts["ops"]["int8_matmul"]["triton"] is None
    assert (facts["triton_error"] is None) == (triton_reason() is None)


@pytest.mark.parametrize("error", ["the native library is not built (x is missing); build it", "pykernels needs torch"])
def test_info_without_the_native_library(monkeypatch, error):
    monkeypatch.setattr(_native, "error", error)
    done = run("info")
    assert done.exit_code == 1
    assert error in words(done.output)
    assert "every op runs as plain PyTorch" in words(done.output)
    assert json.loads(run("info", "--json").output)["native_error"] == error


@NATIVE
def test_an_isa_that_is_none_through_the_module():
    done = run_fresh(as_module("pykernels", "info"), env={**os.environ, "PYKERNELS_ISA": "nonsense"})
    assert done.returncode == 1
    assert "PYKERNELS_ISA: expected one of scalar" in words(done.stdout)
    assert "got the unknown ISA 'nonsense'" in words(done.stdout)
    assert "Traceback" not in done.stderr
    rows = [line.split("│") for line in done.stdout.splitlines() if "│" in line]
    cpu = {row[1].strip(): row[2].strip() for row in rows if row[1].strip() in {s.name for s in all_specs()}}
    assert set(cpu) == {s.name for s in all_specs()}
    assert all(cell.startswith("no") for cell in cpu.values())
    assert "no instruction set can be chosen" in words(done.stdout)


@NATIVE
def test_check_passes_and_names_what_it_did_not_check(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = run("check", "--op", "lstm_cell")
    assert done.exit_code == 0, done.output
    for isa in _native.introspect().isas_supported():
        assert isa in done.output
    assert "are within tolerance" in done.output
    assert "Not checked: lstm_cell on cuda" in done.output


@pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
def test_check_of_triton_interprets_where_there_is_no_gpu():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = as_module("pykernels", "check", "--backend", "triton", "--op", "int8_matmul")
    done = run_fresh(code, env=environment, seconds=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("the Triton kernels run in Triton's interpreter" in words(done.stdout)) != torch.cuda.is_available()
    assert "are within tolerance" in done.stdout


@NATIVE
def test_check_options_leave_what_they_name():
    lines = list(checks.cases(["lstm_cell"], "cpu", "scalar", "bfloat16"))
    assert [(c.spec.name, c.backend, c.isa, c.dtype) for c in lines] == [("lstm_cell", "cpu", "scalar", torch.bfloat16)]


@NATIVE
def test_check_takes_every_public_op_and_several():
    public = [name for name in pk.ops.__all__ if name != "ACTIVATIONS"]
    lines = list(checks.cases(public, "reference", None, None))
    assert {case.spec.name for case in lines} == set(public)
    done = run("check", "--op", "conv_transpose_bn_act", "--op", "lstm_cell", "--backend", "reference")
    assert done.exit_code == 0, done.output
    assert "conv_transpose_bn_act" in done.output
    assert "lstm_cell" in done.output


def test_an_option_given_twice_is_refused():
    done = run("check", "--isa", "scalar", "--isa", "avx2")
    assert done.exit_code == 2
    assert done.output == "pykernels check: --isa: expected once, got 2 times\n"


def test_check_names_the_dtypes_of_its_tensors():
    def named(spec):
        return next(s for s in all_specs() if s.name == spec)

    assert checks.dtypes_of(named("lstm"), torch.bfloat16) == ("bfloat16",)
    assert checks.dtypes_of(named("int8_matmul"), torch.float32) == ("int8",)
    assert checks.dtypes_of(named("int8_conv2d"), torch.float16) == ("int8", "float16")
    of_int8 = {case.spec.name for case in checks.cases([], "reference", None, "int8")}
    pools, shuffles = {"max_pool2d", "avg_pool2d", "global_avg_pool2d"}, {"channel_shuffle", "pixel_shuffle"}
    named_for_it = {"int8_dequantize", "int8_add", "int8_affine", "int8_lookup", "int8_squeeze_excite"}
    products = {"int8_matmul", "int8_matmul_scaled", "int8_conv2d", "int8_lstm_cell", "int8_lstm"}
    products |= {"int8_lstm_cell_weight_only", "int8_lstm_weight_only", "weight_only_linear"}
    assert of_int8 == products | named_for_it | pools | shuffles | {"pixel_unshuffle", "upsample2d"}


@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.name)
def test_samples_hold_the_dtypes_that_are_told(spec):
    dtype = spec.op.takes("reference")[-1]
    made = {t.dtype for s in spec.samples if not s.bench for t in tensors_of(inputs_of(s, dtype))}
    assert made & {torch.int8, dtype} == set(spec.sample_dtypes(dtype))


def test_a_line_for_every_ten_seconds_where_there_is_no_terminal(monkeypatch, capsys):
    clock = iter([0.0, 3.0, 12.0, 12.0, 15.0])
    monkeypatch.setattr(_console.time, "monotonic", lambda: next(clock))
    advance = _console._lines(3)
    for step in ("lstm, avx2", "lstm, avx512", "lstm, scalar"):
        advance(step)
    assert capsys.readouterr().err == "[2/3] lstm, avx512\n"


def test_check_fails_on_a_wrong_answer_and_on_an_exception(monkeypatch):
    spec = next(s for s in all_specs() if s.name == "lstm_cell")

    def wrong(*args, **kwargs):
        h, c = spec.function(*args, **kwargs)
        if h.shape[0] == 1:
            raise RuntimeError("no such luck")
        return h * 1.01, c

    monkeypatch.setattr(checks, "all_specs", lambda: (dataclasses.replace(spec, function=wrong),))
    done = run("check", "--backend", "reference", "--dtype", "float32")
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert "error 0.0" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--op", "lstn"), "pykernels check: --op: expected one of conv_bn_act, conv_transpose_bn_act, batch_norm_act"),
        (("--backend", "tpu"), "pykernels check: --backend: expected one of cpu, cuda, triton, reference; got 'tpu'"),
        (("--isa", "sse2"), "pykernels check: --isa: expected one of scalar"),
        (("--dtype", "int4"), "pykernels check: --dtype: expected one of float32, bfloat16, float16, int8; got 'int4'"),
    ],
)
@NATIVE
def test_check_refuses_what_there_is_not(options, message):
    done = run("check", *options)
    assert done.exit_code == 2
    assert message in words(done.output)
    assert done.output.count("\n") == 1


def test_check_of_nothing_is_a_failure():
    done = run("check", "--op", "batch_norm_act", "--backend", "cpu")
    assert done.exit_code == 1
    assert "Nothing was checked" in done.output


def test_demo_without_its_packages_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(demos, "_is_there", lambda name: name != "sklearn")
    done = run("demo", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "sklearn cannot be imported; pip install scikit-learn" in words(done.output)


def test_demo_without_kernels_says_why(monkeypatch, tmp_path):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(_native, "error", "the native library is not built")
    done = run("demo", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert "pykernels demo: it needs the kernels: the native library is not built" in words(done.output)


def test_demo_refuses_a_folder_that_cannot_be():
    done = run("demo", "--out", "/dev/null/x")
    assert done.exit_code == 2
    assert "pykernels demo: --out: expected a path that can be written, got '/dev/null/x/demo.png'" in done.output


@NATIVE
def test_demo_runs_checks_and_draws(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    threads = torch.get_num_threads()
    try:
        done = run("demo", "--quick", "--threads", "1", "--out", str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    for word in ("ResNet-18", "china.jpg", "LSTM language model", "CNN-LSTM", "generate:", "conv_bn_act", "random"):
        assert word in done.output
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
