"""The benches: rows, contenders, the worker and its driver, what a wrong argument gets, and the JSON."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from pykernels._measure import relative_l2
from pykernels.cli.bench import commands, driver, machine, report, result
from pykernels.cli.bench.eager import eager
from pykernels.cli.bench.ops import bench_samples
from pykernels.cli.bench.peers import contenders, measure, prepare, rows, torch_side, worker
from pykernels.cli.bench.peers.prepare import flat_tensors
from pykernels.ops._check import inputs_of
from pykernels.ops._spec import all_specs
from pykernels_cli._app import app
from pykernels_cli._options import cpus
from tests.fresh import run_fresh

QUICK = driver.Plan(rounds=1, seconds=0.02)


def test_rows_are_well_formed():
    names = [row.name for row in rows.ROWS]
    assert len(set(names)) == len(names)
    for row in rows.ROWS:
        assert row.flops > 0
        assert row.batch >= 1
        takers = [c.name for c in contenders.CONTENDERS if c.takes(row)]
        assert row.baseline in takers
        assert any("ours" in name for name in takers)
    assert {row.table for row in rows.ROWS} == {*rows.TABLES, "smoke"}


def test_every_table_of_the_peers_report_has_its_rows():
    assert {row.name for row in rows.select("models", [])} == {
        f"{model}_b{b}" for model in ("resnet18", "resnet50", "resnet18c", "lstmlm", "cnnlstm") for b in (1, 16)
    }
    assert len(rows.select("conv", ["*_b1"])) == 29
    assert len(rows.select("lstm", [])) == 24
    assert {"int8_1x4096x4096", "int8_16x4096x4096", "int8_1024x1024x1024"} <= {r.name for r in rows.select("int8", [])}


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("kind", ["conv", "lstm", "cell"])
def test_flops_of_a_row_are_those_of_its_module(kind):
    from torch.utils.flop_counter import FlopCounterMode

    from pykernels.cli.bench.peers.subjects import build

    row = next(row for row in rows.ROWS if row.kind == kind and row.batch == 1 and row.table != "smoke")
    module, inputs = build(row)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        module(*inputs)
    assert row.flops == counter.get_total_flops()


@pytest.mark.parametrize("row", rows.select("networks", ["*_b1"]), ids=lambda row: row.name)
def test_flops_of_a_network_are_those_of_its_module(row):
    from torch.utils.flop_counter import FlopCounterMode

    from pykernels.cli.bench.peers.subjects import build

    module, inputs = build(row)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.to("meta")(*(x.to("meta") for x in inputs))
    assert row.flops == counter.get_total_flops()


def test_a_missing_package_is_named_once(monkeypatch):
    monkeypatch.setattr(contenders.importlib.util, "find_spec", lambda name: None)
    assert contenders.why_missing(contenders.by_name("mnn")).startswith("MNN, onnx, onnxscript not installed (pip")
    assert contenders.why_missing(contenders.by_name("executorch")).startswith("torch, executorch not installed (pip")


def test_contenders_of_a_row():
    def takers(name):
        return {c.name for c in contenders.CONTENDERS if c.takes(rows.by_name(name))}

    engines = {"ort", "ov", "ncnn", "executorch", "mnn"}
    assert engines | {"eager", "eager_cl", "folded", "compile_frz", "ours", "ours_bf16"} <= takers("resnet50_b1")
    assert engines | {"eager", "dyn_int8", "ours"} <= takers("lstmlm_b16")
    assert not {"folded", "eager_cl"} & takers("lstmlm_b1")
    assert takers("int8_1x4096x4096") == {
        "int_mm", "int_mm_t", "linear_f32", "qlinear", "ort", "ov_int8", "int8_ours", "int8_ours_t", "int8_packed",
    }  # fmt: skip
    dynamic = {"dyn8_torch", "dyn8_ort", "dyn8_ov", "dyn8_ours"}
    assert takers("linear_16x4096x4096") == {"eager", "static8_ov", *dynamic}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the smoke row is prepared, by the first test that runs it."""
    return tmp_path_factory.mktemp("bench")


def test_a_missing_contender_is_named_and_skipped(folder):
    row = rows.SMOKE
    absent = replace(contenders.by_name("ort"), needs=("no_such_engine",), prepares=())
    results = driver.measure_row(row, [contenders.by_name("eager"), absent], 1, QUICK, folder)
    skipped = results[1]
    assert skipped.status == "skipped"
    assert skipped.reason == "no_such_engine not installed (pip install '.[bench]' in the source tree)"
    shown = _text(report.row_table(results))
    assert "ort skipped: no_such_engine not installed" in shown


def test_a_round_trip_through_the_worker(folder, tmp_path):
    told = []
    chosen = [contenders.by_name("eager"), contenders.by_name("folded")]
    found = driver.measure_row(rows.SMOKE, chosen, 1, driver.Plan(rounds=2, seconds=0.02), folder, told.append)
    assert [r.status for r in found] == ["ok", "ok"]
    for r in found:
        assert len(r.processes_ms) == 2
        assert 0 < r.best_ms <= r.median_ms
        assert 0 < r.error < 1e-6
        assert r.peak_mb > 50
        assert r.ratio > 0
    assert found[0].ratio == 1.0
    assert len(told) == 1 + 2 * 2

    path = tmp_path / "results.json"
    result.write_json(path, machine.describe(), QUICK.as_json(), found)
    _check_schema(json.loads(path.read_text()))


def test_a_wrong_answer_is_shown_and_not_timed(folder, tmp_path):
    chosen = [contenders.by_name("eager")]
    assert driver._prepare(rows.SMOKE, chosen, folder) is None
    shutil.copytree(folder / "smoke", tmp_path / "smoke")
    expected = tmp_path / "smoke" / "expected.npz"
    with np.load(expected) as file:
        np.savez(expected, file["arr_0"] + 1.0)
    (result,) = driver.measure_row(rows.SMOKE, chosen, 1, QUICK, tmp_path)
    assert result.status == "wrong"
    assert result.median_ms is None
    assert result.error > 0.1
    assert "WRONG" in _text(report.row_table([result]))


def test_a_process_that_dies_is_a_failure_and_not_the_end(tmp_path, monkeypatch):
    (tmp_path / "smoke").mkdir()
    found = driver.run_worker(rows.SMOKE, contenders.by_name("eager"), 1, 0.0, tmp_path / "smoke")
    assert found["status"] == "failed"
    assert "inputs.npz" in found["reason"]
    monkeypatch.setattr(driver, "HERE", tmp_path)
    found = driver.run_worker(rows.SMOKE, contenders.by_name("eager"), 1, 0.0, tmp_path / "smoke")
    assert found["status"] == "failed"
    assert "exit 1" in found["reason"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gemm", ["int_mm", "qlinear", "int8_ours", "int8_packed", "ort", "ov_int8"]),
        ("linear", ["eager", "dyn8_torch", "dyn8_ort", "dyn8_ov", "static8_ov", "dyn8_ours"]),
    ],
)
def test_an_int8_row_runs_and_is_right(kind, names, tmp_path):
    row = rows.Row("small", "int8", kind, {"m": 17, "n": 24, "k": 40}, 17, 2 * 17 * 24 * 40, frozenset({kind}))
    present = [c for c in map(contenders.by_name, names) if contenders.why_missing(c) is None]
    prepare.write(row, tmp_path, ["onnx"] if any("onnx" in c.prepares for c in present) else [])
    before = torch.get_num_threads()
    try:
        found = {c.name: worker.run(row, c, 1, 0.0, tmp_path) for c in present}
    finally:
        torch.set_num_threads(before)
    assert {name: f["status"] for name, f in found.items()} == dict.fromkeys(found, "ok")
    assert len(found) >= 3


@pytest.mark.skipif(contenders.why_missing(contenders.by_name("ort")) is not None, reason="no ONNX Runtime here")
def test_an_engine_runs_without_torch(tmp_path):
    chosen = [contenders.by_name("ort")]
    driver.measure_row(rows.SMOKE, chosen, 1, QUICK, tmp_path)
    found = driver.run_worker(rows.SMOKE, chosen[0], 1, 0.02, tmp_path / "smoke")
    assert found["status"] == "ok"
    assert found["torch"] is False


def test_packed_bytes_counts_only_what_is_new():
    plain = torch.nn.Linear(4, 4, bias=False)
    other = torch.nn.Linear(4, 4, bias=False)
    other.weight = plain.weight
    assert torch_side.extra_bytes(other, plain) == 0
    other.register_buffer("packed", torch.zeros(10))
    assert torch_side.extra_bytes(other, plain) == 40
    other.kept = ({"unregistered": torch.zeros(5)}, other.packed, other.packed[:2])
    assert torch_side.extra_bytes(other, plain) == 60


def test_the_peak_of_what_came_before_is_forgotten():
    if not sys.platform.startswith("linux"):
        pytest.skip("/proc/self/clear_refs is Linux's")
    block = np.ones(2 * 10**7)
    _, before = measure.memory_mb()
    del block
    measure.forget_peak()
    _, after = measure.memory_mb()
    assert after < before - 100


def test_import_leaves_the_compiler_alone():
    """`torch._dynamo` and what it brings cost more than all of pykernels; 0.3 s is what the import may add."""
    code = "import sys, torch; had = set(sys.modules); import pykernels; print(*sorted(set(sys.modules) - had))"
    done = run_fresh(code)
    assert done.returncode == 0, done.stderr
    added = done.stdout.split()
    assert "pykernels" in added
    assert not [name for name in added if name.startswith(("torch._dynamo", "torch._inductor", "sympy", "triton"))]


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["arrays", "tensors"])
def test_errors_are_compared_in_float64(kind):
    one = kind(np.ones(4, np.float32))
    assert relative_l2(one, one) == relative_l2(one[:0], one[:0]) == 0.0
    assert relative_l2(one * 3, one) == 2.0
    assert relative_l2(one, one * 0) == 2.0  # of nothing: the difference itself
    assert relative_l2(one[:2], one) == float("inf")
    for value in (np.nan, np.inf, -np.inf):
        broken = one * value
        assert relative_l2(broken, one) == relative_l2(one, broken) == float("inf")
        assert relative_l2(broken, broken) == 0.0
    assert relative_l2(one * np.inf, one * -np.inf) == float("inf")


def test_the_worst_error_of_the_outputs_that_both_have():
    one = np.ones(4, np.float32)
    assert measure.worst_error([], [one]) == float("inf")
    assert measure.worst_error([one[None]], [one, one]) == 0.0
    assert measure.worst_error([one, one + 1], [one, one]) == pytest.approx(1.0)


def test_slow_calls_do_not_take_forever():
    import time

    found = measure.time_calls(lambda: time.sleep(0.05), seconds=0.01, least=100)
    assert found["calls"] == 1
    assert found["best_ms"] >= 50


def test_a_contender_keeps_to_its_threads(monkeypatch, tmp_path):
    """MNN once took two for one, and led."""
    row, ours = rows.by_name("resnet18_b1"), contenders.by_name("ours")
    loaded = contenders.Loaded(lambda: None, lambda result: [np.zeros(1)], 0.0)
    monkeypatch.setattr(contenders.Contender, "load", lambda self, row, folder, threads: loaded)
    monkeypatch.setattr(worker.exported, "arrays_of", lambda path: [np.zeros(1)])
    timed = {"median_ms": 1.0, "best_ms": 1.0, "calls": 5, "faults": 0.0, "cpus": 1.98, "others": 0.0}
    monkeypatch.setattr(worker.measure, "time_calls", lambda call, seconds: timed)
    assert worker.run(row, ours, 2, 1.0, tmp_path)["status"] == "ok"
    with pytest.raises(RuntimeError, match=r"threads: expected 1, got 1\.98 CPUs kept busy"):
        worker.run(row, ours, 1, 1.0, tmp_path)


#: Torch has no LSTM that rounds x and h as these do. Rounding to steps of max / 127, as in tests/nn/test_int8.py, of x
#: and of h, and twice that for the recurrence.
ROUNDED = dict.fromkeys(("int8_lstm", "int8_lstm_cell"), 2 * 2**0.5 * 3.5 / 127 / 12**0.5)


@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.name)
def test_the_eager_baseline_computes_the_op(spec):
    samples = [sample for owner, sample in bench_samples() if owner is spec]
    if not samples:
        pytest.skip("no bench samples yet")
    sample = min(samples, key=lambda s: s.flops)
    args, kwargs = inputs_of(sample, torch.float32)
    with torch.no_grad():
        got = flat_tensors(eager(spec)(*args, **kwargs))
        expected = flat_tensors(spec.reference(*args, **kwargs))
    assert len(got) == len(expected)
    for g, e in zip(got, expected, strict=True):
        assert relative_l2(g, e) <= ROUNDED.get(spec.name, 2 * spec.tolerance(torch.float32, sample))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["peers", "cars"], "table: expected one of models, networks, conv, lstm, int8; got 'cars'"),
        (["peers", "models", "--rows", "vgg*"], "--rows: expected patterns of rows of 'models' (resnet18_b1"),
        (["peers", "models", "--contenders", "jax"], "--contenders: expected some of eager"),
        (["peers", "models", "--threads", "0"], "--threads: expected positive numbers"),
        (["peers", "models", "--threads", "two"], "--threads: expected positive numbers"),
        (["peers", "models", "--threads", "1,4096"], f"at most {cpus()}, the CPUs of this process; got '1,4096'"),
        (["peers", "models", "--repeats", "0"], "--repeats: expected a positive whole number, got '0'"),
        (["peers", "models", "--seconds", "nan"], "--seconds: expected a positive number of seconds, got 'nan'"),
        (
            ["memory", "--threads", "1,2"],
            f"--threads: expected a number from 1 to {cpus()}, the CPUs of this process; got '1,2'",
        ),
        (["memory", "--rows", "vgg"], "--rows: expected patterns of rows"),
        (["startup", "--rows", "vgg"], "--rows: expected patterns of rows"),
        (["ops", "softmax"], "op: expected one of conv_bn_act"),
        (["ops", "lstm", "--threads", "1,x"], "--threads: expected positive numbers"),
        (
            ["peers", "--json", "/dev/null/x"],
            "--json: expected a path that can be written, got '/dev/null/x' (",
        ),
        (["memory", "--json", "/dev/null/x"], "--json: expected a path that can be written"),
        (["ops", "--json", "/dev/null/x"], "--json: expected a path that can be written"),
        (["ops", "--json", "/tmp"], "--json: expected a path that can be written, got '/tmp' (is a directory)"),
        (["cars"], "command: expected one of peers, memory, startup, ops; got 'cars'"),
        (["ops", "--cars"], "--cars: expected one of --threads, --seconds, --json, --help; got no option of these"),
        (["ops", "--json"], "--json: expected a value, got none"),
        (["startup", "cars"], "expected no more arguments, got 'cars'"),
    ],
)
def test_a_wrong_argument_gets_a_readable_error(arguments, says):
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.exit_code == 2
    command = "" if arguments[0] == "cars" else f" {arguments[0]}"
    assert result.output.startswith(f"pykernels bench{command}: ")
    assert says in result.output
    assert result.output.count("\n") == 1


def test_listing_measures_nothing():
    result = CliRunner().invoke(app, ["bench", "peers", "conv", "--list", "--rows", "conv64-64*"])
    assert result.exit_code == 0
    assert "conv64-64_3x3s1_56_b16" in result.output
    assert "torch.compile, freezing" in result.output


def test_peers_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "select", lambda table, patterns: [rows.SMOKE])
    path = tmp_path / "deep" / "out.json"
    asked = ["peers", "conv", "--contenders", "eager_cl", "--threads", "1", "--repeats", "1", "--seconds", "0.02"]
    result = CliRunner().invoke(app, ["bench", *asked, "--json", str(path)])
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    _check_schema(content)
    assert [r["contender"] for r in content["results"]] == ["eager", "eager_cl"]
    assert "smoke, 1 thread" in result.output


def _check_schema(content):
    assert set(content) == {"schema", "machine", "method", "results"}
    assert content["schema"] == result.SCHEMA
    assert {"date", "commit", "cpu", "cores", "isa", "load", "versions", "python", "platform"} == set(
        content["machine"]
    )
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["machine"]["python"] == sys.version.split()[0]
    assert set(content["method"]) == {"rounds", "seconds", "alone", "ratio"}
    for row in content["results"]:
        assert {"row", "contender", "threads", "batch", "flops", "status"} <= set(row)
        assert row["status"] in ("ok", "wrong", "failed", "skipped")
        if row["status"] == "ok":
            assert {"median_ms", "best_ms", "spread", "error", "peak_mb", "import_s", "load_s", "first_s"} <= set(row)
        else:
            assert "reason" in row or "error" in row


def test_ops_writes_the_rows_of_the_peers(tmp_path):
    path = tmp_path / "ops.json"
    asked = ["bench", "ops", "lstm_cell", "--threads", "1,2", "--seconds", "0.01"]
    done = CliRunner().invoke(app, [*asked, "--json", str(path)])
    assert done.exit_code == 0, done.output
    content = json.loads(path.read_text())
    assert content["schema"] == result.SCHEMA
    assert content["method"]["alone"] is False
    rows_of = [(r["row"], r["contender"], r["threads"]) for r in content["results"]]
    samples = [f"lstm_cell {sample.name}" for _, sample in bench_samples("lstm_cell")]
    assert rows_of == [(row, who, count) for count in (1, 2) for row in samples for who in ("eager", "ours")]
    assert all(r["status"] in ("ok", "skipped") for r in content["results"])


def _text(table):
    console = Console(width=250, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def test_every_op_has_its_baseline_and_an_unknown_one_is_named():
    assert all(callable(eager(spec)) for spec in all_specs())
    spec = all_specs()[0]
    unknown = replace(spec, op=replace(spec.op, name="softmax"))
    with pytest.raises(
        ValueError, match=r"pykernels bench: softmax: expected an op with a baseline, one of conv_bn_act"
    ):
        eager(unknown)
