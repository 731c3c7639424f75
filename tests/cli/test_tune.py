"""`pykernels tune` with a clock that is made up, and what becomes of the table that it writes."""

from __future__ import annotations

import contextvars
import dataclasses
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import pykernels as pk
from pykernels.cli import tune
from pykernels.ops import _tuned
from pykernels_cli._app import app
from tests.harness import needs_triton

GPU = "Made-up GPU"
SHAPE = "48,40,64"


def run(*arguments: str):
    return CliRunner().invoke(app, ["tune", *arguments], env={"COLUMNS": "200"})


@pytest.fixture
def config():
    pytest.importorskip("triton")
    from pykernels.ops.int8_matmul.triton.config import Config

    return Config


@pytest.fixture
def fake_gpu(monkeypatch, tmp_path):
    """A GPU that interprets, and whose clock finds the last candidate the fastest; the table is tmp_path's."""

    class Clock:
        def __init__(self, device, repeats):
            pass

        def medians(self, calls):
            for call in calls[:2]:
                call()
            return [float(len(calls) - i) for i in range(len(calls))]

    monkeypatch.delenv("PYKERNELS_TUNED", raising=False)
    monkeypatch.setattr(tune, "no_gpu", lambda: None)
    monkeypatch.setattr(tune, "Clock", Clock)
    monkeypatch.setattr(tune, "gpu", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: GPU)
    return tmp_path / "table.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be tuned")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    out = tmp_path / "table.json"
    done = run("--op", "int8_matmul", "--shape", SHAPE, "--out", str(out))
    assert done.exit_code == 2
    assert "torch sees no GPU" in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--op", "softmax"), "--op: expected one of conv_bn_act, int8_matmul, lstm_product; got 'softmax'"),
        (("--op", "int8_matmul", "--shape", "1,2"), "--shape: expected m,n,k for int8_matmul"),
        (("--op", "int8_matmul", "--shape", "1,2,-3"), "--shape: expected m,n,k for int8_matmul"),
        (("--op", "int8_matmul", "--shape", "a,b,c"), "got 'a,b,c'"),
        (("--op", "conv_bn_act", "--shape", "1,2,3"), "--shape: expected pixels,filters,channels,taps,groups"),
        (("--shape", "1,2,3"), "--shape: expected --op beside it"),
        (("--dtype", "int3"), "--dtype: expected one of float16, bfloat16, float32; got 'int3'"),
        (("--repeats", "0"), "pykernels tune: --repeats: expected a positive whole number, got '0'"),
        (("--out", "/dev/null/x"), "--out: expected a path that can be written, got '/dev/null/x' ("),
    ],
)
def test_wrong_options_are_named(arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_the_bench_samples_have_shapes():
    for op, shapes in tune.shapes_of(None, []).items():
        assert shapes
        assert all(len(shape) == len(tune.TUNABLES[op].sizes) for shape in shapes), op


@needs_triton
def test_the_winner_is_written_merged_and_taken(fake_gpu, monkeypatch, config):
    fake_gpu.write_text(json.dumps({"triton": "3.6.0", "devices": {"Other": {"int8_matmul": {}}}}))
    done = run("--op", "int8_matmul", "--shape", SHAPE, "--out", str(fake_gpu))
    assert done.exit_code == 0, done.output
    assert f"PYKERNELS_TUNED={fake_gpu}" in done.output.replace("\n", "")
    devices = _tuned.read(fake_gpu)
    assert set(devices) == {"Other", GPU}
    fields = devices[GPU]["int8_matmul"][f"{SHAPE} int8"]
    candidates = tune.TUNABLES["int8_matmul"].candidates((48, 40, 64), torch.int8, interpreter())
    assert config(**fields) == candidates[-1] != candidates[0]

    # The launcher takes it: on a tensor that is on that GPU, which here only _tuned believes.
    monkeypatch.setenv("PYKERNELS_TUNED", str(fake_gpu))
    taken = launches(monkeypatch, on_gpu=True)
    assert taken == {"BLOCK_M": fields["block_m"], "BLOCK_N": fields["block_n"], "BLOCK_K": fields["block_k"]}


@needs_triton
def test_nothing_is_tuned_or_taken_otherwise(monkeypatch, config):
    monkeypatch.delenv("PYKERNELS_TUNED", raising=False)
    monkeypatch.setattr(tune.Clock, "medians", lambda *_: pytest.fail("tuned without being asked"))
    chosen = tune.TUNABLES["int8_matmul"].candidates((48, 40, 64), torch.int8, interpreter())[0]
    taken = launches(monkeypatch, on_gpu=True)
    assert taken == {"BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n, "BLOCK_K": chosen.block_k}


@needs_triton
def test_a_candidate_with_a_wrong_answer_never_wins(fake_gpu, monkeypatch, config):
    right = tune._int8_trial

    def trial(shape, dtype, device):
        made = right(shape, dtype, device)

        def call():
            wrong = _tuned._forced.get()["int8_matmul"]["splits"] > 1
            return made.call() + (1 if wrong else 0)

        return dataclasses.replace(made, call=call)

    split = dataclasses.replace(config(16, 64, 64, 2, 4, 5, 2), splits=2)
    both = lambda shape, dtype, device: [dataclasses.replace(split, splits=1), split]  # noqa: E731
    changed = dataclasses.replace(tune.TUNABLES["int8_matmul"], trial=trial, candidates=both)
    monkeypatch.setitem(tune.TUNABLES, "int8_matmul", changed)
    done = run("--op", "int8_matmul", "--shape", SHAPE, "--out", str(fake_gpu))
    assert done.exit_code == 0, done.output
    assert _tuned.read(fake_gpu)[GPU]["int8_matmul"][f"{SHAPE} int8"]["splits"] == 1

    none = dataclasses.replace(changed, candidates=lambda *_: [split])
    monkeypatch.setitem(tune.TUNABLES, "int8_matmul", none)
    done = run("--op", "int8_matmul", "--shape", SHAPE, "--out", str(fake_gpu))
    assert done.exit_code == 1
    assert "as it is chosen" in done.output


@needs_triton
@pytest.mark.parametrize("op", sorted(tune.TUNABLES))
def test_candidates_differ_and_the_first_is_right(op):
    shape = {"conv_bn_act": (49, 32, 16, 9, 1)}.get(op, (20, 48, 64))
    dtype = tune.TUNABLES[op].dtypes[-1]
    candidates = tune.TUNABLES[op].candidates(shape, dtype, interpreter())
    assert len(set(candidates)) == len(candidates) > 1
    for candidate in candidates:
        _tuned.check_fields("", op, dataclasses.asdict(candidate))

    class Clock:
        def medians(self, calls):
            return [1.0 for _ in calls]

    one = dataclasses.replace(tune.TUNABLES[op], candidates=lambda *_: candidates[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tune.TUNABLES, op, one)
        right, _ = tune.best(op, shape, dtype, torch.device("cpu"), Clock())
    assert right == candidates[:1]


def interpreter():
    from pykernels.ops._triton import device_of

    return device_of(torch.empty(0))


def launches(monkeypatch, *, on_gpu: bool) -> dict[str, int]:
    """The tiles that int8_matmul launches with, the table being asked as for a tensor on `GPU`."""
    from pykernels.ops.int8_matmul import triton as kernels

    seen = {}

    def launch(kernel, grid, *arguments, **constants):
        if "PRODUCTS" in constants:
            seen.update({k: constants[k] for k in ("BLOCK_M", "BLOCK_N", "BLOCK_K")})

    monkeypatch.setattr(kernels, "launch", launch)
    monkeypatch.setattr(kernels, "tuned", lambda op, t, shape: asked(op, shape) if on_gpu else None)
    _tuned.table.cache_clear()
    pk.ops.int8_matmul(
        torch.zeros(48, 64, dtype=torch.int8), torch.zeros(40, 64, dtype=torch.int8).t(), backend="triton"
    )
    _tuned.table.cache_clear()
    return seen


def asked(op, shape):
    return _tuned.table().get(GPU, {}).get(op, {}).get(_tuned.key(shape, torch.int8))


FIELDS = {"block_m": 64, "block_n": 128, "block_k": 64, "products": 2, "warps": 4, "stages": 4, "resident": 2}


def table_of(fields):
    return json.dumps({"devices": {GPU: {"int8_matmul": {"1,2,3 int8": fields}}}})


@needs_triton
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "the file: expected an object"),
        ("{}", "'devices': expected an object, got None"),
        ('{"devices": {"x": 3}}', "x: expected an object, got 3"),
        ('{"devices": {"x": {"softmax": {}}}}', "expected ops among .*, got 'softmax'"),
        ('{"devices": {"x": {"lstm_product": 4}}}', "x, lstm_product: expected an object"),
        (table_of([1]), "1,2,3 int8: expected an object"),
        (table_of({**FIELDS, "colour": 1}), "expected fields among block_m, .*, got 'colour'"),
        (table_of({"block_m": 64}), "block_n, block_k, products, warps, stages, resident missing"),
        (table_of({**FIELDS, "block_m": 48}), "block_m: expected a power of two, got 48"),
        (table_of({**FIELDS, "warps": 3}), "warps: expected a power of two, got 3"),
        (table_of({**FIELDS, "warps": 64}), "warps: expected a whole number from 1 to 32, got 64"),
        (table_of({**FIELDS, "stages": 0}), "stages: expected a whole number from 1 to 16, got 0"),
        (table_of({**FIELDS, "splits": -2}), "splits: expected a whole number"),
        (table_of({**FIELDS, "block_n": "128"}), "block_n: expected a whole number .*, got '128'"),
        (table_of({**FIELDS, "block_n": 128.0}), "block_n: expected a whole number .*, got 128.0"),
        (table_of({**FIELDS, "block_n": True}), "block_n: expected a whole number .*, got True"),
    ],
)
def test_a_malformed_table_is_refused_by_name(tmp_path, text, words):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.json: expected a table .*{words}"):
        _tuned.read(path)
    done = run("--out", str(path))  # before anything is timed, and the file is left as it was
    assert done.exit_code == 2
    assert path.read_text() == text


def test_a_missing_table_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("PYKERNELS_TUNED", str(tmp_path / "none.json"))
    _tuned.table.cache_clear()
    with pytest.raises(ValueError, match=r"none\.json"):
        _tuned.table()
    _tuned.table.cache_clear()


def test_every_op_that_is_looked_up_can_be_tuned_and_no_other():
    sources = "".join(path.read_text() for path in Path(pk.__file__).parent.rglob("*.py"))
    asked_for = re.findall(r'\btuned\(\s*"(\w+)"', sources)
    assert set(asked_for) == set(_tuned.CONFIGS) == set(tune.TUNABLES)


def test_a_forced_config_is_of_its_context():
    x, fields = torch.zeros(1), {"block_m": 16}

    def found(op="lstm_product"):
        return _tuned.tuned(op, x, (1, 2, 3))

    with _tuned.forced("lstm_product", fields):
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(found).result() is None
            assert pool.submit(contextvars.copy_context().run, found).result() == fields
        with _tuned.forced("int8_matmul", {}):
            assert (found(), found("int8_matmul")) == (fields, {})
        assert (found(), found("int8_matmul")) == (fields, None)
    assert found() is None


@needs_triton
def test_a_device_to_choose_tiles_for_is_of_its_context():
    from pykernels.ops import _triton

    x = torch.zeros(1)
    before = _triton.device_of(x)
    with _triton.on_device(_triton.HOPPER), ThreadPoolExecutor(1) as pool:
        assert _triton.device_of(x) == _triton.HOPPER
        assert pool.submit(_triton.device_of, x).result() == before
    assert _triton.device_of(x) == before


@needs_triton
def test_every_op_with_a_table_has_its_config():
    for op, module in _tuned.CONFIGS.items():
        with pytest.raises(ValueError, match="missing"):
            _tuned.check_fields(module, op, {})
