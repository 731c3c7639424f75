"""The compile gate of the Triton kernels: what Triton makes of every launch, read from the machine code.

    python tools/triton_gate.py             # compile some, then compare with tools/triton_resources.tsv
    python tools/triton_gate.py --all       # compile all (minutes), then compare
    python tools/triton_gate.py --write     # compile all, then write it

Each call of tools/triton_calls.py is made on meta tensors, once per target (sm_80, sm_90, gfx942) with that target's
tiles, and `_triton.launch` is made to record instead of launching. Triton's own launcher derives from the recorded
arguments what it would specialise for (types, alignment, integers that are 1 or divisible by 16, constants); each
result is compiled once, in two processes, and kept in build/triton. Without --all it is one for each line of the table,
the fullest, which is the next to spill, and one for each kernel, target and combination of types. It fails if

- a kernel of pykernels/ops is launched by no call, or a call of `launch` there was never reached;
- a kernel does not compile, or wants more shared memory than the target has;
- a kernel spills registers, and `ALLOWED` has no reason for it;
- `tl.dot` was compiled, and no matrix instruction came out;
- the committed table names other kernels and tiles, other instructions, more spills, or registers that are far off.

A line of the table is one kernel with some tiles (its BLOCK_ constants) and warps: the most that any launch has of
registers per thread (on gfx942 vector and accumulation registers together), bytes of shared memory per program, and
bytes of local memory per thread (spilled); then the call (tools/triton_calls.py) and target with most registers; and
what the launches have of matrix instructions, each target's apart. No GPU is needed, and nothing here says how fast a
kernel is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden
from triton_launches import OPS, TARGETS, Launch, kernel_of, launched, record, short, uncovered

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/triton"
TABLE = ROOT / "tools/triton_resources.tsv"

#: Matrix instructions: IGMMA, HGMMA: wgmma; IMMA, HMMA: mma.sync; v_mfma, v_smfma on AMD.
MATRIX = re.compile(r"\b(IGMMA|HGMMA|IMMA|HMMA|v_s?mfma\w+)")

#: Part of "kernel target" -> why it may spill. Anything else that does fails.
ALLOWED: dict[str, str] = {}


@dataclass
class Kernel:
    """One kernel as one launch specialises it, for one target."""

    source: str  # under pykernels/ops
    name: str
    call: str
    target: str
    tiles: str  # its BLOCK_* constants
    warps: int = 0
    registers: int = 0  # none: it was recorded, and not compiled
    shared: int = 0  # bytes
    spilled: int = 0  # bytes of local memory (scratch) per thread
    matrix: str = ""
    dot: bool = False  # it has a tl.dot

    @property
    def key(self) -> tuple[str, ...]:
        """What names a line of the table."""
        return self.source, self.name, self.tiles, str(self.warps)

    @property
    def launch(self) -> tuple[str, str]:
        """The call and the target: what tells apart those of a line."""
        return self.call, self.target

    @property
    def instructions(self) -> str:
        """Its matrix instructions, as the table has them."""
        return f"{self.target} {self.matrix}" if self.matrix else ""


@dataclass
class Row:
    """The worst of the launches of a kernel with the same tiles."""

    registers: int
    shared: int
    spilled: int
    fullest: tuple[str, str]  # the call and the target with most registers
    matrix: frozenset[str]


#: Source, kernel, tiles, warps -> what there is of it.
Rows = dict[tuple[str, ...], Row]


# ---- compiling ----


@dataclass
class Job:
    """A launch, and what Triton's launcher would compile for it."""

    kernel: Kernel
    source: Any  # ASTSource
    target: Any  # GPUTarget
    options: dict[str, Any]
    types: frozenset[str]  # of what its pointers point to, the two of 16 bits as one


def jobs_of(launches: list[Launch]) -> list[Job]:
    """Each distinct specialisation once, under the label of the first call that launched it."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    jobs: dict[tuple[str, str], Job] = {}
    taken: dict[tuple[str, ...], int] = {}
    for launch in launches:
        jit = launch.kernel
        target = GPUTarget(*TARGETS[launch.target][1])
        backend = make_backend(target)
        # The launcher's own two steps between the arguments of a launch and a call of the compiler.
        bind = create_function_from_signature(jit.signature, jit.params, backend)
        bound, specialization, extra = bind(*launch.arguments, **launch.constants)
        options, signature, constants, attributes = jit._pack_args(
            backend, dict(launch.constants), bound, specialization, extra
        )
        source = ASTSource(jit, signature, constants, attributes)
        same = f"{source.hash()} {sorted(options.__dict__.items(), key=str)}", launch.target
        if same in jobs:
            continue
        file, name = kernel_of(launch)
        tiles = "x".join(str(value) for key, value in bound.items() if key.startswith("BLOCK"))
        kernel = Kernel(short(file), name, launch.call, launch.target, tiles, options.num_warps)
        one = kernel.source, name, launch.call, launch.target
        taken[one] = taken.get(one, 0) + 1
        if taken[one] > 1:
            kernel.call += f" ({taken[one]})"
        types = frozenset(t.replace("bf16", "fp16") for t in signature.values() if t.startswith("*"))
        jobs[same] = Job(kernel, source, target, dict(options.__dict__), types)
    return list(jobs.values())


def chosen(jobs: list[Job], written: Rows) -> list[Job]:
    """The fullest launch of each line of the table, all without a line, and one of each kernel, target and types that
    are not among these."""
    found = [j for j in jobs if j.kernel.key not in written or written[j.kernel.key].fullest == j.kernel.launch]

    def kind(job: Job) -> tuple[Any, ...]:
        return job.kernel.source, job.kernel.name, job.kernel.target, job.types

    others = {kind(job): job for job in reversed(jobs)}
    kinds = {kind(job) for job in found}
    return found + [job for kind, job in others.items() if kind not in kinds]


_jobs: list[Job] = []  # a forked worker has them by being forked: kernels cannot be sent


def _work(index: int) -> Kernel | str:
    job = _jobs[index]
    try:
        return compile_job(job)
    except Exception as problem:  # of the compiler: any
        said = str(problem).strip().splitlines() or [""]
        return (
            f"{' '.join(job.kernel.key)} ({job.kernel.call}, {job.kernel.target}): {type(problem).__name__}: {said[-1]}"
        )


def compile_all(jobs: list[Job], processes: int = 2) -> tuple[list[Kernel], list[str]]:
    """The kernels read, and what did not compile."""
    global _jobs
    _jobs = jobs
    kernels, failed = [], []
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        for i, done in enumerate(pool.map(_work, range(len(jobs))), 1):
            (failed if isinstance(done, str) else kernels).append(done)  # type: ignore[attr-defined]
            if i % 25 == 0:
                print(f"{i} of {len(jobs)} compiled", flush=True)
    return kernels, failed


def compile_job(job: Job) -> Kernel:
    """Compiles, and fills in what the machine code says."""
    import triton

    compiled = triton.compile(job.source, target=job.target, options=job.options)
    kernel = job.kernel
    kernel.shared = compiled.metadata.shared
    kernel.dot = "tt.dot" in compiled.asm["ttir"]
    if job.target.backend == "cuda":
        read_cubin(kernel, compiled.asm["cubin"], BUILD / "read" / compiled.hash)
    else:
        read_amdgcn(kernel, compiled.asm["amdgcn"])
    return kernel


def read_cubin(kernel: Kernel, cubin: bytes, file: Path) -> None:
    """Registers and local memory by cuobjdump; instructions by nvdisasm, which is slow, so where a dot is, and once."""
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    kept = file.with_suffix(".json")
    if not kept.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cubin)
        usage = _output(str(tools / "cuobjdump"), "-res-usage", str(file))
        sass = _output(str(tools / "nvdisasm"), "-c", str(file)) if kernel.dot else ""
        kept.write_text(json.dumps([usage, matrix_instructions(sass)]))
        file.unlink()
    usage, kernel.matrix = json.loads(kept.read_text())
    kernel.registers, kernel.spilled = usage_of(usage)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage_of(text: str) -> tuple[int, int]:
    """Registers and bytes of local memory in what `cuobjdump -res-usage` prints of one kernel."""
    match = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    if match is None:
        raise ValueError(f"cuobjdump -res-usage printed no registers: {text!r}")
    return int(match[1]), int(match[2]) + int(match[3])


def matrix_instructions(code: str) -> str:
    """Those of `MATRIX` in a disassembly, each once, sorted."""
    return " ".join(sorted(set(MATRIX.findall(code))))


def read_amdgcn(kernel: Kernel, code: str) -> None:
    """The same of AMD's assembly. Scalar registers spill into lanes of vector registers, so they are not asked for."""

    def number(name: str) -> int:
        match = re.search(rf"^\s*\.{name}:\s+(\d+)", code, re.M)
        if match is None:
            raise ValueError(f"the assembly names no {name}")
        return int(match[1])

    kernel.registers = number("vgpr_count")
    kernel.spilled = max(number("private_segment_fixed_size"), 4 * number("vgpr_spill_count"))
    kernel.matrix = matrix_instructions(code)


# ---- judging ----


def problems(kernels: list[Kernel], shared: dict[str, int]) -> list[str]:
    """What is wrong with the code, in words; `shared` is the bytes of shared memory that each target has."""
    found = []
    for k in kernels:
        what = f"{k.source}: {k.name} ({k.call}) for {k.target}"
        if k.spilled and not any(part in f"{k.name} {k.target}" for part in ALLOWED):
            found.append(f"{what} spills: {k.spilled} bytes of local memory per thread")
        if k.dot and not k.matrix:
            found.append(f"{what}: tl.dot became no matrix instruction")
        if k.shared > shared[k.target]:
            found.append(f"{what} wants {k.shared} bytes of shared memory, of {shared[k.target]}")
    return found


COLUMNS = ("source", "kernel", "tiles", "warps", "registers", "shared", "spilled", "call", "target", "matrix")


def by_line(kernels: Iterable[Kernel]) -> dict[tuple[str, ...], list[Kernel]]:
    """The launches of each line of the table, in its order."""
    groups: dict[tuple[str, ...], list[Kernel]] = {}
    for k in sorted(kernels, key=lambda k: k.key):
        groups.setdefault(k.key, []).append(k)
    return groups


def rows_of(kernels: Iterable[Kernel]) -> Rows:
    """The lines of the table."""
    rows = {}
    for key, own in by_line(kernels).items():
        fullest = max(own, key=lambda k: k.registers)
        rows[key] = Row(
            fullest.registers, max(k.shared for k in own), max(k.spilled for k in own), fullest.launch,
            frozenset(k.instructions for k in own if k.matrix),
        )  # fmt: skip
    return rows


def table(rows: Rows, version: str) -> str:
    """The golden file's text."""
    cells = (
        (*key, row.registers, row.shared, row.spilled, *row.fullest, ", ".join(sorted(row.matrix)))
        for key, row in rows.items()
    )
    return golden.write(f"Triton {version}", COLUMNS, cells)


def parse(text: str) -> Rows:
    """The lines of a written table."""
    return {
        (source, name, tiles, warps): Row(
            *map(int, numbers), (call, target), frozenset(filter(None, matrix.split(", ")))
        )
        for source, name, tiles, warps, *numbers, call, target, matrix in golden.read(text)[1]
    }


def differences(was: Row, launches: list[Kernel]) -> Iterator[str]:
    """In what those launches of a line that were compiled go beyond it, or its fullest has fewer registers."""
    if was.fullest not in [k.launch for k in launches]:
        yield f"no such launch any more as {', '.join(was.fullest)}"
    for k in launches:
        what = ", ".join(k.launch)
        if k.matrix and k.instructions not in was.matrix:
            yield f"{what}: a new matrix instruction: {k.matrix}"
        if k.spilled > was.spilled:
            yield f"{what}: spilled was {was.spilled} at most, is {k.spilled}"
        if k.shared > was.shared:
            yield f"{what}: shared was {was.shared} at most, is {k.shared}"
        fewest = was.registers - golden.SLACK if k.launch == was.fullest else 0
        if k.registers and not fewest <= k.registers <= was.registers + golden.SLACK:
            yield f"{what}: registers were {was.registers} at most, are {k.registers}"


def main() -> int:
    """The gate; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    parser.add_argument("--all", action="store_true", help="compile all launches")
    parser.add_argument("--only", default="", help="only calls whose label contains this: to look, not to judge")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write needs all calls")
    os.environ.pop("TRITON_INTERPRET", None)  # an interpreted kernel is none that could be compiled
    os.environ.setdefault("TRITON_CACHE_DIR", str(BUILD / "cache"))
    warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")  # 3.9 says what 3.10 will change
    sys.path.insert(0, str(ROOT))
    import torch
    import triton
    from triton_calls import calls

    from pykernels.ops import _triton

    torch.set_num_threads(1)
    wanted = {label: call for label, call in calls().items() if options.only in label}
    reached: set[tuple[Path, int]] = set()
    launches, bad = [], []
    for target in TARGETS:
        made, failed = record(wanted, target, reached)
        launches += made
        bad += failed
    if not options.only:
        bad += uncovered(*launched(sorted(OPS.rglob("*.py"))), {kernel_of(x) for x in launches}, reached)
    written = TABLE.read_text() if TABLE.exists() else ""
    jobs = jobs_of(launches)
    kernels, failed = compile_all(
        jobs if options.write or options.all or options.only else chosen(jobs, parse(written))
    )
    bad += failed
    text = table(rows_of(kernels), triton.__version__)
    print(text)
    bad += problems(kernels, {target: getattr(_triton, device).shared for target, (device, _) in TARGETS.items()})
    if options.write:
        TABLE.write_text(text)
    elif not options.only:
        same = golden.read(written)[0].split(".")[:2] == f"Triton {triton.__version__}".split(".")[:2]
        if not same:
            print(f"The committed table is of another Triton than {triton.__version__}: only launches are compared.")
        read = {(k.key, k.launch): k for k in kernels if same}  # another Triton makes other code of the same launches
        now = by_line(read.get((job.kernel.key, job.kernel.launch), job.kernel) for job in jobs)
        bad += golden.outdated(TABLE, "triton-table", golden.compare(parse(written), now, differences))
    spilled = sum(1 for k in kernels if k.spilled)
    return golden.verdict(bad, f"{len(kernels)} of {len(jobs)} launches compiled, {spilled} spill", bool(kernels))


if __name__ == "__main__":
    sys.exit(main())
