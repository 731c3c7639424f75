"""The console of every command."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """As wide as the terminal; in a pipe or a log, where Rich would take 80 columns, wide enough for every table."""
    return Console() if sys.stdout.isatty() else Console(width=120)
