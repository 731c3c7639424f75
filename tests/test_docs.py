"""The Python of README and docs runs as it is written, and prints what the page says.

A page's blocks share one namespace and run in order. A ``text`` block after a ``python`` block is its output.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pykernels as pk
from pykernels import _native
from pykernels.ops._op import FAMILIES

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


def steady(text: str) -> str:
    """``text`` without the size of the kernels' own memory, which depends on the CPU and the number of threads."""
    return re.sub(r"[\d.]+ MB for intermediates", "... MB for intermediates", text)


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
        assert printed is None or steady(told) == steady(printed), f"{page.name}, line {line}"


LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
TEXTS = [p for p in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md") if p.is_file()]


#: Files and folders of the repository in backticks.
PATH = re.compile(r"`((?:bench|cmake|csrc|docs|examples|pykernels|pykernels_cli|tests|tools)/[\w./-]*)`")
FILE = re.compile(r"`([\w./-]+\.(?:cpp|cuh?|h|py|md|json|tsv|cmake|sh))`")
SOURCES = ("bench", "cmake", "csrc", "docs", "examples", "pykernels", "pykernels_cli", "tests", "tools")


def test_files_and_folders_in_the_text_exist():
    texts = {p: FENCE.sub("", p.read_text()) for p in TEXTS if p.name != "CHANGELOG.md"}
    names = {p.name for p in ROOT.iterdir()} | {p.name for folder in SOURCES for p in (ROOT / folder).rglob("*.*")}
    gone = {(page, path) for page, text in texts.items() for path in PATH.findall(text) if not (ROOT / path).exists()}
    gone |= {
        (page, path) for page, text in texts.items() for path in FILE.findall(text) if Path(path).name not in names
    }
    assert any(PATH.findall(text) for text in texts.values())
    # CONTRIBUTING's example is an op that is not there.
    assert {f"{page.relative_to(ROOT)}: {path}" for page, path in gone if "scale_add" not in path} == set()


def anchors_of(page: Path) -> set[str]:
    """What GitHub and MkDocs make of its headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_between_files_lead_somewhere():
    links = [
        (page, page.parent / target if target else page, anchor)
        for page in TEXTS
        for target, anchor in LINK.findall(FENCE.sub("", page.read_text()))
        if "://" not in target
    ]
    dead = [
        f"{page.relative_to(ROOT)}: {target}#{anchor}"
        for page, target, anchor in links
        if not target.exists() or (anchor and anchor not in anchors_of(target))
    ]
    assert any(anchor for *_, anchor in links)
    assert not dead


def test_the_page_of_settings_names_every_environment_variable():
    """Those that the sources name, and those that setup.py reads."""
    page = ROOT / "docs/settings.md"
    if not page.is_file():
        pytest.skip("no docs/ beside the tests")
    named = set(re.findall(r"^\| `([A-Z_]+)` \|", page.read_text(), re.MULTILINE))
    found = set(re.findall(r"environ(?:\.get\(|\[)['\"]([A-Z_]+)['\"]", (ROOT / "setup.py").read_text())) - {"PATH"}
    for folder in ("csrc", "pykernels", "pykernels_cli", "tests", "bench", "tools"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".h", ".cpp", ".cu", ".cuh"):
                found |= set(re.findall(r"\bPYKERNELS_[A-Z]+(?:_[A-Z]+)*\b", path.read_text(errors="replace")))
    others = {"TRITON_INTERPRET", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
    assert found >= {"PYKERNELS_ISA", "PK_CUDA", "MAX_JOBS"}
    assert named == found | others


def test_the_page_of_the_architecture_names_the_modules_and_families():
    page = ROOT / "docs/architecture.md"
    if not page.is_file():
        pytest.skip("no docs/ beside the tests")
    text = page.read_text()
    modules = {path.stem for path in (ROOT / "pykernels/optimize").glob("_*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
    assert {name for name in FAMILIES if name not in text} == set()


def arguments_of(docstring: str | None) -> set[str]:
    """The names under ``Args:``."""
    found = re.search(r"^ *Args:\n(.*?)(?=^ *[A-Z][a-z]+:$|\Z)", docstring or "", re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^ +(\w+): ", found[1], re.MULTILINE)) if found else set()


#: Classes that nobody calls.
_RESULTS = pk.Optimized, pk.Quantized, pk.Report


def documented() -> dict[str, tuple[Callable, Callable]]:
    """Name -> what has the parameters and what has the docstring, of each public function, class and own method."""
    found = {}
    parts = {"pykernels": pk, **{f"pykernels.{p}": getattr(pk, p) for p in ("ops", "nn", "models")}}
    for part, module in parts.items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value):
                found[f"{part}.{name}"] = value, value
            if not isinstance(value, type) or value in _RESULTS:
                continue
            found[f"{part}.{name}"] = value.__init__, value
    for kind in [kind for _, kind in found.values() if isinstance(kind, type)] + [*_RESULTS]:
        for name, value in vars(kind).items():
            method = value.__func__ if isinstance(value, classmethod) else value
            ours = inspect.isfunction(method) and method.__module__.startswith("pykernels.")
            if ours and not name.startswith("_"):
                found[f"{kind.__name__}.{name}"] = method, method
    return found


@pytest.mark.parametrize("name", documented())
def test_each_argument_has_a_line_in_its_docstring(name):
    function, owner = documented()[name]
    parameters = set(inspect.signature(function).parameters) - {"self", "cls"}
    assert inspect.getdoc(owner)
    assert parameters - arguments_of(inspect.getdoc(owner)) == set()
    assert {"args", "kwargs"}.isdisjoint(parameters)


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
