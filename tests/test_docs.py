"""The Python of README and docs runs as it is written, and prints what the page says.

A page's blocks share one namespace and run in order. A ``text`` block after a ``python`` block is its output.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pykernels as pk
from pykernels import _native

ROOT = Path(__file__).parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if p.is_file()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path) -> list[tuple[int, str, str | None]]:
    """(first line, Python, what it prints or None) of each block."""
    text = page.read_text()
    fences = [(text.count("\n", 0, m.start()) + 1, *m.groups()) for m in FENCE.finditer(text)]
    followers = [*fences, (0, "", "")][1:]
    return [
        (line, code, printed if then == "text" else None)
        for (line, language, code), (_, then, printed) in zip(fences, followers, strict=True)
        if language == "python"
    ]


WITH_CODE = [page for page in PAGES if blocks_of(page)]


@pytest.mark.skipif(_native.error is not None, reason=f"no native library: {_native.error}")
@pytest.mark.skipif(not PAGES, reason="no README or docs beside the tests")
@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run_and_print_what_the_page_says(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace = {"__name__": "__main__"}
    for line, code, printed in blocks_of(page):
        exec(compile("\n" * line + code, str(page), "exec"), namespace)
        told = capsys.readouterr().out
        assert printed is None or told == printed, f"{page.name}, line {line}"


LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
TEXTS = [p for p in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if p.is_file()]


def test_links_between_files_lead_somewhere():
    dead = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in TEXTS
        for target in LINK.findall(FENCE.sub("", page.read_text()))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not dead


def test_each_public_name_has_a_page_and_a_docstring():
    path = ROOT / "tools/docs_site.py"
    if not path.is_file():
        pytest.skip("no tools/ beside the tests")
    spec = importlib.util.spec_from_file_location("docs_site", path)
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)

    pages = {f"{module}.{name}" for module, found in site.api_pages().items() for name in found}
    public = {f"pykernels.{name}" for name in pk.__all__ if not isinstance(getattr(pk, name), (str, ModuleType))}
    public |= {f"pykernels.{part}.{name}" for part in ("ops", "nn", "models") for name in getattr(pk, part).__all__}
    assert public <= pages
    for name in public:
        *module, last = name.split(".")
        value = getattr(importlib.import_module(".".join(module)), last)
        assert not callable(value) or value.__doc__, name
