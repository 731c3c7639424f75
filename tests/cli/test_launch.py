"""How the command line starts: what it imports for its help, and what it says where Rich and Typer are missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pykernels
import pykernels_cli

ROOT = Path(__file__).parents[2]

#: Runs what a console script runs, and tells which of torch and pykernels were imported for it.
SCRIPT = """
import atexit, sys
atexit.register(lambda: print("imported:", *(m for m in ("torch", "pykernels") if m in sys.modules)))
import pykernels_cli
pykernels_cli.main({arguments!r})
"""


def script(*arguments, **environment):
    """The console script `pykernels`."""
    code = SCRIPT.format(arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def module(*arguments):
    """``python -m pykernels``, and whether it imported torch."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pykernels", *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    return done, re.search(r"\| +torch$", done.stderr, re.M) is not None


HELP = [(), ("--help",), ("check", "--help"), ("bench",), ("bench", "peers", "--help")]


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_needs_no_torch(arguments):
    done = script(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("imported:\n")
    command = " ".join(("pykernels", *arguments)).removesuffix(" --help")
    assert f"Usage: {command} [OPTIONS]" in done.stdout
    through, imported = module(*arguments)
    assert (through.returncode, imported) == (0, False)
    assert through.stdout == done.stdout.removesuffix("imported:\n")


@pytest.mark.parametrize("arguments", [("check", "--op"), ("demo", "--out", "/dev/null/x"), ("bench", "cars")])
def test_a_wrong_argument_needs_none_either(arguments):
    done = script(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stdout == "imported:\n"


def test_the_version_is_the_packages():
    assert pykernels_cli.version() == pykernels.__version__
    assert script("--version").stdout == f"pykernels {pykernels.__version__}\nimported:\n"
    done, imported = module("--version")
    assert (done.stdout, imported) == (f"pykernels {pykernels.__version__}\n", False)


def test_a_command_gets_the_whole_package():
    done, imported = module("info", "--json")
    assert done.returncode == 0, done.stderr
    assert imported
    assert f'"pykernels": "{pykernels.__version__}"' in done.stdout


def test_another_program_that_imports_the_package_has_its_own_help(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").write_text("import pykernels\n")  # while `-m` looks for __main__
    (tmp_path / "mine/__main__.py").write_text("import sys; print(sys.argv[1:], pykernels := 'mine')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mine", "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.stdout == "['--help'] mine\n", done.stderr


@pytest.mark.parametrize("missing", [("rich", "typer"), ("typer",)])
def test_without_its_extra_it_names_what_to_install(missing, monkeypatch, capsys):
    find = pykernels_cli.find_spec
    monkeypatch.setattr(pykernels_cli, "find_spec", lambda name: None if name in missing else find(name))
    with pytest.raises(SystemExit) as ended:
        pykernels_cli.main(["info"])
    assert ended.value.code == 2
    asked = " ".join(f"'{pykernels_cli.NEEDED[name]}'" for name in missing)
    said = f"pykernels: the command line needs {' and '.join(missing)}: pip install {asked}\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="the sources are not beside the tests")
def test_the_extra_is_what_the_launcher_asks_for():
    text = (ROOT / "pyproject.toml").read_text()
    assert f"cli = {list(pykernels_cli.NEEDED.values())}".replace("'", '"') in text
    assert 'dependencies = ["torch>=2.11", "numpy"]\n' in text


def test_the_package_imports_no_command_line():
    heavy = ("pykernels_cli", "typer", "rich", "matplotlib", "sklearn")
    code = f"import sys, pykernels; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=300).returncode == 0
