"""Builds the native libraries with CMake and ninja. Of the environment it reads PK_CUDA, PK_WERROR and MAX_JOBS."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def say_what_becomes_of_cuda() -> None:
    """One line on the CUDA build: this release has no CUDA kernels, so asking for them is an error."""
    nvcc = shutil.which("nvcc")
    asked = os.environ.get("PK_CUDA", "") not in ("", "0")
    if asked and nvcc is None:
        raise SystemExit(
            "pykernels: PK_CUDA=1 needs nvcc, and there is none on PATH; install CUDA, or unset PK_CUDA for a CPU build"
        )
    if asked:
        raise SystemExit("pykernels: PK_CUDA=1: this release has no CUDA kernels yet; unset PK_CUDA for a CPU build")
    if nvcc is None:
        print("pykernels: no nvcc found, building for the CPU only", flush=True)
    else:
        print("pykernels: this release has no CUDA kernels yet, building for the CPU only", flush=True)


class CMakeBuild(build_ext):
    """One CMake build makes all three libraries; the build folder stays, so an edit rebuilds what it touches."""

    def run(self) -> None:
        say_what_becomes_of_cuda()
        for extension in self.extensions:
            self.build_extension(extension)

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        in_place = bool(self.inplace or self.editable_mode)
        # A wheel is built afresh in a folder of its own: build isolation puts cmake, ninja and torch at passing places,
        # which a CMake cache would remember.
        build = ROOT / "build" / ("cmake" if in_place else "cmake-wheel")
        if not in_place:
            shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        torch_spec = importlib.util.find_spec("torch")
        if torch_spec is None or torch_spec.origin is None:
            raise SystemExit(
                "pykernels: torch >= 2.11 is needed to build, and is not installed; pip install torch==2.13.0"
            )
        cmake = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPK_OUTPUT_DIR={output}",
            f"-DPK_TORCH_DIR={Path(torch_spec.origin).parent}",
            f"-DPK_TORCH_VERSION={version('torch')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_directory()}",
            f"-DPK_WERROR={'ON' if os.environ.get('PK_WERROR', '0') == '1' else 'OFF'}",
            f"-DPK_TESTS={'ON' if in_place else 'OFF'}",
        ]  # fmt: skip
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(cmake, check=True)
        subprocess.run(["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)


def pybind11_directory() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


setup(ext_modules=[Extension("pykernels._native._introspect", sources=[])], cmdclass={"build_ext": CMakeBuild})
