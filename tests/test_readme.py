"""The README's figures are those of the committed measurements, and its matrix of ops is that of the package."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from pykernels import ops
from pykernels.ops._op import FAMILIES, Op

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "bench/results"
ENGINES = {"ort": "ONNX Runtime", "ov": "OpenVINO", "ncnn": "ncnn", "mnn": "MNN", "executorch": "ExecuTorch"}

pytestmark = pytest.mark.skipif(
    not (README.is_file() and RESULTS.is_dir()), reason="no README or no results beside the tests"
)


def results_of(name):
    return json.loads((RESULTS / name).read_text())["results"]


def table_of(results):
    """The lines of the table: what it says for each row of the measurements, by its best calls."""
    best = {(r["row"], r["contender"], r["threads"]): r["best_ms"] for r in results if r["status"] == "ok"}
    lines = []
    for row in dict.fromkeys(r["row"] for r in results):
        cells = [row.removesuffix("_b1")]
        for threads in (1, 2):
            ours, eager = best[row, "ours", threads], best[row, "eager", threads]
            engine = min(ENGINES, key=lambda e: best.get((row, e, threads), float("inf")))
            ratio = best[row, engine, threads] / ours
            cells += [f"{eager / ours:.1f}", f"{ratio:.2f} ({ENGINES[engine]})"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def table_in(page, head="| network |"):
    """The lines of its table that begins so."""
    lines = page.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    told = [*lines[start + 2 :], ""]
    return told[: next(i for i, line in enumerate(told) if not line.startswith("|"))]


@pytest.mark.parametrize(("page", "isa"), [("README.md", "avx512_vnni"), ("docs/benchmarks.md", "avx2")])
def test_the_tables_are_those_of_the_committed_measurements(page, isa):
    results = [r for part in ("models", "networks") for r in results_of(f"peers-{part}-{isa}.json")]
    assert results
    assert table_in(ROOT / page) == table_of(results)


def test_the_page_of_networks_is_that_of_the_sweep():
    page = ROOT / "docs/networks.md"
    rows = results_of("zoo-avx2.json")
    assert rows
    rows.sort(key=lambda row: -row["ratio"])
    assert table_in(page) == [f"| {row['name']}{' *' * (row['status'] != 'ok')} | {row['ratio']:.2f} |" for row in rows]


def test_the_figures_in_the_text_are_those_of_the_committed_measurements():
    text = " ".join(README.read_text().split())
    ratios = [row["ratio"] for row in results_of("zoo-avx2.json")]
    assert f"[{len(ratios)} networks of timm and torchvision against eager]" in text
    assert f"{sum(r >= 2 for r in ratios)} of them gain a factor of 2 or more" in text
    slower = [r for r in ratios if r < 1]
    assert f"{len(slower)} are 1 % slower" in text
    assert all(0.985 < r < 0.995 for r in slower)

    resnet = next(
        r for r in results_of("peers-models-avx512_vnni.json") if (r["row"], r["contender"]) == ("resnet18_b1", "ours")
    )
    assert f"{resnet['packed_mb']} MB of packed weights" in text

    half = {r["contender"]: r["best_ms"] for r in results_of("bfloat16-avx2.json")}
    assert f"{half['eager_bf16']:.0f} ms against {half['ours_bf16']:.0f} ms for ResNet-18" in text


def ops_by_name():
    found = {}
    for family in FAMILIES:
        module = importlib.import_module(f"pykernels.ops.{family}.op")
        found |= {op.name: op for op in vars(module).values() if isinstance(op, Op)}
    # Public functions that run on another op's kernels, or choose them by the name of an op that takes scales.
    return found | {"conv_transpose_bn_act": found["conv_bn_act"], "int8_matmul": found["int8_matmul_scaled"]}


def test_the_matrix_of_ops_is_that_of_the_package():
    known, told = ops_by_name(), set()
    for line in table_in(README, "| op |"):
        names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for name in (n.strip(" `") for n in names.split(",")):
            told.add(name)
            for backend, cell in zip(("cpu", "cuda", "triton"), cells, strict=False):
                op = known[name]
                dtypes = [str(d).removeprefix("torch.") for d in op.takes(backend)]
                expected = ", ".join(dtypes) if op.backends[backend] is None else "torch's op"
                assert cell.removeprefix("int8 to ") == expected, f"{name} on {backend}"
    assert told == {name for name in ops.__all__ if name != "ACTIVATIONS"}


def test_ops_have_gradients_where_the_matrix_says_so():
    x, w = torch.randn(1, 4, 6, 6), torch.randn(4, 4, 1, 1)
    floats = {
        "conv_bn_act": lambda x: ops.conv_bn_act(x, w),
        "conv_transpose_bn_act": lambda x: ops.conv_transpose_bn_act(x, w),
        "batch_norm_act": lambda x: ops.batch_norm_act(x, torch.zeros(4), torch.ones(4)),
        "lstm": lambda x: ops.lstm(x[0], torch.zeros(2, 1, 6, 2).unbind(), [torch.randn(8, 6), torch.randn(8, 2)])[0],
        "max_pool2d": lambda x: ops.max_pool2d(x, 2),
        "avg_pool2d": lambda x: ops.avg_pool2d(x, 2),
        "global_avg_pool2d": ops.global_avg_pool2d,
        "squeeze_excite": lambda x: ops.squeeze_excite(x, w, None, w, None),
        "upsample2d": lambda x: ops.upsample2d(x, scale_factor=2),
        "group_norm_act": lambda x: ops.group_norm_act(x, 2),
        "layer_norm": lambda x: ops.layer_norm(x, 6),
        "channel_shuffle": lambda x: ops.channel_shuffle(x, 2),
        "pixel_shuffle": lambda x: ops.pixel_shuffle(x, 2),
        "pixel_unshuffle": lambda x: ops.pixel_unshuffle(x, 2),
    }
    trains = {
        name.strip(" `"): line.strip("| ").endswith("yes")
        for line in table_in(README, "| op |")
        for name in line.strip("|").split("|")[0].split(",")
    }
    assert {name for name, yes in trains.items() if yes} == {*floats, "lstm_cell"}
    for name, call in floats.items():
        leaf = x.clone().requires_grad_()
        call(leaf).square().sum().backward()
        assert leaf.grad is not None, name
