"""README and docs say what the committed measurements say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_tables_and_picture_are_those_of_the_measurements():
    script = ROOT / "tools/figures.py"
    if not script.is_file() or not (ROOT / "README.md").is_file():
        pytest.skip("no tools/ or README.md beside the tests")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
