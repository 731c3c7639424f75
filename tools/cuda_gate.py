"""The compile gate: what nvcc made of every CUDA kernel, read from the machine code itself.

    python tools/cuda_gate.py             # build, then compare with tools/cuda_resources.tsv
    python tools/cuda_gate.py --write     # build, then write it

It builds the CUDA libraries for sm_80 and sm_90a in build/cuda, against whatever torch is installed; a CPU build of it
will do. Then, per kernel and target: registers, stack, loads and stores of local memory (spilled registers, arrays that
found no registers), and the instructions that the kernel was written for. It fails if

- nvcc, or g++ on the binding, has a warning;
- a kernel uses local memory, and `ALLOWED` has no reason for it;
- a target lacks an instruction that its kernels are there for (`EXPECTED`);
- the committed table names other kernels, other instructions, other local memory, or registers that are far off.

A line of the table is a template with the instructions that some of its instances have, on some targets: how many those
are, and the most that any has of registers per thread, of bytes of stack, and of loads and stores of local memory.
Shared memory is all dynamic; the pages of the families say how much. No GPU is needed, and nothing here says how fast a
kernel is.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, field
from pathlib import Path

import golden

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/cuda"
TABLE = ROOT / "tools/cuda_resources.tsv"

#: In the table: matrix products (IGMMA, HGMMA: wgmma; IMMA, HMMA: mma.sync), asynchronous copies (UTMALDG: TMA;
#: UBLKCP: bulk; LDGSTS: cp.async), LDSM: ldmatrix, SYNCS: mbarriers, UCGABAR: cluster barriers.
SHOWN = ("IGMMA", "HGMMA", "IMMA", "HMMA", "UTMALDG", "UBLKCP", "LDGSTS", "LDSM", "SYNCS", "UCGABAR")

#: Folder under csrc/cuda -> target -> what some kernel there has to contain. "" is the whole library.
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "": {"sm_80": ("IMMA", "HMMA", "LDGSTS"), "sm_90a": ("IGMMA", "HGMMA", "UTMALDG")},
}

#: Part of a kernel's name -> why it may use local memory. Anything else that does fails.
ALLOWED: dict[str, str] = {}


@dataclass
class Kernel:
    """One kernel for one target."""

    source: str  # under csrc/cuda
    name: str
    target: str
    registers: int = 0
    stack: int = 0
    local: int = 0  # LDL and STL instructions
    found: set[str] = field(default_factory=set)

    @property
    def instructions(self) -> str:
        """Those of `SHOWN` that it has."""
        return " ".join(i for i in SHOWN if i in self.found)


@dataclass(frozen=True)
class Row:
    """The instances of a template that have the same instructions."""

    kernels: int
    registers: int
    stack: int
    local: int


#: Source, template, instructions -> what there is of it.
Rows = dict[tuple[str, ...], Row]


def find_tool(name: str) -> str:
    """Cuobjdump or nvdisasm: on PATH, in NVIDIA's PyPI wheels, or in Triton's."""
    site = Path(sysconfig.get_paths()["purelib"])
    places = [*sorted(site.glob("nvidia/cu*/bin"), reverse=True), site / "triton/backends/nvidia/bin"]
    for place in (None, *map(str, places), "/usr/local/cuda/bin"):
        if (found := shutil.which(name, path=place)) is not None:
            return found
    sys.exit(f"{name} is missing: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


def build() -> str:
    """Builds both CUDA libraries with warnings as errors; nvcc's version."""
    import pybind11

    setup = runpy.run_path(str(ROOT / "setup.py"))
    nvcc, what = setup["choose_nvcc"]("1", setup["find_nvcc"](), None)
    print(f"pykernels: {what}", flush=True)
    cmake = [
        "cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja",
        "-DPK_CUDA=ON", "-DPK_CUDA_ARCHS=80;90a", "-DPK_WERROR=ON", "-DPK_TESTS=OFF",
        f"-DCMAKE_CUDA_COMPILER={nvcc}",
        f"-DPK_TORCH_DIR={setup['torch_directory']()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    targets = ["--target", "pykernels_cuda", "pykernels_torch_cuda"]
    for command in (cmake, ["cmake", "--build", str(BUILD), *jobs, *targets]):
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit("FAILED: the CUDA libraries do not build")
    text = "".join(file.read_text() for file in BUILD.glob("CMakeFiles/*/CMakeCUDACompiler.cmake"))
    match = re.search(r'set\(CMAKE_CUDA_COMPILER_VERSION "([\d.]+)"\)', text)
    assert match is not None
    return match[1]


def objects() -> dict[str, Path]:
    """Source (under csrc/cuda) -> object file."""
    found = {}
    for path in sorted(BUILD.glob("CMakeFiles/pk_cuda_*.dir/csrc/cuda/**/*.cu.o")):
        source = str(path).split("/csrc/cuda/", 1)[1].removesuffix(".o")
        if (ROOT / "csrc/cuda" / source).exists():  # not one left over from a source that is gone
            found[source] = path
    return found


def demangle(names: list[str]) -> list[str]:
    """Readable names, without namespaces and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return [_short(line) for line in text.splitlines()]


def _short(name: str) -> str:
    name = re.sub(r"\(anonymous namespace\)::|_(GLOBAL|INTERNAL)__\w+?::|\bpk::(cuda::)?", "", name)
    depth, end = 0, len(name)
    for i, c in enumerate(name):  # the parameter list begins at the first parenthesis outside of < >
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    name = name[:end].removeprefix("void ")
    return re.sub(r"\((?:\w+::)*\w+\)(\d+)", r"\1", name)  # (DType)1 -> 1


def read(source: str, obj: Path, cuobjdump: str) -> list[Kernel]:
    """The kernels of one object file."""
    kernels: dict[tuple[str, str], Kernel] = {}

    def of(name: str, target: str) -> Kernel:
        return kernels.setdefault((name, target), Kernel(source, name, target))

    target = name = ""
    for line in _lines(cuobjdump, "-res-usage", str(obj)):
        if line.startswith("arch = "):
            target = line.removeprefix("arch = ").strip()
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+)", line):
            kernel = of(name, target)
            kernel.registers, kernel.stack = int(match[1]), int(match[2])
    kernel = None
    for line in _lines(cuobjdump, "-sass", str(obj)):
        if match := re.match(r"\s*code for (\S+)", line):
            target = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            kernel = of(match[1], target)
        elif kernel is not None and (match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", line)):
            kernel.found.add(match[1])
            kernel.local += match[1] in ("LDL", "STL")
    found = list(kernels.values())
    for kernel, readable in zip(found, demangle([k.name for k in found]), strict=True):
        kernel.name = readable
    return sorted(found, key=lambda k: (k.name, k.target))


def _lines(*command: str) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {process.returncode}")


def problems(kernels: list[Kernel]) -> list[str]:
    """What is wrong with the code, in words."""
    found = []
    for k in kernels:
        if (k.stack or k.local) and not any(part in k.name for part in ALLOWED):
            found.append(
                f"{k.source}: {k.name} for {k.target} uses local memory: {k.stack} bytes of stack, {k.local} loads and "
                "stores"
            )
    for folder, targets in EXPECTED.items():
        for target, wanted in targets.items():
            there = {i for k in kernels if k.target == target and k.source.startswith(folder) for i in k.found}
            if missing := [i for i in wanted if i not in there]:
                found.append(f"{folder or 'the library'}: no kernel for {target} contains {', '.join(missing)}")
    return found


COLUMNS = ("source", "kernel", "instructions", "kernels", "registers", "stack", "local")


def rows_of(kernels: Iterable[Kernel]) -> Rows:
    """The lines of the table, in its order."""
    groups: dict[tuple[str, ...], list[Kernel]] = {}
    for k in kernels:
        groups.setdefault((k.source, k.name.partition("<")[0], k.instructions), []).append(k)
    return {
        key: Row(len(own), max(k.registers for k in own), max(k.stack for k in own), max(k.local for k in own))
        for key, own in sorted(groups.items())
    }


def table(rows: Rows, nvcc: str) -> str:
    """The golden file's text."""
    return golden.write(f"nvcc {nvcc}", COLUMNS, ((*key, *astuple(row)) for key, row in rows.items()))


def parse(text: str) -> Rows:
    """The lines of a written table."""
    return {tuple(cells[:3]): Row(*map(int, cells[3:])) for cells in golden.read(text)[1]}


def differences(was: Row, is_: Row) -> Iterator[str]:
    """In what a line differs."""
    if was.kernels != is_.kernels:
        yield f"kernels were {was.kernels}, are {is_.kernels}"
    if bool(was.local or was.stack) != bool(is_.local or is_.stack):
        yield f"stack was {was.stack}, is {is_.stack}"
    if abs(was.registers - is_.registers) > golden.SLACK:
        yield f"registers were {was.registers}, are {is_.registers}"


def main() -> int:
    """The gate; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.relative_to(ROOT)}")
    options = parser.parse_args()
    cuobjdump = find_tool("cuobjdump")
    nvcc = build()
    with ProcessPoolExecutor() as pool:
        found = objects()
        parts = pool.map(read, found, found.values(), [cuobjdump] * len(found))
        kernels = [kernel for part in parts for kernel in part]
    rows = rows_of(kernels)
    text = table(rows, nvcc)
    print(text)
    bad = problems(kernels)
    if options.write:
        TABLE.write_text(text)
    else:
        written = TABLE.read_text()
        if golden.read(written)[0].rsplit(".", 1)[0] != f"nvcc {nvcc}".rsplit(".", 1)[0]:
            print(f"The committed table is of another nvcc than {nvcc}: not compared.")
        else:
            bad += golden.outdated(TABLE, "cuda-table", golden.compare(parse(written), rows, differences))
    spilled = sum(1 for k in kernels if k.stack or k.local)
    return golden.verdict(bad, f"{len(kernels)} kernels read, {spilled} with local memory", bool(kernels))


if __name__ == "__main__":
    sys.exit(main())
