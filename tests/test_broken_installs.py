"""Without the native library, with a broken one, with an old torch, with an impossible ISA: what a user sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import pykernels
import pykernels_cli
from pykernels import _native
from tests.fresh import as_module, run_fresh
from tests.harness import triton_reason

PACKAGE = Path(pykernels.__file__).parent

USES_THE_REFERENCE = """
import torch, pykernels as pk
x, w = torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3)
y = pk.ops.conv_bn_act(x, w)
assert torch.allclose(y, torch.relu(torch.nn.functional.conv2d(x, w)), atol=1e-5)
"""
ASKS_FOR_THE_KERNELS = USES_THE_REFERENCE.replace("(x, w)\nassert", '(x, w, backend="cpu")\nassert')
assert ASKS_FOR_THE_KERNELS != USES_THE_REFERENCE


def copy_package(to: Path, *left_out: str) -> Path:
    left = shutil.ignore_patterns(*left_out, "__pycache__")
    for source in (PACKAGE, Path(pykernels_cli.__file__).parent):
        shutil.copytree(source, to / source.name, ignore=left)
    return to


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the package without its native libraries."""
    return copy_package(tmp_path, "*.so")


def run(code: str, directory: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    if directory is not None:
        env["PYTHONPATH"] = str(directory)
    if "\n" not in code and " " not in code:
        code = as_module("pykernels", code)
    return run_fresh(code, directory or PACKAGE.parent, env)


def test_not_built_imports_and_falls_back_with_one_word(bare):
    done = run(USES_THE_REFERENCE + "pk.ops.conv_bn_act(x, w)\n", bare)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pykernels.conv_bn_act: the native library is not built") == 1
    assert "pip install -e ." in done.stderr


def test_not_built_and_asked_for_raises(bare):
    done = run(ASKS_FOR_THE_KERNELS, bare)
    assert done.returncode == 1
    assert (
        "RuntimeError: pykernels.conv_bn_act: backend='cpu' cannot run: the native library is not built" in done.stderr
    )


@pytest.mark.parametrize("content", [b"", b"not a library"], ids=["empty", "text"])
def test_broken_library_says_so(bare, content):
    (bare / "pykernels/_native/libpykernels_torch.so").write_bytes(content)
    done = run(ASKS_FOR_THE_KERNELS, bare)
    assert done.returncode == 1
    assert "the native library is broken" in done.stderr
    assert run(USES_THE_REFERENCE, bare).returncode == 0


def test_half_an_install_says_so(bare):
    shutil.copy(PACKAGE / "_native/libpykernels_torch.so", bare / "pykernels/_native")
    done = run(ASKS_FOR_THE_KERNELS, bare)
    assert done.returncode == 1
    assert "the native library is broken (libpykernels.so: cannot open" in done.stderr


@pytest.mark.parametrize("name", ["libpykernels.so", "libpykernels_torch.so", "_introspect", "_guard"])
@pytest.mark.parametrize("how", ["cut short", "missing"])
def test_a_part_that_is_cut_short_or_missing(bare, name, how):
    for part in (PACKAGE / "_native").glob("*.so"):
        if part.name.startswith(name + ".") or part.name == name:
            if how == "cut short":
                (bare / "pykernels/_native" / part.name).write_bytes(part.read_bytes()[: part.stat().st_size // 2])
        else:
            shutil.copy(part, bare / "pykernels/_native")
    done = run(ASKS_FOR_THE_KERNELS, bare)
    assert done.returncode == 1
    assert "the native library is " in done.stderr
    assert name in done.stderr.split("the native library is ")[1]


@pytest.mark.parametrize("what", ["foreign", "older"])
def test_a_stale_library_says_so(bare, what):
    for library in (PACKAGE / "_native").glob("*.so"):
        shutil.copy(library, bare / "pykernels/_native")
    if what == "foreign":  # loads, and defines no op at all
        shutil.copy(bare / "pykernels/_native/libpykernels.so", bare / "pykernels/_native/libpykernels_torch.so")
        missing = "conv_bn_act, "
    else:
        source = bare / "pykernels/_native/__init__.py"
        source.write_text(source.read_text().replace("OPS = (", 'OPS = (\n    "op_of_tomorrow",'))
        missing = r"op_of_tomorrow\)"
    assert run(USES_THE_REFERENCE, bare).returncode == 0
    done = run(ASKS_FOR_THE_KERNELS, bare)
    assert done.returncode == 1
    assert re.search(rf"native library is stale, of another version of pykernels \(it has no {missing}", done.stderr)
    assert "the native library is stale" in " ".join(run("info", bare).stdout.split())


@pytest.mark.skipif(_native.error is not None, reason=str(_native.error))
def test_the_list_of_ops_is_that_of_the_library():
    schemas = [s.name for s in torch._C._jit_get_all_schemas()]
    defined = {name.removeprefix("pykernels::") for name in schemas if name.startswith("pykernels::")}
    # Those of Triton are there as soon as another test has used them.
    assert {name for name in defined if not name.endswith("_triton")} == set(_native.OPS)


def test_old_torch_says_so():
    done = run("import torch; torch.__version__ = '2.9.1+cpu'\n" + ASKS_FOR_THE_KERNELS)
    assert done.returncode == 1
    assert "pykernels needs torch >= 2.11 for its stable ABI, this is torch 2.9.1+cpu; upgrade torch" in done.stderr


@pytest.mark.parametrize("when", ["missing", "nonsense"])
def test_info_explains(bare, when):
    done = run("info", bare) if when == "missing" else run("info", PYKERNELS_ISA="nonsense")
    text = " ".join((done.stdout + done.stderr).split())
    assert ("not built" if when == "missing" else "the unknown ISA 'nonsense'") in text
    assert "Traceback" not in text


def test_an_isa_that_is_none():
    done = run(ASKS_FOR_THE_KERNELS, PYKERNELS_ISA="nonsense")
    assert done.returncode == 1
    assert "PYKERNELS_ISA: expected one of scalar" in done.stderr
    assert "got the unknown ISA 'nonsense'" in done.stderr


def test_an_isa_that_is_forced_runs():
    code = (
        "from pykernels import _native\nassert _native.introspect().active_isa() == 'scalar'\n" + ASKS_FOR_THE_KERNELS
    )
    assert run(code, PYKERNELS_ISA="scalar").returncode == 0


def test_import_brings_no_command_line_and_no_plotting():
    heavy = ("rich", "typer", "matplotlib", "sklearn", "scipy")
    code = f"import sys, pykernels\nprint([m for m in {heavy} if m in sys.modules])"
    assert run(code).stdout.strip() == "[]"


def test_importing_the_package_imports_no_triton():
    done = run("import sys, pykernels; print([m for m in sys.modules if m.split('.')[0] == 'triton'])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
def test_triton_needs_no_native_library(bare):
    code = """
import torch, pykernels as pk
a, b = torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
assert pk.ops.int8_matmul(a, b, backend="triton").tolist() == [[3] * 4] * 2
"""
    done = run(code, bare, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(triton_reason() is not None, reason=f"needs Triton: {triton_reason()}")
def test_interpreting_asked_for_too_late_is_told():
    code = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import torch, triton.language, pykernels as pk
os.environ["TRITON_INTERPRET"] = "1"
a, b = torch.ones(2, 3, dtype=torch.int8), torch.ones(3, 4, dtype=torch.int8)
pk.ops.int8_matmul(a, b, backend="triton")
"""
    assert "cannot run: TRITON_INTERPRET=1 was set after Triton had been imported" in run(code).stderr
