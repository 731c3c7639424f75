"""The Python of README and docs runs as it is written, and prints what the page says.

A page's blocks share one namespace and run in order. A ``text`` block after a ``python`` block is its output.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

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
