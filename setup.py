"""Builds the native libraries with CMake and ninja. Of the environment it reads

- PK_CUDA: 1 builds the CUDA kernels or fails, 0 does not build them; unset: if nvcc is there and torch has CUDA
- PK_CUDA_ARCHS: their targets, "80;90a" if unset (see cmake/cuda.cmake)
- CUDA_HOME: where nvcc is, if not on PATH
- PK_WERROR: 1 makes warnings errors
- MAX_JOBS: how many compilers run at once
"""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def torch_directory() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SystemExit("pykernels: torch >= 2.11 is needed to build, and is not installed; pip install torch==2.13.0")
    return Path(spec.origin).parent


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of PATH, of NVIDIA's PyPI wheels (site-packages/nvidia/cu*/bin), of /usr/local/cuda."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    places += [Path(place) for place in os.environ.get("PATH", "").split(os.pathsep) if place]
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia.submodule_search_locations or []) if nvidia else []:
        places += sorted(Path(folder).glob("cu*/bin"), reverse=True)
    places.append(Path("/usr/local/cuda/bin"))
    return next((found for place in places if (found := shutil.which("nvcc", path=str(place)))), None)


def choose_nvcc(asked: str, nvcc: str | None, torch_cuda: str | None) -> tuple[str | None, str]:
    """The nvcc to build the CUDA kernels with, or None; and one line that says what is done, and why."""
    if asked not in ("", "0", "1"):
        raise SystemExit(f"pykernels: PK_CUDA: expected 0, 1 or nothing; got {asked!r}")
    if asked == "0":
        return None, "building for the CPU only, as PK_CUDA=0 asks"
    if nvcc is None:
        if asked == "1":
            raise SystemExit(
                "pykernels: PK_CUDA=1 needs nvcc, and there is none in CUDA_HOME, on PATH, in the nvidia-cuda-nvcc "
                "wheel or in /usr/local/cuda; install CUDA, or unset PK_CUDA for a CPU build"
            )
        return None, "no nvcc found, building for the CPU only"
    if asked == "1":
        return nvcc, f"building for the CPU and, as PK_CUDA=1 asks, for CUDA with {nvcc}"
    if torch_cuda is None:
        return None, "torch is a CPU build, building for the CPU only (PK_CUDA=1 builds the CUDA kernels all the same)"
    return nvcc, f"torch has CUDA {torch_cuda}, building for the CPU and for CUDA with {nvcc}"


class CMakeBuild(build_ext):
    """One CMake build makes all libraries; the build folder stays, so an edit rebuilds what it touches."""

    def run(self) -> None:
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
        torch = torch_directory()
        torch_cuda = runpy.run_path(str(torch / "version.py"))["cuda"]
        nvcc, what = choose_nvcc(os.environ.get("PK_CUDA", ""), find_nvcc(), torch_cuda)
        print(f"pykernels: {what}", flush=True)
        cmake = [
            "cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DPK_OUTPUT_DIR={output}",
            f"-DPK_TORCH_DIR={torch}",
            f"-DPK_TORCH_VERSION={version('torch')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11_directory()}",
            f"-DPK_WERROR={'ON' if os.environ.get('PK_WERROR', '0') == '1' else 'OFF'}",
            f"-DPK_CUDA={'OFF' if nvcc is None else 'ON'}",
            f"-DPK_CUDA_ARCHS={os.environ.get('PK_CUDA_ARCHS') or '80;90a'}",
            f"-DPK_TESTS={'ON' if in_place else 'OFF'}",
        ]  # fmt: skip
        if nvcc is not None:
            cmake.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
        else:
            for left_over in output.glob("libpykernels*cuda.so"):  # of an earlier build, and so of another version
                left_over.unlink()
        jobs = os.environ.get("MAX_JOBS")
        subprocess.run(cmake, check=True)
        subprocess.run(["cmake", "--build", str(build), *(["-j", jobs] if jobs else [])], check=True)


def pybind11_directory() -> str:
    import pybind11

    return pybind11.get_cmake_dir()


if __name__ == "__main__":
    setup(ext_modules=[Extension("pykernels._native._introspect", sources=[])], cmdclass={"build_ext": CMakeBuild})
