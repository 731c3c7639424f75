"""The CUDA build where there is no GPU: what is chosen, what is told, what a finished library registers."""

from __future__ import annotations

import ctypes
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pykernels import _native
from pykernels._native import _cuda
from pykernels.ops._spec import all_specs
from tests.harness import CUDA_GATE
from tests.test_broken_installs import PACKAGE, copy_package, run

SETUP = PACKAGE.parent / "setup.py"
needs_setup = pytest.mark.skipif(not SETUP.exists(), reason="setup.py is not beside the package")


# ---- setup.py ----


@needs_setup
@pytest.mark.parametrize(
    ("asked", "nvcc", "torch_cuda", "built", "told"),
    [
        ("", None, None, False, "no nvcc found, building for the CPU only"),
        ("", "/x/nvcc", None, False, "torch is a CPU build, building for the CPU only"),
        ("", "/x/nvcc", "13.0", True, "torch has CUDA 13.0, building for the CPU and for CUDA with /x/nvcc"),
        ("0", "/x/nvcc", "13.0", False, "as PK_CUDA=0 asks"),
        ("1", "/x/nvcc", None, True, "as PK_CUDA=1 asks, for CUDA with /x/nvcc"),
    ],
)
def test_what_is_built_and_why(asked, nvcc, torch_cuda, built, told):
    chosen, line = runpy.run_path(str(SETUP))["choose_nvcc"](asked, nvcc, torch_cuda)
    assert (chosen is not None) == built
    assert told in line


@needs_setup
def test_cuda_asked_for_without_nvcc_is_an_error():
    choose = runpy.run_path(str(SETUP))["choose_nvcc"]
    with pytest.raises(SystemExit, match="PK_CUDA=1 needs nvcc"):
        choose("1", None, "13.0")
    with pytest.raises(SystemExit, match="PK_CUDA: expected 0, 1 or nothing; got 'yes'"):
        choose("yes", "/x/nvcc", "13.0")


@needs_setup
def test_nvcc_is_found_in_cuda_home_first_then_on_path(tmp_path, monkeypatch):
    find = runpy.run_path(str(SETUP))["find_nvcc"]
    for place in ("home/bin", "path"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / place / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert find() == str(tmp_path / "path/nvcc")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find() == str(tmp_path / "home/bin/nvcc")


# ---- which GPU is covered ----


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        ("80+ptx 90a", (8, 0), True),
        ("80+ptx 90a", (8, 9), True),  # code of its major version
        ("80+ptx 90a", (9, 0), True),
        ("80+ptx 90a", (12, 0), True),  # PTX
        ("80+ptx 90a", (7, 5), False),
        ("90a", (9, 0), True),
        ("90a", (10, 0), False),
        ("90a", (8, 0), False),
        ("80 86", (9, 0), False),
        ("86+ptx", (8, 0), False),
        ("100a", (10, 0), True),
    ],
)
def test_a_gpu_is_covered_by_code_of_its_major_version_or_by_ptx(archs, capability, covered):
    assert _cuda.covers(archs, capability) == covered


@pytest.fixture
def device_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    _cuda.device_error.cache_clear()
    yield _cuda.device_error
    _cuda.device_error.cache_clear()


def test_no_kernel_image_is_explained(device_error, monkeypatch):
    monkeypatch.setattr(_cuda, "build", lambda: {"archs": "80+ptx 90a", "nvcc": "13.0"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert device_error(0) == (
        "the CUDA kernels were built for 80+ptx 90a and have no kernel image for this GPU (Tesla T4, sm_75); "
        "they need sm_80 (Ampere) or later"
    )
    monkeypatch.setattr(_cuda, "build", lambda: {"archs": "90a", "nvcc": "13.0"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    _cuda.device_error.cache_clear()
    assert device_error(0).endswith("(Tesla T4, sm_89); build them with PK_CUDA_ARCHS=89")
    monkeypatch.setattr(_cuda, "build", lambda: {"archs": "80+ptx 90a", "nvcc": "13.0"})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 6))
    assert device_error(1) is None


# ---- libraries that are missing, broken, stale: the CPU kernels go on ----

USES_THE_CPU = """
import torch
torch.version.cuda = "13.0"
import pykernels as pk
from pykernels import _native
x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
pk.ops.conv_bn_act(x, w, backend="cpu")
print(_native.cuda_error)
"""
needs_native = pytest.mark.skipif(_native.error is not None, reason=str(_native.error))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A copy of the package without CUDA libraries."""
    return copy_package(tmp_path, "libpykernels*cuda.so")


def told(code: str, directory: Path) -> str:
    done = run(code, directory)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@needs_native
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "the CUDA kernels are not built (libpykernels_cuda.so, libpykernels_torch_cuda.so missing from"),
        (b"not a library", "the CUDA library is broken ("),
        (b"\x7fELF" + bytes(36) + (1 << 20).to_bytes(8, "little") + bytes(16), "is cut short)"),
    ],
    ids=["missing", "text", "cut short"],
)
def test_broken_cuda_libraries_leave_the_cpu_kernels_alone(installed, content, expected):
    for library in (_cuda.KERNELS, _cuda.BINDING):
        if content is not None:
            (installed / "pykernels/_native" / library.name).write_bytes(content)
    said = told(USES_THE_CPU, installed)
    assert expected in said
    assert _cuda.MEND in said


@needs_native
def test_a_cpu_build_of_torch_is_told_first(installed):
    said = told(USES_THE_CPU.replace('"13.0"', "None"), installed)
    assert f"torch {torch.__version__} is built for the CPU only" in said
    assert "install a CUDA build of torch" in said


# ---- the finished libraries, loaded without CUDA ----

STAND_IN = CUDA_GATE.parent / "stand-in/libtorch_cuda.so"
needs_gate = pytest.mark.skipif(
    not STAND_IN.exists() or _native.error is not None, reason="`make cuda` has not been run with a CPU build of torch"
)

LOADED = f"""
import ctypes
ctypes.CDLL({str(STAND_IN)!r}, ctypes.RTLD_GLOBAL)  # what a CUDA build of torch would have loaded
import torch
torch.version.cuda = "13.0"
import pykernels as pk
from pykernels import _native
from pykernels._native import _cuda
assert _native.cuda_error is None, _native.cuda_error
"""


@pytest.fixture
def with_cuda(installed) -> Path:
    for library in CUDA_GATE.glob("*.so"):
        shutil.copy(library, installed / "pykernels/_native")
    return installed


@needs_gate
def test_the_finished_library_registers_the_ops_that_the_package_counts_on(with_cuda):
    code = LOADED + "print(*[op for op in _native.OPS if _cuda.has_kernel(op)])"
    assert set(told(code, with_cuda).split()) == set(_cuda.OPS)


@needs_gate
def test_an_op_that_the_finished_library_lacks_makes_it_stale(with_cuda):
    source = with_cuda / "pykernels/_native/_cuda.py"
    begin = "OPS: tuple[str, ...] = ("
    source.write_text(source.read_text().replace(begin, f'{begin}"op_of_tomorrow",'))
    code = LOADED.replace("assert _native", "print(_native.cuda_error) #")
    assert "the CUDA library is stale, of another version of pykernels (it has no op_of_tomorrow)" in told(
        code, with_cuda
    )


@needs_gate
def test_the_kernels_tell_what_they_were_built_for():
    built = _cuda.build(CUDA_GATE / _cuda.KERNELS.name)
    assert built is not None
    assert built["archs"] == "80+ptx 90a"
    assert built["nvcc"].startswith("1")


@needs_gate
def test_the_kernels_library_needs_neither_torch_nor_a_driver():
    ctypes.CDLL(str(CUDA_GATE / _cuda.KERNELS.name))
    needed = subprocess.run(
        ["readelf", "-d", str(CUDA_GATE / _cuda.KERNELS.name)], capture_output=True, text=True, check=True
    ).stdout
    assert "torch" not in needed
    assert "libcuda" not in needed


FAKE = (
    LOADED
    + """
from torch._subclasses.fake_tensor import FakeTensorMode
_cuda.device_error = lambda index: None  # as if a GPU were there
called = []
class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        called.append(str(f)) if f.namespace == "pykernels" else None
        return f(*args, **(kwargs or {}))
with FakeTensorMode(), torch.no_grad():
    for make, shape in CASES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            called.clear()
            model = make().eval()
            for module in model.modules():
                for tensors in (module._parameters, module._buffers):
                    for n, t in tensors.items():
                        if t is not None:  # not empty_like: of a constant it would be a real CUDA tensor
                            kind = dtype if t.is_floating_point() else t.dtype
                            tensors[n] = torch.empty(t.shape, dtype=kind, device="cuda")
            x = torch.empty(*shape, dtype=dtype, device="cuda")
            with Watch():
                y = model(x)
            y = y[0] if isinstance(y, tuple) else y
            assert y.device.type == "cuda" and y.dtype == dtype, (y.device, y.dtype)
            assert called, "the reference was run"
print("good")
"""
)
CASES = {
    # No ResNet: a CPU torch refuses to make a fake CUDA tensor channels_last.
    "conv_bn_act": "[(lambda: pk.nn.ConvBNAct2d(8, 16, 3), (2, 8, 9, 9))]",
    "lstm": "[(lambda: pk.nn.LSTM(8, 16, 2, bidirectional=True), (5, 2, 8)), (lambda: pk.nn.LSTMCell(8, 16), (3, 8))]",
    "int8_matmul_scaled": "[(lambda: pk.nn.Int8Linear(8, 16), (5, 8))]",
}


@needs_gate
@pytest.mark.parametrize("name", list(CASES))
def test_modules_take_the_cuda_kernels_for_tensors_on_cuda(with_cuda, name):
    spec = next(s for s in all_specs() if s.name == name)
    if spec.op.backends["cuda"] is not None:
        pytest.skip(spec.op.backends["cuda"])
    assert told(FAKE.replace("CASES", CASES[name]), with_cuda) == "good"
