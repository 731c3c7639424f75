"""The house rules that a machine can check: layers, stems, one home for intrinsics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pykernels.ops._op import FAMILIES
from pykernels.ops._spec import all_specs

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
SOURCES = [p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]

pytestmark = pytest.mark.skipif(not CSRC.is_dir(), reason="the sources are not beside the tests")


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.M)


def name(path: Path) -> str:
    return str(path.relative_to(CSRC))


def is_binding(path: Path) -> bool:
    return path.relative_to(CSRC).parts[0] in ("torch", "python")


def test_there_are_sources_to_check():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", [p for p in SOURCES if not is_binding(p)], ids=name)
def test_kernels_know_no_framework(path):
    forbidden = [i for i in includes(path) if re.match(r"(torch|ATen|c10|pybind11|Python\.h|csrc/torch)", i)]
    assert forbidden == []


@pytest.mark.parametrize("path", [p for p in SOURCES if is_binding(p)], ids=name)
def test_the_binding_uses_only_the_stable_abi(path):
    allowed = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
    theirs = [i for i in includes(path) if re.match(r"(torch|ATen|c10)/", i) and not (CSRC / i).is_file()]
    unstable = [i for i in theirs if not i.startswith(allowed)]
    assert unstable == []


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "vec.h"], ids=name)
def test_intrinsics_live_in_vec_h_alone(path):
    text = path.read_text()
    assert "immintrin.h" not in text
    assert not re.search(r"\b_mm\d*_\w+\(", text)
    assert "__builtin_ia32" not in text
    assert not re.search(r"__AVX|__SSE", text)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name != "ptx.cuh"], ids=name)
def test_no_inline_assembly(path):
    assert not re.search(r"\b_{0,2}asm_{0,2}\s*(_{0,2}volatile_{0,2})?\s*\(", path.read_text())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "pattern",
    [
        "pykernels/ops/{}/__init__.py",
        "pykernels/ops/{}/op.py",
        "pykernels/ops/{}/arguments.py",
        "pykernels/ops/{}/autograd.py",
        "pykernels/ops/{}/reference.py",
        "pykernels/ops/{}/spec.py",
        "tests/ops/{}/test_call.py",
    ],
)
def test_the_same_stem_everywhere(family, pattern):
    assert (ROOT / pattern.format(family)).exists()


#: Where a backend that an op has must have its files.
SLOTS = {
    "cpu": (
        "csrc/include/pykernels/{}.h",
        "csrc/cpu/{}/api.cpp",
        "csrc/torch/cpu/{}.cpp",
        "tests/native/{}_test.cpp",
        "docs/kernels/{}/cpu.md",
    ),
    "cuda": ("csrc/cuda/{}", "csrc/torch/cuda/{}.cpp", "docs/kernels/{}/cuda.md"),
    "triton": ("pykernels/ops/{}/triton/__init__.py", "tests/ops/{}/test_triton.py", "docs/kernels/{}/triton.md"),
}


@pytest.mark.parametrize("spec", all_specs(), ids=lambda s: s.name)
@pytest.mark.parametrize("backend", SLOTS)
def test_an_empty_slot_is_a_written_reason(spec, backend):
    reason = spec.op.backends[backend]
    if reason is None:
        assert [p for p in SLOTS[backend] if not (ROOT / p.format(spec.op.family)).exists()] == []
    else:
        assert len(reason) > 10


def test_no_isa_flag_of_the_builders_machine():
    for path in [ROOT / "CMakeLists.txt", *(ROOT / "cmake").iterdir()]:
        assert "-march=native" not in path.read_text()


def test_activations_are_in_the_order_of_the_kernel_api():
    from pykernels.ops import ACTIVATIONS

    header = (CSRC / "common/activation.h").read_text()
    listed = re.search(r"enum class Activation[^{]*\{([^}]*)\}", header).group(1)
    assert tuple(x.strip() for x in listed.split(",") if x.strip()) == ACTIVATIONS
