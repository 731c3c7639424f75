"""Says at the end, in words, which kernels this run has and has not run."""

from __future__ import annotations

import dataclasses
import inspect
import os

import pytest
import torch

# Triton reads it when a kernel is defined, so it has to be there before any is. On a GPU they are compiled and run.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from pykernels import _native
from tests.harness import cuda_build, cuda_reason, host_isas, triton_reason


def _hurry_the_interpreter() -> None:
    """Half of the time of Triton's interpreter goes into what nobody sees.

    It computes each integer sum and product a second time, in 64 bits, for an assertion that it makes in debug mode
    alone; and each call of a device function looks through its modules for what the launch has patched already.
    """
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    builder = getattr(interpreter, "interpreter_builder", None)
    known = {
        "_patch_builtin": ["pkg", "builder", "scope"],
        "_patch_attr": ["obj", "name", "member", "builder", "scope"],
    }
    for name, parameters in known.items():
        if list(inspect.signature(getattr(interpreter, name, lambda: None)).parameters) != parameters:
            return  # another Triton's: then it takes its time
    options = getattr(builder, "options", None)
    if getattr(options, "debug", True) or not hasattr(options, "sanitize_overflow"):
        return
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    builtins: dict[object, list[str]] = {}  # of a module or class, listed before any is patched

    def patch_builtins(package, builder, scope):
        if package not in builtins:
            builtins[package] = [name for name, member in inspect.getmembers(package) if is_builtin(member)]
        for name in builtins[package]:
            if is_builtin(member := getattr(package, name)):
                interpreter._patch_attr(package, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtins


if triton_reason() is None and not torch.cuda.is_available():
    _hurry_the_interpreter()


@pytest.fixture(autouse=True)
def _seeded():
    """The same weights in whatever order and process a test runs: few numbers may cancel in an unlucky draw."""
    torch.manual_seed(0)


@pytest.fixture
def exact_float32():
    """Plain PyTorch on CUDA without TF32, which it takes for convolutions unless told."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.backends.cudnn.allow_tf32 = before[0]
    torch.set_float32_matmul_precision(before[1])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("which kernels were run")
    for line in report():
        terminalreporter.write_line(line)


def report() -> list[str]:
    """A line for each kind of kernels."""
    return [f"CPU kernels: {_cpu()}", f"CUDA kernels: {_cuda()}", f"Triton kernels: {_triton()}"]


def _cpu() -> str:
    if _native.error is not None:
        return f"NOT run: {_native.error}"
    compiled, run = _native.introspect().isas_compiled(), host_isas()
    left = [isa for isa in compiled if isa not in run]
    return f"run as {', '.join(run)}" + (f"; NOT run as {', '.join(left)}: not on this CPU" if left else "")


def _cuda() -> str:
    reason = cuda_reason()
    if reason is None:
        return f"run on {torch.cuda.get_device_name()}"
    built = cuda_build()
    compiled = "not compiled here" if built is None else f"compiled for {built['archs']} with nvcc {built['nvcc']}"
    return f"{compiled}; simulated by ctest alone, not by this run; NOT run on a GPU: {reason}"


def _triton() -> str:
    reason = triton_reason()
    if reason is not None:
        return f"NOT run: {reason}"
    if torch.cuda.is_available():
        return f"run on {torch.cuda.get_device_name()}"
    return "run by Triton's interpreter; NOT run on a GPU: torch sees no CUDA device"
