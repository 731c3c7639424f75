"""The compile gate of the Triton kernels: that it would see what it is there to see."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import needs_triton

TOOLS = Path(__file__).parent.parent / "tools"
if not (TOOLS / "triton_gate.py").exists():
    pytest.skip("tools/ is not beside the tests", allow_module_level=True)
sys.path.insert(0, str(TOOLS))

# ruff: noqa: E402
import cuda_gate
import golden
import triton_gate
from triton_gate import (
    MATRIX,
    Job,
    Kernel,
    by_line,
    chosen,
    matrix_instructions,
    parse,
    problems,
    read_amdgcn,
    rows_of,
    table,
    usage_of,
)
from triton_launches import TARGETS, launched, uncovered

SHARED = {"sm_80": 166912, "sm_90": 232448, "gfx942": 65536}


def kernel(**changes) -> Kernel:
    fields = {
        "source": "x/triton.py", "name": "k", "call": "1x2 f16", "target": "sm_80", "tiles": "64x128", "warps": 4,
        "registers": 96, "shared": 1024, "spilled": 0, "matrix": "HMMA", "dot": True,
    }  # fmt: skip
    return Kernel(**{**fields, **changes})


# ---- what the sources launch ----

SOURCE = """
import triton

@triton.jit
def helper(x):
    return x

@triton.jit
def one_kernel(x):
    helper(x)

@triton.jit(do_not_specialize=["x"])
def forgotten_kernel(x):
    pass

def op(x):
    launch(
        one_kernel, (1,), x,
        BLOCK=1,
    )
    launch(other_kernel, (1,), x)
"""


@pytest.fixture
def source(tmp_path) -> Path:
    file = tmp_path / "triton.py"
    file.write_text(SOURCE)
    return file


def test_kernels_are_what_is_named_so(source):
    kernels, sites = launched([source])
    assert kernels == {(source, "one_kernel"), (source, "forgotten_kernel")}
    assert sites == {(source, 17), (source, 21)}


def test_what_no_call_launches_is_told(source):
    kernels, sites = launched([source])
    told = uncovered(kernels, sites, {(source, "one_kernel"), (source, "helper")}, {(source, 17), (source, 18)})
    assert told == [
        f"{source}: forgotten_kernel is launched by no call of tools/triton_calls.py",
        f"{source}: helper is launched, and not named as a kernel",
        f"{source}:18: a launch that is no statement of its own",
        f"{source}:21: no call of tools/triton_calls.py reaches this launch",
    ]
    assert uncovered(kernels, sites, kernels, sites) == []


# ---- reading machine code ----


def test_registers_and_local_memory_of_a_cubin():
    text = " Function f:\n  REG:255 STACK:760 SHARED:0 LOCAL:4 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    assert usage_of(text) == (255, 764)
    with pytest.raises(ValueError, match="printed no registers"):
        usage_of("")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("/*0a0*/ IMMA.16832.S8.S8.SAT R4, R8, R6, R4 ;\n IMMA.16832.S8.S8 R4 ;", "IMMA"),
        ("@P0 HGMMA.64x256x16.F32.BF16 R24, gdesc[UR4] ;\n HMMA.1688.F32.TF32 R4 ;", "HGMMA HMMA"),
        ("FFMA R1, R2, R3, R4 ;\n IMAD R4, R5 ;", ""),
        ("\tv_mfma_f32_32x32x8_f16 a[0:15], v[2:3], v[4:5]\n\tv_fma_f32 v1, v2", "v_mfma_f32_32x32x8_f16"),
    ],
)
def test_matrix_instructions(code, found):
    assert matrix_instructions(code) == found


AMDGCN = """
    v_mfma_i32_16x16x32_i8 a[0:3], v[2:3], v[4:5], a[0:3]
    .private_segment_fixed_size: {scratch}
    .sgpr_spill_count: 7
    .vgpr_count:     96
    .vgpr_spill_count: {spilled}
"""


@pytest.mark.parametrize(("scratch", "spilled", "bytes_spilled"), [(0, 0, 0), (24, 5, 24), (0, 5, 20)])
def test_amd_assembly(scratch, spilled, bytes_spilled):
    read = kernel(target="gfx942")
    read_amdgcn(read, AMDGCN.format(scratch=scratch, spilled=spilled))
    assert (read.registers, read.spilled, read.matrix) == (96, bytes_spilled, "v_mfma_i32_16x16x32_i8")
    with pytest.raises(ValueError, match="names no vgpr_count"):
        read_amdgcn(read, "")


# ---- judging ----


def test_what_is_wrong_is_told():
    assert problems([kernel(), kernel(dot=False, matrix="")], SHARED) == []
    begin = "x/triton.py: k (1x2 f16) for sm_80"
    assert problems([kernel(spilled=8)], SHARED) == [f"{begin} spills: 8 bytes of local memory per thread"]
    assert problems([kernel(matrix="")], SHARED) == [f"{begin}: tl.dot became no matrix instruction"]
    assert problems([kernel(shared=166913)], SHARED) == [f"{begin} wants 166913 bytes of shared memory, of 166912"]


def test_a_spill_is_allowed_for_a_reason(monkeypatch):
    monkeypatch.setattr("triton_gate.ALLOWED", {"k sm_80": "a test"})
    assert problems([kernel(spilled=8)], SHARED) == []
    assert len(problems([kernel(spilled=8, target="sm_90")], SHARED)) == 1


def test_the_table_is_read_as_it_was_written():
    rows = rows_of([kernel(), kernel(name="other", matrix="", spilled=4), kernel(source="y/triton.py", tiles="")])
    text = table(rows, "3.9.0")
    assert text.startswith("# Triton 3.9.0\n")
    assert parse(text) == rows
    assert len(rows) == text.count("\n") - 2 == 3
    assert parse("") == {}


def test_a_line_has_the_worst_of_its_launches():
    on_amd = kernel(target="gfx942", shared=2048, matrix="v_mfma_f32_32x32x8_f16")
    launches = [kernel(), kernel(call="b", registers=120), on_amd]
    [row] = rows_of(launches).values()
    assert (row.registers, row.shared, row.spilled, row.fullest) == (120, 2048, 0, ("b", "sm_80"))
    assert row.matrix == {"sm_80 HMMA", "gfx942 v_mfma_f32_32x32x8_f16"}
    assert set(rows_of([*launches, kernel(warps=8), kernel(tiles="64x64")])) == {
        ("x/triton.py", "k", tiles, warps) for tiles, warps in (("64x128", "4"), ("64x128", "8"), ("64x64", "4"))
    }


@pytest.mark.parametrize("gate", [cuda_gate, triton_gate])
def test_the_committed_tables_are_read_whole(gate):
    text = gate.TABLE.read_text()
    version = golden.read(text)[0].split()[-1]
    rows = gate.parse(text)
    assert gate.table(rows, version) == text
    assert len(rows) == text.count("\n") - 2


def stale(written: list[Kernel], now: list[Kernel]) -> list[str]:
    return golden.compare(rows_of(written), by_line(now), triton_gate.differences)


def test_a_stale_table_is_told():
    written = [kernel(), kernel(call="b", target="sm_90", registers=80, matrix="HGMMA")]
    assert stale(written, [kernel(registers=104), written[1]]) == []
    key, call = "x/triton.py k 64x128 4", "1x2 f16, sm_80"
    assert stale(written, []) == [f"{key}: no such kernel any more"]
    assert stale([], written) == [f"{key}: a new kernel"]
    assert stale(written, written[1:]) == [f"{key}: no such launch any more as {call}"]

    def told(**changes):
        return stale(written, [kernel(**changes), written[1]])

    assert told(registers=105) == [f"{key}: {call}: registers were 96 at most, are 105"]
    assert told(registers=87) == [f"{key}: {call}: registers were 96 at most, are 87"]
    assert told(matrix="IMMA") == [f"{key}: {call}: a new matrix instruction: IMMA"]
    assert told(spilled=4) == [f"{key}: {call}: spilled was 0 at most, is 4"]
    assert told(shared=1025) == [f"{key}: {call}: shared was 1024 at most, is 1025"]
    # What another launch of the line has is no excuse on a target of its own.
    slower = [written[0], kernel(call="b", target="sm_90", registers=80, matrix="HMMA")]
    assert stale(written, slower) == [f"{key}: b, sm_90: a new matrix instruction: HMMA"]
    assert stale(written, [written[0], kernel(call="b", registers=120)]) == [
        f"{key}: b, sm_80: registers were 96 at most, are 120"
    ]


def test_of_what_was_only_recorded_only_the_tiles_are_compared():
    recorded = {"registers": 0, "matrix": "", "shared": 0}
    assert stale([kernel()], [kernel(**recorded)]) == []
    assert len(stale([kernel()], [kernel(**recorded, tiles="64x64")])) == 2
    assert len(stale([kernel()], [kernel(**recorded, warps=8)])) == 2


def test_the_fullest_of_a_line_is_compiled_and_one_of_each_kernel_target_and_types():
    half, single = frozenset({"*fp16"}), frozenset({"*fp32"})
    jobs = [
        Job(kernel(call=call, target=target, tiles=tiles), None, None, {}, types)
        for call, target, types, tiles in (
            ("a", "sm_80", half, "64"), ("b", "sm_80", half, "64"), ("c", "sm_80", half, "64"),
            ("a", "sm_90", half, "64"), ("d", "sm_80", single, "64"), ("e", "sm_80", half, "32"),
            ("f", "sm_80", half, "32"),
        )
    ]  # fmt: skip
    calls = (("a", 40, "64"), ("b", 90, "64"), ("c", 80, "64"), ("e", 90, "32"), ("f", 50, "32"))
    written = [kernel(call=call, registers=registers, tiles=tiles) for call, registers, tiles in calls]
    assert chosen(jobs, rows_of(written)) == [jobs[1], jobs[5], jobs[4], jobs[3]]
    assert chosen(jobs, rows_of(written[:3])) == [jobs[1], jobs[5], jobs[6], jobs[4], jobs[3]]  # a new line
    assert chosen(jobs[2:], rows_of(written[:2])) == [jobs[5], jobs[6], jobs[4], jobs[3]]  # b is gone


# ---- the CUDA gate ----


def of_cuda(**changes) -> cuda_gate.Kernel:
    fields = {"source": "x.cu", "name": "k<float>", "target": "sm_80", "registers": 90, "found": {"HMMA", "FFMA"}}
    return cuda_gate.Kernel(**{**fields, **changes})


def test_a_line_of_cuda_is_a_template_with_its_instructions():
    kernels = [of_cuda(), of_cuda(name="k<bf16>", registers=120), of_cuda(target="sm_90a", found={"HGMMA"}, stack=8)]
    assert cuda_gate.rows_of(kernels) == {
        ("x.cu", "k", "HGMMA"): cuda_gate.Row(1, 90, 8, 0),
        ("x.cu", "k", "HMMA"): cuda_gate.Row(2, 120, 0, 0),
    }


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ([of_cuda(registers=98), of_cuda(name="k<bf16>")], []),
        ([of_cuda(registers=99), of_cuda(name="k<bf16>")], ["x.cu k HMMA: registers were 90, are 99"]),
        ([of_cuda()], ["x.cu k HMMA: kernels were 2, are 1"]),
        ([of_cuda(), of_cuda(name="k<bf16>", local=2, stack=8)], ["x.cu k HMMA: stack was 0, is 8"]),
        ([of_cuda(), of_cuda(found=set())], ["x.cu k : a new kernel", "x.cu k HMMA: kernels were 2, are 1"]),
        ([], ["x.cu k HMMA: no such kernel any more"]),
    ],
)
def test_a_stale_table_of_cuda_is_told(now, told):
    written = cuda_gate.rows_of([of_cuda(), of_cuda(name="k<bf16>")])
    assert golden.compare(written, cuda_gate.rows_of(now), cuda_gate.differences) == told


# ---- a real compile ----

PLANTED = """
import sys
sys.path[:0] = [{tools!r}, {root!r}]
import torch, triton, triton.language as tl
import triton_gate as gate
from pykernels.ops import _triton

@triton.jit
def shares(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(y + i, v / tl.sum(v, axis=0))  # all of v has to wait for its sum

@triton.jit
def product(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    tl.store(y + at, tl.dot(tl.load(x + at), tl.load(x + at)))

def calls():
    x, y = torch.empty(1 << 20, dtype=torch.float16, device="meta"), torch.empty(1 << 20, device="meta")
    return {{
        "spills": lambda: _triton.launch(shares, (1,), y, y, num_warps=1, **few[target]),
        "good": lambda: _triton.launch(product, (1,), x, y, BLOCK=64, num_warps=4),
        "broken": lambda: 1 / 0,
    }}

few = {{"sm_80": {{"BLOCK": 2048, "maxnreg": 32}}, "gfx942": {{"BLOCK": 8192, "waves_per_eu": 8}}}}  # registers
gate.BUILD = gate.Path({build!r})
for target in ("sm_80", "gfx942"):
    launches, failed = gate.record(calls(), target, set())
    kernels = [gate.compile_job(job) for job in gate.jobs_of(launches)]
    print(*failed, *gate.problems(kernels, {shared!r}), *(f"{{k.name}} {{k.matrix}}" for k in kernels), sep="\\n")
"""


@needs_triton
def test_a_planted_spill_is_found(tmp_path):
    script = tmp_path / "planted.py"
    script.write_text(PLANTED.format(tools=str(TOOLS), root=str(TOOLS.parent), build=str(tmp_path), shared=SHARED))
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for target in ("sm_80", "gfx942"):
        assert f"shares (spills) for {target} spills: " in done.stdout
        assert f"{target}: the call 'broken' failed: ZeroDivisionError: division by zero" in done.stdout
        assert f"product (good) for {target}" not in done.stdout
    assert "product HMMA\n" in done.stdout
    assert "product v_mfma_f32_" in done.stdout
    assert MATRIX.search(done.stdout)
    assert set(SHARED) == set(TARGETS)
