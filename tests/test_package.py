"""What the package says of itself: to pip, to a reader who cites it, and in its source distribution."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pykernels

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the sources are not beside the tests")


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """As pip reads it, made without building anything."""
    folder = tmp_path_factory.mktemp("metadata")
    code = f"import setuptools.build_meta as b; print(b.prepare_metadata_for_build_wheel({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.rglob("METADATA")
    return email.message_from_string(found.read_text())


def test_only_torch_and_numpy_are_needed(metadata):
    needed = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert sorted(re.split(r"[ ;<>=!]", r)[0] for r in needed) == ["numpy", "torch"]


def test_the_extras_bring_the_command_line(metadata):
    required = metadata.get_all("Requires-Dist")
    for extra in ("demo", "bench", "dev"):
        assert f'pykernels[cli]; extra == "{extra}"' in required
    assert {r.split(">")[0] for r in required if r.endswith('extra == "cli"')} == {"rich", "typer"}


def test_it_says_whose_and_what_it_is(metadata):
    assert metadata["Version"] == pykernels.__version__
    assert metadata["Author"] == "The pykernels developers"
    assert metadata["License-Expression"] == "MIT"
    assert "pytorch" in metadata["Keywords"].split(",")
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {pykernels.__version__}\n" in text


def test_the_changelog_has_this_version():
    assert f"\n## {pykernels.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_source_distribution_takes_the_pages():
    named = (ROOT / "MANIFEST.in").read_text().split()
    pages = [p.name for p in ROOT.glob("*.md") if p.name != "README.md"] + ["CITATION.cff"]
    assert [page for page in pages if page not in named] == []
