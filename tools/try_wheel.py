"""Tries a wheel as a stranger would: in an environment that has nothing but it, torch and mypy, far from the sources.

    python tools/try_wheel.py dist/pykernels-0.1.0-....whl [--torch torch==2.13.0]

First without the command line's packages, which have to be named, then with them: `info`, `check` of one op, the first
complete snippet of README.md, and mypy on it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Installs, tries, and exits with 1 at the first thing that is wrong."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("wheel", type=Path)
    options.add_argument("--torch", default="torch", help="which torch to install, as pip takes it")
    asked = options.parse_args()
    wheel = asked.wheel.resolve()
    check_contents(wheel)
    with tempfile.TemporaryDirectory(prefix="pykernels-wheel-") as name:
        folder = Path(name)
        python = folder / "env/bin/python"
        run(folder, sys.executable, "-m", "venv", "env")
        run(folder, python, "-m", "pip", "install", "--quiet", asked.torch)
        run(folder, python, "-m", "pip", "install", "--quiet", wheel, "mypy")
        said = run(folder, python, "-m", "pykernels", "info", code=2)
        expect("pip install 'rich>=13' 'typer>=0.13'", said)
        run(folder, python, "-m", "pip", "install", "--quiet", f"{wheel}[cli]")
        run(folder, python.with_name("pykernels"), "--version")
        expect("native library", run(folder, python, "-m", "pykernels", "info"))
        expect("are within tolerance", run(folder, python, "-m", "pykernels", "check", "--op", "lstm_cell"))
        (folder / "snippet.py").write_text(snippet())
        print(run(folder, python, "snippet.py"))
        run(folder, python, "-m", "mypy", "--strict", "snippet.py")
    print(f"{wheel.name}: installed and tried")


def check_contents(wheel: Path) -> None:
    """Our libraries and no other's; the name says what they need."""
    names = zipfile.ZipFile(wheel).namelist()
    foreign = [n for n in names if re.search(r"(^|/)lib(torch|c10|gomp)", n) or ".libs/" in n]
    if foreign or "manylinux" not in wheel.name:
        raise SystemExit(f"{wheel.name}: expected a manylinux wheel without libraries of others, got {foreign}")
    for needed in ("pykernels/py.typed", "pykernels/_native/libpykernels_torch.so", "pykernels_cli/__init__.py"):
        if needed not in names:
            raise SystemExit(f"{wheel.name}: expected {needed} in it")


def snippet() -> str:
    """The README's first Python that imports all it uses."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    return next(b for b in blocks if "import torch\n" in b and "import pykernels" in b)


def run(folder: Path, *command: str | Path, code: int = 0) -> str:
    """What the command says; SystemExit if it ends otherwise than with ``code``."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != code:
        words = " ".join(map(str, command))
        raise SystemExit(f"{words}: expected exit code {code}, got {done.returncode}\n{said}")
    return said


def expect(words: str, said: str) -> None:
    """SystemExit if these words are not in what was said."""
    if words not in said:
        raise SystemExit(f"expected {words!r}, got\n{said}")


if __name__ == "__main__":
    main()
