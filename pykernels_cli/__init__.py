"""Starts the command line: ``pykernels`` and ``python -m pykernels``.

It is a package of its own because importing anything of `pykernels` imports torch, which takes seconds. ``--help`` and
``--version`` don't wait for that, and neither does the message that says how to install Rich and Typer.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

#: What the extra ``cli`` brings.
NEEDED = {"rich": "rich>=13", "typer": "typer>=0.13"}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits: 0 if all is well, 1 if something is not, 2 if it can't be done as it was asked for."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["--version"]:
        print(f"pykernels {version()}")
        sys.exit(0)
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        asked = " ".join(f"'{NEEDED[name]}'" for name in missing)
        print(f"pykernels: the command line needs {' and '.join(missing)}: pip install {asked}", file=sys.stderr)
        sys.exit(2)
    from pykernels_cli._app import app

    app(args=arguments, prog_name="pykernels")
    sys.exit(0)


def answer_before_torch() -> None:
    """Answers ``python -m pykernels [command] --help`` and ``--version``, and exits; returns for all else.

    `pykernels` calls it while ``-m`` imports it, before it imports torch.
    """
    arguments = sys.argv[1:]
    start = len(sys.orig_argv) - len(arguments)
    if sys.orig_argv[start - 2 : start] != ["-m", "pykernels"]:
        return
    if arguments[:1] == ["--version"]:
        main(arguments)
    if "--help" in arguments or arguments in ([], ["bench"]):
        words = itertools.takewhile(lambda argument: not argument.startswith("-"), arguments)
        main([*words, "--help"])


def version() -> str:
    """The package's version, read from its source: importing it would import torch."""
    spec = find_spec("pykernels")
    if spec is None or spec.origin is None:
        raise RuntimeError("pykernels: the package is not installed beside its command line; reinstall pykernels")
    found = re.search(r'^__version__ = "(.+)"$', Path(spec.origin).read_text(encoding="utf-8"), re.M)
    if found is None:
        raise RuntimeError(f"pykernels: {spec.origin} names no version; reinstall pykernels")
    return found[1]
