"""What a type checker sees of the package from outside: an editable install, and the types of what users call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the sources are not beside the tests")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The source tree without setup.py, and so without native code to build."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pyproject.toml", "README.md", "LICENSE", "pykernels", "pykernels_cli"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def environment(project, tmp_path_factory):
    """An environment with an editable install of the project, and with all that this one has."""
    folder = tmp_path_factory.mktemp("editable")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    code = f"import setuptools.build_meta as b; b.build_editable({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(packages)
    (packages / "others.pth").write_text("\n".join(p for p in sys.path if p.endswith("-packages")))
    return folder / "venv"


def test_an_editable_install_is_a_path_and_no_import_hook(environment, project):
    (packages,) = environment.glob("lib/python*/site-packages")
    (ours,) = packages.glob("__editable__*.pth")
    assert Path(ours.read_text().strip()).resolve() == project.resolve()
    assert not list(packages.glob("*finder*"))


CODE = """
import torch
from torch import Tensor, nn

import pykernels as pk


class Net(nn.Module):
    def forward(self, x: Tensor, times: int = 1) -> tuple[Tensor, int]:
        return x * times, times

    def halved(self, x: Tensor) -> Tensor:
        return x / 2


def plain(model: nn.Module, x: Tensor) -> None:
    fast = pk.optimize(model)
    reveal_type(fast)  # Optimized[[*Any, **Any], Any]
    reveal_type(fast(x))  # Any
    reveal_type(fast.report())  # Report
    reveal_type(fast.report().replaced)  # list[Replaced]
    kept: pk.Optimized = fast.eval()


def known(x: Tensor) -> None:
    fast = pk.optimize(Net(), torch.bfloat16, keep="packed")
    reveal_type(fast(x))  # tuple[Tensor, int]
    reveal_type(fast(x, times=2))  # tuple[Tensor, int]
    reveal_type(fast.halved(x))  # Any
    fast("a string")  # error: arg-type
    fast(x, time=2)  # error: call-arg
    pk.optimize(plain)  # error: arg-type


def modules(x: Tensor) -> None:
    reveal_type(pk.nn.ConvBNAct2d(3, 8, 3)(x))  # Tensor
    reveal_type(pk.nn.ConvBNAct2d(3, 8, 3)(x, residual=x))  # Tensor
    reveal_type(pk.nn.ConvBNAct1d(3, 8, 3)(x))  # Tensor
    reveal_type(pk.nn.ConvTransposeBNAct2d(3, 8, 3)(x))  # Tensor
    reveal_type(pk.nn.Int8Linear(3, 8)(x))  # Tensor
    reveal_type(pk.nn.LSTM(3, 8)(x))  # tuple[Tensor, tuple[Tensor, Tensor]]
    reveal_type(pk.nn.LSTMCell(3, 8)(x))  # tuple[Tensor, Tensor]
    reveal_type(pk.nn.Int8Linear.from_torch(nn.Linear(3, 8)))  # Int8Linear
    reveal_type(pk.nn.ConvBNAct2d.from_torch(nn.Conv2d(3, 8, 3)))  # ConvBNAct2d
    reveal_type(pk.models.resnet18()(x))  # Tensor
    reveal_type(pk.models.CNNLSTM(10, 64, 8, 1)(x))  # Tensor
    reveal_type(pk.models.LSTMLanguageModel(10, 4, 8, 1)(x))  # tuple[Tensor, tuple[Tensor, Tensor]]
    reveal_type(pk.optimize(pk.models.resnet18())(x))  # Tensor
    reveal_type(pk.ops.conv_bn_act(x, x))  # Tensor
"""


def test_what_mypy_says_of_a_file_elsewhere(environment, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "user.py").write_text(CODE)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "bin/python", "user.py"],
        cwd=tmp_path, env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH")},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    said = dict(re.findall(r'^user\.py:(\d+): (?:note: Revealed type is )?"?(.*?)"?$', done.stdout, re.M)[::-1])
    said = {int(line): re.sub(r"\b[a-z_0-9]+\.(?=[a-z_A-Z])", "", what) for line, what in said.items()}
    expected = {i: line.split("  # ")[1] for i, line in enumerate(CODE.splitlines(), 1) if "  # " in line}
    for line, what in expected.items():
        told = said.pop(line, "nothing")
        good = f"[{what[7:]}]" in told if what.startswith("error: ") else told == what
        assert good, f"line {line}: expected {what!r}, got {told!r}\n{done.stdout}{done.stderr}"
    assert said == {}, done.stdout
    assert "Found 3 errors in 1 file " in done.stdout  # and none of the package's own files
